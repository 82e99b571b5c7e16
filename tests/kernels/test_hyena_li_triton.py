"""Forward kernels of Hyena-LI in the Triton interpreter against the float64 twin.

The interpreter truncates to bfloat16, so a pair (value and remainder) keeps 2^-15: float32 inputs,
whose z enters the dots as a pair too, are good to a few 1e-5. A wrong tap, shift or decay is not.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from evo_kernels.hyena_li import LIState, hyena_li, hyena_li_adjoint_state, hyena_li_end_state
from evo_kernels.hyena_li.forward import channel_first, launch_forward
from evo_kernels.hyena_li.op import hyena_li_step_forward
from evo_kernels.hyena_li.reference import hyena_li_reference, modal_conv

BOUND = {torch.float32: 1e-4, torch.float16: 1e-3}
"""Relative L2. Float16 outputs are rounded to 2^-11."""

Parameters = tuple[Tensor, Tensor, Tensor, Tensor]


def make_parameters(D: int, N: int, seed: int = 0) -> Parameters:
    """Featurizer, poles with time constants of 1 to 10,000 positions, residues, skip."""
    g = torch.Generator().manual_seed(seed)
    log_poles = -torch.exp(torch.rand(D, N, generator=g) * -9.0)
    return (
        torch.randn(3 * D, 3, generator=g) * 0.5,
        log_poles,
        torch.randn(D, N, generator=g) * 0.3,
        torch.randn(D, generator=g),
    )


def make_inputs(
    B: int, L: int, D: int, N: int, dtype: torch.dtype, state: bool, seed: int = 0
) -> tuple[Tensor, LIState | None]:
    """Channel-first inputs whose rows end in NaN, and a state."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.full((B, 3 * D, (L + 7) // 8 * 8), float("nan"), dtype=dtype)
    rows[:, :, :L] = torch.randn(B, 3 * D, L, generator=g).to(dtype)
    tail = torch.randn(B, 2, 3 * D, generator=g).to(dtype)
    modal = torch.randn(B, D, N, generator=g)
    return rows[:, :, :L].transpose(1, 2), LIState(tail, modal) if state else None


def exact(x: Tensor, parameters: Parameters, state: LIState | None) -> tuple[Tensor, LIState]:
    doubled = None if state is None else LIState(*(s.double() for s in state))
    return hyena_li_reference(x.double(), *(p.double() for p in parameters), doubled, None)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(
    ("L", "N", "dtype"),
    [
        (1, 16, torch.float32),
        (7, 5, torch.float32),
        (63, 16, torch.float16),
        (64, 16, torch.float32),
        (65, 5, torch.float32),
        (129, 16, torch.float32),
        (1000, 16, torch.float16),
        (1000, 5, torch.float32),
    ],
)
def test_output_and_states(L: int, N: int, dtype: torch.dtype, state: bool) -> None:
    B, D = 2, 3
    parameters = make_parameters(D, N)
    x, before = make_inputs(B, L, D, N, dtype, state)
    wanted, after = exact(x, parameters, before)
    tail, modal = before if before is not None else (None, None)
    y, _, end = launch_forward(x, *parameters, tail, modal, save_states=False)
    assert y.dtype == dtype
    assert y.stride(1) == 1 and y.stride(2) % 8 == 0
    assert end is not None
    assert distance(y, wanted) < BOUND[dtype]
    assert distance(end, after.modal) < 1e-4
    alone = hyena_li_end_state(x, parameters[0], parameters[1], before, backend="triton")
    assert distance(alone, after.modal) < 1e-4


def test_states_of_tiles() -> None:
    """The states that the backward pass starts from, at 0, 4096 and 8192 positions; the padding decays."""
    D, N, L = 1, 5, 8200
    parameters = make_parameters(D, N)
    x, before = make_inputs(1, L, D, N, torch.float32, True)
    assert before is not None
    wanted, after = exact(x, parameters, before)
    y, states, end = launch_forward(x, *parameters, *before, save_states=True)
    assert states is not None and end is not None
    assert states.shape == (1, D, 3, 16)
    assert torch.equal(states[:, :, 0, :N], before.modal)
    for tile in (1, 2):
        _, there = exact(x[:, : tile * 4096], parameters, before)
        assert distance(states[:, :, tile, :N], there.modal) < 1e-4
    assert states.isfinite().all()
    assert distance(y, wanted) < BOUND[torch.float32]
    assert distance(end, after.modal) < 1e-4


@pytest.mark.parametrize("cuts", [(1, 17, 18, 90), (64, 65), (3, 4, 5, 6)])
def test_any_split(cuts: tuple[int, ...]) -> None:
    """Chunk after chunk, by whichever kernel its length takes, is the whole."""
    B, D, N, L = 1, 3, 16, 131
    parameters = make_parameters(D, N)
    x, state = make_inputs(B, L, D, N, torch.float32, True)
    wanted, after = exact(x, parameters, state)
    parts = []
    for start, stop in zip((0, *cuts), (*cuts, L), strict=True):
        y, state = hyena_li(
            x[:, start:stop], *parameters, state, return_state=True, backend="triton"
        )
        parts.append(y)
    assert state is not None
    assert distance(torch.cat(parts, 1), wanted) < BOUND[torch.float32]
    assert distance(state.modal, after.modal) < 1e-4
    assert torch.equal(state.featurizer.double(), after.featurizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("L", [1, 2, 7, 16])
def test_small_chunks(L: int, state: bool, dtype: torch.dtype) -> None:
    """The recurrence: exact in float32, for either memory layout, more channels than one program has."""
    B, D, N = 2, 35, 5
    parameters = make_parameters(D, N)
    x, before = make_inputs(B, L, D, N, dtype, state)
    wanted, after = exact(x, parameters, before)
    for layout in (x, x.contiguous()):
        y, tail, modal = hyena_li_step_forward(layout, *parameters, *(before or (None, None)))
        assert distance(y, wanted) < (1e-6 if dtype == torch.float32 else 1e-3)
        assert torch.equal(tail.double(), after.featurizer)
        assert distance(modal, after.modal) < 1e-6


def test_gradients_take_the_whole_kernel() -> None:
    """Few positions with gradients: through the tile kernels, since the recurrence has none."""
    x, before = make_inputs(1, 5, 2, 16, torch.float32, True)
    parameters = make_parameters(2, 16)
    wanted, _ = exact(x, parameters, before)
    x = x.detach().requires_grad_()
    y, _ = hyena_li(x, *parameters, before, backend="triton")
    assert distance(y.detach(), wanted) < BOUND[torch.float32]
    found, expected = (
        torch.autograd.grad(hyena_li(x, *parameters, before, backend=backend)[0].sum(), x)[0]  # type: ignore[arg-type]
        for backend in ("triton", "reference")
    )
    assert distance(found, expected) < 2e-2  # the backward has bfloat16 operands


@pytest.mark.parametrize("L", [20, 100])
def test_causal_and_batch_mates(L: int) -> None:
    """Position t leaves earlier outputs as they were, and no other sequence changes, to the bit."""
    B, D, N, t = 2, 2, 5, 13
    parameters = make_parameters(D, N)
    x, _ = make_inputs(B, L, D, N, torch.float32, False)
    before, _, _ = launch_forward(x, *parameters, None, None, save_states=False)
    changed = channel_first(x.clone())
    changed[0, t] += 1.0
    after, _, _ = launch_forward(changed, *parameters, None, None, save_states=False)
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0, :t], after[0, :t])
    assert not torch.equal(before[0, t:], after[0, t:])


@pytest.mark.parametrize("L", [17, 24])
def test_any_memory_layout(L: int) -> None:
    B, D, N = 2, 2, 5
    parameters = make_parameters(D, N)
    x, state = make_inputs(B, L, D, N, torch.float32, True)
    wanted, _ = hyena_li(x, *parameters, state, backend="triton")
    shifted = torch.cat([x, x], 1).transpose(1, 2).contiguous().transpose(1, 2)[:, L:]
    for layout in (x.contiguous(), torch.cat([x, x], 2)[..., : 3 * D], shifted):
        found, _ = hyena_li(layout, *parameters, state, backend="triton")
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("state", [False, True])
def test_operators_are_well_formed(state: bool) -> None:
    """Schema, fake, autograd registration and aliasing, as torch checks them."""
    D, N, L = 2, 5, 20
    featurizer, log_poles, residues, skip = (
        p.requires_grad_() if state else p for p in make_parameters(D, N)
    )
    x, before = make_inputs(1, L, D, N, torch.float32, state)
    tail, modal = before or (None, None)
    x = torch.nan_to_num(x)
    operators = torch.ops.evo_kernels
    torch.library.opcheck(
        operators.hyena_li.default,
        (x, featurizer, log_poles, residues, skip, tail, modal, state, state),
    )
    poles = log_poles.detach()
    torch.library.opcheck(
        operators.hyena_li_end_state.default, (x, featurizer.detach(), poles, tail, modal)
    )
    torch.library.opcheck(
        operators.hyena_li_step_forward.default,
        (x[:, :3], featurizer.detach(), poles, residues.detach(), skip.detach(), tail, modal),
    )


@pytest.mark.parametrize(("L", "state"), [(5, False), (70, True), (4200, True)])
def test_adjoint_of_the_state_before(L: int, state: bool) -> None:
    """The backward kernel with nothing else wanted; its products take one bfloat16 of the gradient."""
    D, N = 2, 5
    featurizer, log_poles, residues, _ = make_parameters(D, N)
    x, before = make_inputs(1, L, D, N, torch.float32, state)
    tail = None if before is None else before.featurizer
    dy = torch.randn(1, L, D, generator=torch.Generator().manual_seed(3))
    inputs = (dy, torch.nan_to_num(x), featurizer, log_poles, residues, tail)
    found = hyena_li_adjoint_state(*inputs, backend="triton")
    wanted = hyena_li_adjoint_state(*(None if i is None else i.double() for i in inputs))  # type: ignore[arg-type]
    assert distance(found, wanted) < 2e-2
    torch.library.opcheck(torch.ops.evo_kernels.hyena_li_adjoint_state.default, inputs)


def test_slow_poles_and_padding() -> None:
    """20 poles, padded to 32, among them one that hardly decays and one that is gone in a step."""
    D, N, L = 1, 20, 300
    featurizer, log_poles, residues, skip = make_parameters(D, N)
    log_poles[:, 0], log_poles[:, 1] = -1e-6, -200.0
    parameters = (featurizer, log_poles, residues, skip)
    x, state = make_inputs(1, L, D, N, torch.float32, True)
    wanted, after = exact(x, parameters, state)
    tail, modal = state if state is not None else (None, None)
    y, _, end = launch_forward(x, *parameters, tail, modal, save_states=False)
    assert end is not None
    assert distance(y, wanted) < BOUND[torch.float32]
    assert distance(end, after.modal) < 1e-4


def test_end_state_twin() -> None:
    x, state = make_inputs(1, 70, 2, 5, torch.float32, True)
    featurizer, log_poles, residues, skip = make_parameters(2, 5)
    _, after = hyena_li(
        x, featurizer, log_poles, residues, skip, state, return_state=True, backend="reference"
    )
    assert after is not None
    assert torch.equal(
        hyena_li_end_state(x, featurizer, log_poles, state, backend="reference"), after.modal
    )
    assert modal_conv(torch.zeros(1, 3, 2), log_poles, residues, None)[1].abs().max() == 0
