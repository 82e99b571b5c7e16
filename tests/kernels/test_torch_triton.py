"""The operators of torch behind the kernels, in Triton's interpreter: opcheck and torch.compile."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from evo_kernels import testing
from evo_kernels.testing import OPERATORS, Case


class _Recorder(TorchDispatchMode):
    """Remembers every call of our custom operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "evo_kernels":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


# The other operators' opcheck stands with their own tests.
@pytest.mark.parametrize("name", ["hyena_se", "short_conv"])
@pytest.mark.parametrize("prefix", [0, 3])
def test_opcheck(name: str, prefix: int) -> None:
    case = Case(name, 3, 1, 16, 16, prefix)
    inputs = testing.make_inputs(case, "cpu")
    tensors = inputs | testing.state_in(case, inputs, "triton")
    with _Recorder() as recorder:
        testing.run(case, tensors, "triton")
    assert recorder.calls, "no custom operator was called"
    for func, args, kwargs in recorder.calls:
        forward = "backward" not in func.__name__
        copies = tuple(
            value.detach().clone().requires_grad_(forward) if isinstance(value, Tensor) else value
            for value in args
        )
        torch.library.opcheck(func, copies, kwargs)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_compiles_without_a_graph_break(name: str) -> None:
    """Forward and backward give the same bits as without compilation."""
    case = Case(name, 3, 1, 16, 16)
    inputs = testing.make_inputs(case, "cpu")
    leaves = [inputs[key].requires_grad_() for key in ("x", *OPERATORS[name].parameters)]

    def loss(*tensors: Tensor) -> Tensor:
        y: Tensor = OPERATORS[name].function(*tensors, backend="triton")[0]
        return y.float().square().sum()

    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*leaves), leaves)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_gradients_of_gradients(name: str) -> None:
    """They go through the twin: nothing is silently missing from a second derivative."""
    case = Case(name, 5, 1, 16, 16)
    inputs = testing.make_inputs(case, "cpu")
    leaves = [inputs[key].float().requires_grad_() for key in ("x", *OPERATORS[name].parameters)]
    found = {}
    for backend in ("triton", "reference"):
        y = OPERATORS[name].function(*leaves, backend=backend)[0]
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        penalty = sum((gradient.square().sum() for gradient in first), torch.zeros(()))
        found[backend] = torch.autograd.grad(penalty, leaves)
    for mine, theirs in zip(found["triton"], found["reference"], strict=True):
        assert theirs.norm() > 0
        assert (mine - theirs).norm() <= 2e-2 * theirs.norm()
