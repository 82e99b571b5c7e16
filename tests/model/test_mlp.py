"""MLPs that take a sequence in chunks: the same numbers, with less of the inner layer at a time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from evo_toolkit.model.mlp import GatedMLP


@pytest.fixture
def mlp() -> GatedMLP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GatedMLP(6, 8, gelu=True).double()


def _gradients(module: GatedMLP, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    module.add_to(leaf * 2, module(leaf)).square().sum().backward()
    assert leaf.grad is not None
    return [leaf.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("chunk", [1, 4, 10, 100])
def test_chunks_give_the_same(mlp: GatedMLP, chunk: int) -> None:
    x = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cut = copy.deepcopy(mlp)
    cut.chunk = chunk
    found, wanted = _gradients(cut, x), _gradients(mlp, x)
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(cut(x), mlp(x), rtol=1e-13, atol=1e-13)


def test_the_inner_layer_exists_for_a_chunk_alone(mlp: GatedMLP) -> None:
    """What autograd keeps, and how many positions the widest product ever has."""
    widest, kept = [], []
    mlp.l1.register_forward_hook(lambda _m, _i, y: widest.append(y.shape[1]))
    mlp.chunk = 4
    x = torch.randn(1, 10, 6, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = mlp(x)
    y.sum().backward()
    assert sum(widest) == 20 and max(widest) == 4  # forward, and again in the backward pass
    assert not any(math.prod(shape) >= 8 * 10 for shape in kept)
