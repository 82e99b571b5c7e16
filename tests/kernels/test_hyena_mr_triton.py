"""Hyena-MR's Triton kernels in Triton's interpreter, against the twin in float64.

Run with TRITON_INTERPRET=1. The interpreter cuts bfloat16 off where a GPU rounds, always towards
zero, so that errors do not average out; the bounds leave it that and still see any lost term. The
bounds in the kernels' own terms are checked on a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from evo_kernels import MRState, hyena_mr
from evo_kernels.errors import KernelUnavailableError

# What cutting one bfloat16 costs at most; 2.8e-3 in the mean. An output has one cut operand. A
# gradient has two cuts: of g or z, and of what the filter made of it (of both, for the filter's own).
ONE_CUT = 2.0**-7


def _guarded(x: Tensor) -> Tensor:
    """The same values inside a buffer of NaN: whoever reads beyond the tensor finds them."""
    pad = 4096
    buffer = torch.full((x.numel() + 2 * pad,), float("nan"), dtype=x.dtype)
    inside = buffer[pad : pad + x.numel()].view(x.shape)
    return inside.copy_(x)


def _inputs(
    length: int, width: int, groups: int, dtype: torch.dtype, taps: int, batch: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length * 100 + width)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "qkv": randn(batch, length, 3 * width).to(dtype),
        "featurizer": randn(3 * width, 3),
        "h": randn(groups, taps) * 0.2,
        "skip": randn(width),
        "tail": randn(batch, 2, 3 * width).to(dtype),
        "gated": randn(batch, taps - 1, width).bfloat16().float(),
        "dy": randn(batch, length, width).to(dtype),
        "dnew_tail": randn(batch, 2, 3 * width).to(dtype),
        "dnew_gated": randn(batch, taps - 1, width),
    }


NAMES = ("qkv", "featurizer", "h", "skip", "tail", "gated")


def _outputs_and_gradients(
    inputs: dict[str, Tensor], backend: str, *, state: bool
) -> dict[str, Tensor]:
    exact = backend == "reference"
    leaves = {
        name: (inputs[name].double() if exact else _guarded(inputs[name])).requires_grad_()
        for name in NAMES[: 6 if state else 4]
    }
    y, new = hyena_mr(
        *(leaves[name] for name in NAMES[:4]),
        MRState(leaves["tail"], leaves["gated"]) if state else None,
        return_state=state,
        backend=backend,  # type: ignore[arg-type]
    )
    outputs = {"y": y}
    if new is not None:
        outputs |= {"new_tail": new.featurizer, "new_gated": new.gated}
    cotangents = [inputs["d" + name].to(x.dtype) for name, x in outputs.items()]
    gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), cotangents)
    return outputs | {"d" + name: x for name, x in zip(leaves, gradients, strict=True)}


def _check(inputs: dict[str, Tensor], *, state: bool) -> None:
    exact = _outputs_and_gradients(inputs, "reference", state=state)
    kernel = _outputs_and_gradients(inputs, "triton", state=state)
    parts = {name: [x] for name, x in exact.items()}
    # Each block apart, so that a wrong one does not drown in the other two.
    for name in ("dqkv", "dtail"):
        if name in parts:
            parts[name] = list(exact[name].chunk(3, dim=-1))
    for name, blocks in parts.items():
        for block, value in zip(blocks, kernel[name].chunk(len(blocks), dim=-1), strict=True):
            assert block.norm() > 0, name
            error = ((value.double() - block).norm() / block.norm()).item()
            bound = 2 * ONE_CUT if name.startswith("d") else ONE_CUT
            assert error < bound, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("length", [1, 7, 63, 64, 65, 129, 200])
@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
def test_any_length(length: int, state: bool) -> None:
    _check(_inputs(length, 16, 1, torch.float32, 128, 1), state=state)


@pytest.mark.parametrize(("width", "groups"), [(3, 3), (6, 2), (30, 2), (32, 1), (40, 1)])
def test_any_group_size(width: int, groups: int) -> None:
    _check(_inputs(70, width, groups, torch.float16, 128, 1), state=True)


@pytest.mark.parametrize("taps", [7, 65, 129])
def test_any_filter_length(taps: int) -> None:
    _check(_inputs(100, 16, 1, torch.float32, taps, 1), state=True)


def test_segments_and_batch_rows_meet() -> None:
    """Several segments: their warm-up and their border tiles."""
    _check(_inputs(1300, 16, 1, torch.float32, 128, 2), state=False)


@pytest.mark.parametrize("splits", [(1, 1, 68), (10, 60), (65, 3, 2)])
def test_a_split_changes_nothing(splits: tuple[int, ...]) -> None:
    inputs = _inputs(70, 16, 1, torch.float32, 128, 1)
    parameters = [inputs[name] for name in NAMES[1:4]]
    whole, end = hyena_mr(inputs["qkv"], *parameters, return_state=True, backend="triton")
    state, parts = None, []
    for chunk in inputs["qkv"].split(list(splits), dim=1):
        y, state = hyena_mr(chunk, *parameters, state, return_state=True, backend="triton")
        parts.append(y)
    assert state is not None and end is not None
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.featurizer, end.featurizer, rtol=0, atol=0)
    # Sums in another order may fall to the other side of a bfloat16.
    torch.testing.assert_close(state.gated, end.gated, rtol=2**-7, atol=0)


def test_a_state_alone_has_gradients() -> None:
    inputs = _inputs(70, 16, 1, torch.float32, 128, 1)
    gradients = []
    for backend in ("reference", "triton"):
        qkv = inputs["qkv"].clone().requires_grad_()
        _, state = hyena_mr(
            qkv,
            *(inputs[name] for name in NAMES[1:4]),
            return_state=True,
            backend=backend,  # type: ignore[arg-type]
        )
        assert state is not None
        gradients += torch.autograd.grad((state.gated * inputs["dnew_gated"]).sum(), qkv)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


def test_frozen_parameters_change_no_gradient() -> None:
    inputs = _inputs(20, 16, 1, torch.float32, 128, 1)
    found = []
    for frozen in (True, False):
        qkv = inputs["qkv"].clone().requires_grad_()
        parameters = [inputs[name].clone().requires_grad_(not frozen) for name in NAMES[1:4]]
        y, _ = hyena_mr(qkv, *parameters, backend="triton")
        y.sum().backward()
        assert all((x.grad is None) == frozen for x in parameters)
        found.append(qkv.grad)
    assert found[0] is not None
    assert torch.equal(*found)


def test_sizes_without_a_kernel_say_so() -> None:
    inputs = _inputs(20, 16, 1, torch.float32, 130, 1)
    arguments = [inputs[name] for name in NAMES[:4]]
    with pytest.raises(KernelUnavailableError, match="2 to 129 taps"):
        hyena_mr(*arguments, backend="triton")
    assert hyena_mr(*arguments)[0].isfinite().all()


def test_opcheck() -> None:
    inputs = _inputs(20, 16, 1, torch.float32, 128, 1)
    arguments = [inputs[name].requires_grad_() for name in NAMES]
    torch.library.opcheck(torch.ops.evo_kernels.hyena_mr.default, (*arguments, True))
