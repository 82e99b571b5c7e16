"""Kernels of Hyena-SE and of the featurizer in Triton's interpreter, against their twins."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from evo_kernels import SEState, hyena_se, short_conv

# A program has 32 rows here (conftest.py), a tile 16.
LENGTHS = [1, 2, 7, 33, 65]


def _close(name: str, got: Tensor | None, want: Tensor | None, bound: float) -> None:
    assert got is not None and want is not None
    assert got.shape == want.shape, name
    scale = want.double().norm()
    assert scale > 0, f"{name} is zero: the test would prove nothing"
    error = ((got.double() - want.double()).norm() / scale).item()
    assert error <= bound, f"{name}: relative error {error:.2e} over {bound:.0e}"


def _leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def _gradients(outputs: list[Tensor], inputs: list[Tensor], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    loss = sum((y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum() for y in outputs)
    return torch.autograd.grad(loss, inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("with_state", [False, True])
def test_hyena_se(length: int, with_state: bool) -> None:
    torch.manual_seed(length)
    B, D, K = 2, 48, 7
    groups = {1: 1, 2: 48, 7: 3, 33: 16}.get(length, 16)
    shapes = [(B, length, 3 * D), (3 * D, 3), (groups, K)]
    inputs = _leaves(*shapes, *([(B, 2, 3 * D), (B, K - 1, D)] if with_state else []))
    results = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        cast = [x.detach().to(dtype).requires_grad_() for x in inputs]
        state = SEState(*cast[3:]) if with_state else None
        y, new = hyena_se(*cast[:3], state, return_state=True, backend=backend)  # type: ignore[arg-type]
        assert new is not None
        outputs = [y, new.featurizer, new.gated]
        results[backend] = [*outputs, *_gradients(outputs, cast, length)]
    names = ["y", "featurizer state", "gated state", "dqkv", "dfeaturizer", "dh", "dtail", "dgated"]
    for name, got, want in zip(names, results["triton"], results["reference"], strict=False):
        _close(name, got, want, 2e-6)


def test_hyena_se_gradient_of_the_output_alone() -> None:
    torch.manual_seed(0)
    x, f, h = _leaves((1, 200, 48), (48, 3), (4, 7))
    for inputs in ([x, f, h], [x], [h]):
        got, want = (
            torch.autograd.grad(hyena_se(x, f, h, backend=backend)[0].square().sum(), inputs)  # type: ignore[arg-type]
            for backend in ("triton", "reference")
        )
        for a, b in zip(got, want, strict=True):
            _close("gradient", a, b, 2e-6)


def test_hyena_se_float16_and_any_split() -> None:
    torch.manual_seed(1)
    x, f, h = _leaves((1, 150, 96), (96, 3), (2, 7))
    whole, _ = hyena_se(x.half(), f, h, backend="triton")
    want, _ = hyena_se(x.half().double(), f.double(), h.double(), backend="reference")
    _close("float16 output", whole, want, 6e-4)
    state, pieces = None, []
    for piece in x.half().split([1, 2, 40, 16, 91], dim=1):
        y, state = hyena_se(piece, f, h, state, return_state=True, backend="triton")
        pieces.append(y)
    assert torch.equal(torch.cat(pieces, 1), whole)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("taps", [2, 3, 8])
def test_short_conv(length: int, taps: int) -> None:
    torch.manual_seed(length)
    B, C = 2, 80
    inputs = _leaves((B, length, C), (C, taps), (B, taps - 1, C))
    results = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        cast = [x.detach().to(dtype).requires_grad_() for x in inputs]
        y, end = short_conv(*cast, return_state=True, backend=backend)  # type: ignore[arg-type]
        assert end is not None
        results[backend] = [y, end, *_gradients([y, end], cast, length)]
    for name, got, want in zip(
        ["y", "end", "dx", "dtaps", "dtail"], results["triton"], results["reference"], strict=True
    ):
        _close(name, got, want, 2e-6)
    got, want = (
        short_conv(inputs[0], inputs[1], backend=backend)[0]  # type: ignore[arg-type]
        for backend in ("triton", "reference")
    )
    _close("y without state", got, want, 2e-6)


def test_a_wrong_tap_or_a_missing_row_would_be_seen() -> None:
    """The bound of this file, on inputs that differ from the truth as little as a bug would."""
    torch.manual_seed(2)
    x, f, h = _leaves((1, 129, 48), (48, 3), (1, 7))
    y, _ = hyena_se(x, f, h, backend="triton")
    moved = torch.cat([h[:, 1:2], h[:, :1], h[:, 2:]], dim=1)
    short = x.clone()
    short[:, 128] = 0
    for wrong in (
        hyena_se(x, f, moved)[0],
        hyena_se(short, f, h)[0],
        hyena_se(x, f, h * 1.00001)[0],
    ):
        with pytest.raises(AssertionError, match="relative error"):
            _close("y", y, wrong, 2e-6)
