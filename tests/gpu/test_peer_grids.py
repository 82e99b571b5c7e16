"""The shapes that other projects test their short convolutions with, held to our bounds.

Their functions are channel-first with the last tap at lag 0; the adaptor below turns such a call
into ours. Bias and activation are no part of our operator. D = 200 of fla's grid is no multiple of
16, so it takes the twin.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from evo_kernels import short_conv
from evo_kernels.testing import FLOAT32_BOUND, INPUT_GRADIENT_BOUND, OUTPUT_BOUND, error, violations

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPE = torch.bfloat16

# causal-conv1d, tests/test_causal_conv1d.py: batch 2, in a slice of a wider tensor.
WIDTHS = (2, 3, 4)
LENGTHS = (1, 2, 8, 16, 32, 64, 128, 129, 130, 151, 256, 372, 512, 784, 1024, 1134, 2048, 4096)
# The same project's single steps, batch 64: (dim, seqlen).
STEPS = [(dim, length) for dim in (2048, 2048 + 16, 4096) for length in (1, 4, 5)]
# flash-linear-attention, tests/modules/test_conv.py: (B, T, D, W).
FLA = [
    (2, 64, 128, 3), (2, 128, 128, 4), (2, 500, 1024, 3), (2, 1024, 1024, 4), (4, 500, 128, 3),
    (4, 1024, 1024, 4), (2, 2, 128, 4), (2, 3, 128, 4), (2, 4, 128, 4), (2, 2, 128, 3),
]  # fmt: skip


def causal_conv1d(x: Tensor, weight: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `causal_conv1d_fn` without bias and activation.

    Args:
        x: `[B, D, L]`.
        weight: `[D, W]`, the last tap is lag 0.
        initial: `[B, D, W - 1]` or None.

    Returns:
        `[B, D, L]`, and the final states, shaped as `initial`.
    """
    state = None if initial is None else initial.transpose(1, 2)
    y, end = short_conv(
        x.transpose(1, 2), weight.flip(1), state, return_state=True, backend="triton"
    )
    assert end is not None
    return y.transpose(1, 2), end.transpose(1, 2)


def _check(x: Tensor, weight: Tensor, initial: Tensor | None) -> None:
    leaves = [t.detach().requires_grad_() for t in (x, weight, initial) if t is not None]
    y, end = causal_conv1d(*leaves, *([None] if initial is None else []))
    dy = torch.randn_like(y)
    found = [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    exact = [t.detach().double().requires_grad_() for t in leaves]
    W = weight.shape[1]
    before = exact[2] if initial is not None else x.new_zeros(*x.shape[:2], W - 1).double()
    padded = torch.cat([before, exact[0]], dim=2)
    L = x.shape[2]
    y64 = sum(exact[1][:, j, None] * padded[:, :, j : j + L] for j in range(W))
    assert isinstance(y64, Tensor)
    wanted = [y64.detach(), *torch.autograd.grad(y64, exact, dy.double())]
    assert torch.equal(end, padded[:, :, x.shape[2] :].to(end.dtype)), "final states"

    output, gradient = (
        (OUTPUT_BOUND, OUTPUT_BOUND),
        (INPUT_GRADIENT_BOUND, 2 * INPUT_GRADIENT_BOUND),
    )
    float32 = (FLOAT32_BOUND, float("inf"))
    names = ["y", "grad.x", "grad.weight", "grad.initial"]
    bounds = [output, gradient, float32, gradient]
    measured = {
        name: error(mine, theirs, bound, rounding=bound is not float32)
        for name, mine, theirs, bound in zip(names, found, wanted, bounds, strict=False)
    }
    assert not violations(measured), (tuple(x.shape), violations(measured))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dim", [64] if INTERPRETED else [64, 4096 + 32])
@pytest.mark.parametrize("channel_last", [False, True])
def test_causal_conv1d_grid(dim: int, width: int, channel_last: bool, device: torch.device) -> None:
    torch.manual_seed(0)
    around = 4096 + dim + 64
    for length in LENGTHS[:: 6 if INTERPRETED else 1]:
        shape = (2, length, around) if channel_last else (2, around, length)
        wide = torch.randn(shape, device=device, dtype=DTYPE)
        wide = wide.transpose(1, 2) if channel_last else wide
        x = wide[:, 4096 : 4096 + dim]
        weight = torch.randn(dim, width, device=device)
        _check(x, weight, None)
        if channel_last:
            initial = torch.randn(2, width - 1, dim, device=device, dtype=DTYPE).transpose(1, 2)
            _check(x, weight, initial)


@pytest.mark.parametrize(("dim", "length"), STEPS[:1] if INTERPRETED else STEPS)
def test_causal_conv1d_steps(dim: int, length: int, device: torch.device) -> None:
    torch.manual_seed(0)
    batch = 2 if INTERPRETED else 64
    for width in WIDTHS:
        x = torch.randn(batch, length, dim, device=device, dtype=DTYPE).transpose(1, 2)
        initial = torch.randn(batch, width - 1, dim, device=device, dtype=DTYPE).transpose(1, 2)
        _check(x, torch.randn(dim, width, device=device), initial)


@pytest.mark.parametrize(("B", "T", "D", "W"), FLA[:1] if INTERPRETED else FLA)
def test_fla_grid(B: int, T: int, D: int, W: int, device: torch.device) -> None:
    torch.manual_seed(42)
    x = torch.randn(B, T, D, device=device, dtype=DTYPE).transpose(1, 2)
    weight = torch.randn(D, W, device=device)
    _check(x, weight, None)
    _check(x, weight, torch.randn(B, W - 1, D, device=device, dtype=DTYPE).transpose(1, 2))
