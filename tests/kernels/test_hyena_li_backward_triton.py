"""Backward kernel of Hyena-LI in the Triton interpreter against autograd through the float64 twin."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from evo_kernels.hyena_li.backward import launch_backward
from evo_kernels.hyena_li.configs import BACKWARD
from evo_kernels.hyena_li.reference import LIState, hyena_li_reference, modal_conv
from evo_kernels.launch import KernelConfig, override
from evo_kernels.short_conv.reference import short_conv_reference

EXACT = KernelConfig(constants={"UPCAST": 2, "SPLIT_Z": 0})
"""Dot operands stay float32: what is left is the algorithm."""
TILE = 4096


def channel_first(x: Tensor, padding: int = 8, fill: float = float("nan")) -> Tensor:
    """The same `[B, L, W]` with contiguous positions; the padding of a row holds `fill`."""
    B, L, W = x.shape
    rows = x.new_full((B, W, (L + padding - 1) // padding * padding), fill)
    rows[:, :, :L] = x.transpose(1, 2)
    return rows[:, :, :L].transpose(1, 2)


def make_case(L: int, *, B: int = 1, D: int = 2, N: int = 16, state: bool = True, end: bool = True,
              dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:  # fmt: skip
    """Random inputs with time constants from 1 to 3,000 positions."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    tau = torch.exp(torch.rand(D, N, generator=g) * 8.0)
    return {
        "qkv": randn(B, L, 3 * D).to(dtype),
        "featurizer": randn(3 * D, 3) * 0.5,
        "log_poles": -1.0 / tau,
        "residues": randn(D, N) * 0.1,
        "skip": randn(D),
        "tail": randn(B, 2, 3 * D).to(dtype) if state else None,
        "modal": randn(B, D, N) if state else None,
        "dy": randn(B, L, D).to(dtype),
        "d_end": randn(B, D, N) if end else None,
    }


def tile_states(case: dict[str, Any], width: int = 16) -> Tensor:
    """States entering the tiles, `[B, D, tiles, width]`, from the twin in float64."""
    B, L, _ = case["qkv"].shape
    D, N = case["log_poles"].shape
    tail = None if case["tail"] is None else case["tail"].double()
    features, _ = short_conv_reference(case["qkv"].double(), case["featurizer"].double(), tail)
    _, k, v = features.chunk(3, dim=-1)
    modal = (
        torch.zeros(B, D, N, dtype=torch.float64)
        if case["modal"] is None
        else case["modal"].double()
    )
    states = []
    for start in range(0, L, TILE):
        states.append(torch.nn.functional.pad(modal, (0, width - N)))
        z = (k * v)[:, start : start + TILE]
        _, modal = modal_conv(z, case["log_poles"].double(), case["residues"].double(), modal)
    return torch.stack(states, 2).float().contiguous()


def expected(case: dict[str, Any]) -> dict[str, Tensor | None]:
    """Every gradient by autograd through the float64 twin."""
    names = ["qkv", "featurizer", "log_poles", "residues", "skip", "tail", "modal"]
    leaf = {n: None if case[n] is None else case[n].double().requires_grad_() for n in names}
    state = None if leaf["tail"] is None else LIState(leaf["tail"], leaf["modal"])
    y, new = hyena_li_reference(
        leaf["qkv"],
        leaf["featurizer"],
        leaf["log_poles"],
        leaf["residues"],
        leaf["skip"],
        state,
        None,
    )
    loss = (y * case["dy"].double()).sum()
    if case["d_end"] is not None:
        loss = loss + (new.modal * case["d_end"].double()).sum()
    present = [n for n in names if leaf[n] is not None]
    grads = torch.autograd.grad(loss, [leaf[n] for n in present])
    return dict.fromkeys(names) | dict(zip(present, grads, strict=True))


def run(
    case: dict[str, Any], *, needs_input: bool = True, needs_weights: bool = True
) -> dict[str, Tensor]:
    """The kernel's gradients by name."""
    grads = launch_backward(
        channel_first(case["dy"]), case["d_end"], channel_first(case["qkv"]), case["featurizer"],
        case["log_poles"], case["residues"], case["skip"], case["tail"], tile_states(case),
        needs_input=needs_input, needs_weights=needs_weights,
    )  # fmt: skip
    names = ["qkv", "featurizer", "log_poles", "residues", "skip", "tail", "modal"]
    return dict(zip(names, grads, strict=True))


def check(
    got: dict[str, Tensor], want: dict[str, Tensor | None], tolerance: float, names: list[str]
) -> None:
    """Relative L2 of every named gradient."""
    for name in names:
        reference = want[name]
        if reference is None:
            continue
        assert got[name].shape == reference.shape, name
        scale = reference.norm()
        assert scale > 0 or reference.numel() == 0, name
        error = (got[name].double() - reference).norm() / scale
        assert error < tolerance, f"{name}: relative error {error:.2e}"


INPUTS = ["qkv", "tail", "modal"]
WEIGHTS = ["featurizer", "log_poles", "residues", "skip"]


@pytest.mark.parametrize("L", [1, 2, 7, 63, 64, 65, 129, 1000, 4096, 4200])
def test_every_gradient_is_exact(L: int) -> None:
    # float32 operands: 1e-4 is float32 over sums of up to 4,200 terms.
    case = make_case(L, seed=L)
    with override(BACKWARD, EXACT):
        got = run(case)
    check(got, expected(case), 1e-4, INPUTS + WEIGHTS)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("L", [64, 200])
def test_without_states_and_with_more_rows(L: int, end: bool) -> None:
    case = make_case(L, B=2, D=3, N=5, state=False, end=end, seed=L)
    with override(BACKWARD, EXACT):
        got = run(case)
    check(got, expected(case), 1e-4, ["qkv", *WEIGHTS])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("L", [7, 129, 1000])
def test_bfloat16_operands(L: int, dtype: torch.dtype) -> None:
    # The interpreter truncates to bfloat16 (one part in 256 at most, always towards zero).
    case = make_case(L, dtype=dtype, seed=L)
    check(run(case), expected(case), 1.2e-2, INPUTS + WEIGHTS)


def test_weights_or_inputs_alone() -> None:
    case = make_case(129)
    both = run(case)
    inputs = run(case, needs_weights=False)
    weights = run(case, needs_input=False)
    for name in INPUTS:
        if name != "qkv":
            assert torch.equal(both[name], weights[name])
        assert torch.equal(both[name], inputs[name])
    for name in WEIGHTS:
        assert torch.equal(both[name], weights[name])
        assert inputs[name].numel() == 0
    assert weights["qkv"].numel() == 0


def test_any_layout_and_a_padded_gradient() -> None:
    case = make_case(65, B=2)
    args = (
        case["featurizer"],
        case["log_poles"],
        case["residues"],
        case["skip"],
        case["tail"],
        tile_states(case),
    )
    plain = launch_backward(
        case["dy"], case["d_end"], case["qkv"], *args, needs_input=True, needs_weights=True
    )
    rows = run(case)
    for got, want in zip(plain, rows.values(), strict=True):
        assert torch.equal(got, want)
    assert plain[0].stride() == (6 * 72, 1, 72)
