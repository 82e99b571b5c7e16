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

from evo_kernels import LIState, SEState, hyena_li, hyena_se, short_conv, testing
from evo_kernels.gated_product import gated_product
from evo_kernels.rms_norm import add_rms_norm
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


@pytest.mark.parametrize("name", sorted(OPERATORS))
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


def _relative(found: Tensor, exact: Tensor) -> float:
    assert exact.norm() > 0
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("create_graph", [False, True])
def test_inputs_made_from_one_another(create_graph: bool) -> None:
    """A path through two inputs of one operator counts once in each."""
    torch.manual_seed(0)
    x, p, r = torch.randn(1, 20, 16), torch.rand(16, 4), torch.randn(16, 4)
    featurizer, skip = torch.randn(48, 3), torch.randn(16)
    leaves = [tensor.requires_grad_() for tensor in (x, p, r)]

    def loss(backend: Any) -> Tensor:
        taps = x.mean(1).view(16, 1) * torch.ones(16, 3)
        y = short_conv(x, taps, backend=backend)[0]
        log_poles = -p.exp()
        residues = r * (1 - log_poles.exp())
        qkv = torch.cat([y, y, y], dim=2)
        return hyena_li(qkv, featurizer, log_poles, residues, skip, backend=backend)[0].sum()

    found, exact = (
        torch.autograd.grad(loss(backend), leaves, create_graph=create_graph)
        for backend in ("triton", "reference")
    )
    for mine, theirs in zip(found, exact, strict=True):
        assert _relative(mine, theirs) < 2e-2


def test_only_the_state_or_only_a_filter_wants_a_gradient() -> None:
    torch.manual_seed(1)
    qkv, featurizer = torch.randn(1, 40, 48), torch.randn(48, 3)
    log_poles, residues, skip = -torch.rand(16, 4), torch.randn(16, 4), torch.randn(16)
    tail, modal = torch.randn(1, 2, 48, requires_grad=True), torch.randn(1, 16, 4)
    found, exact = (
        torch.autograd.grad(
            hyena_li(
                qkv, featurizer, log_poles, residues, skip, LIState(tail, modal), backend=backend  # type: ignore[arg-type]
            )[0].sum(),
            tail,
        )[0]
        for backend in ("triton", "reference")
    )  # fmt: skip
    assert _relative(found, exact) < 2e-2
    h = torch.randn(4, 7, requires_grad=True)
    state = SEState(torch.randn(1, 2, 48), torch.randn(1, 6, 16))
    y, end = hyena_se(qkv, featurizer, h, state, return_state=True, backend="triton")
    assert end is not None
    loss = y.square().sum() + end.featurizer.sum()
    (first,) = torch.autograd.grad(loss, h, create_graph=True)
    assert torch.autograd.grad(first.sum(), h)[0].norm() > 0


def test_a_pole_above_one_spoils_nothing_in_a_short_chunk() -> None:
    torch.manual_seed(2)
    qkv = torch.randn(1, 20, 48, requires_grad=True)
    arguments = (torch.randn(48, 3), torch.full((16, 2), 0.03), torch.randn(16, 2), torch.randn(16))
    found, exact = (
        torch.autograd.grad(hyena_li(qkv, *arguments, backend=backend)[0].sum(), qkv)[0]  # type: ignore[arg-type]
        for backend in ("triton", "reference")
    )
    assert _relative(found, exact) < 2e-2


def test_second_derivatives_of_norm_and_gate() -> None:
    torch.manual_seed(3)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((4, 16), (4, 16), (16,))]
    results = []
    for backend in ("triton", "reference"):
        total, normalised = add_rms_norm(*leaves, 1e-6, backend=backend)  # type: ignore[arg-type]
        y = gated_product(total, normalised, gelu=True, backend=backend)  # type: ignore[arg-type]
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        penalty = sum((gradient.square().sum() for gradient in first), torch.zeros(()))
        results.append(torch.autograd.grad(penalty, leaves))
    for mine, theirs in zip(*results, strict=True):
        assert _relative(mine, theirs) < 1e-4
