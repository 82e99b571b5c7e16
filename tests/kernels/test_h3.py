"""H3 and its state space models against loops over time, and against themselves under any split."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evo_kernels import (
    DiagonalModes,
    DiagonalState,
    H3State,
    diagonal_ssm,
    discretise,
    h3,
    shift_taps,
)
from evo_kernels.diagonal_ssm.reference import DiagonalScan
from evo_kernels.errors import KernelError, KernelUnavailableError
from evo_kernels.h3.reference import h3_reference

LENGTHS = (1, 2, 3, 7, 16, 17, 63, 64, 65, 129)
METHODS = ("bilinear", "zoh")
# Chunks of 64 positions and tiles of 64 chunks: this one has a second tile, a chunk and a rest.
SECOND_TILE = 64 * 64 + 64 + 7


def _randn(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def _ssm(filters: int, modes: int, seed: int = 0) -> dict[str, Tensor]:
    """Slow and fast modes, of low and high frequency, negative frequencies among them."""
    randn = _randn(seed)
    return {
        "log_rates": 1.5 * randn(filters, modes) - 1,
        "frequencies": 10 * randn(filters, modes),
        "C": randn(filters, modes, 2),
        "log_step": randn(filters) - 2.5,
    }


def _modes(parameters: dict[str, Tensor], method: Any) -> DiagonalModes:
    names = ("log_rates", "frequencies", "C", "log_step")
    return discretise(*(parameters[name] for name in names), method)


def _sampled(parameters: dict[str, Tensor], method: str) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and C of the sampled model as complex numbers, by the textbook's formulas: `[G, N]` each."""
    A = torch.complex(-parameters["log_rates"].exp(), parameters["frequencies"])
    step = parameters["log_step"].exp()[:, None]
    C = torch.view_as_complex(parameters["C"])
    if method == "bilinear":
        return (1 + step * A / 2) / (1 - step * A / 2), step / (1 - step * A / 2), C
    return torch.exp(step * A), (torch.exp(step * A) - 1) / A, C


def _loop_diagonal(u: Tensor, parameters: dict[str, Tensor], skip: Tensor, method: str) -> Tensor:
    """`x <- A x + B u, y = 2 Re(C x) + D u`, position by position."""
    A, B, C = _sampled(parameters, method)
    members = u.shape[2] // A.shape[0]
    A, B, C = (x.repeat_interleave(members, dim=0) for x in (A, B, C))
    x = torch.zeros(u.shape[0], *A.shape, dtype=torch.complex128)
    outputs = []
    for t in range(u.shape[1]):
        x = A * x + B * u[:, t, :, None]
        outputs.append(2 * (C * x).sum(-1).real + skip.repeat_interleave(members) * u[:, t])
    return torch.stack(outputs, dim=1)


def _loop_shift(k: Tensor, B: Tensor, C: Tensor, skip: Tensor) -> Tensor:
    """The shift model as a state space model: its state moves down by one, B enters, C is read."""
    x = torch.zeros(k.shape[0], *B.shape, dtype=k.dtype)
    outputs = []
    for t in range(k.shape[1]):
        x = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], dim=-1) + B * k[:, t, :, None]
        outputs.append((C * x).sum(-1) + skip * k[:, t])
    return torch.stack(outputs, dim=1)


def _loop_h3(i: dict[str, Tensor], method: str) -> Tensor:
    """Heads one by one, pairs of channels one by one."""
    q, k, v = i["qkv"].chunk(3, dim=-1)
    keys = _loop_shift(k, i["shift_B"], i["shift_C"], i["shift_D"])
    heads = i["skip"].shape[0]
    E = q.shape[2] // heads
    out = torch.zeros_like(q)
    for head, a, b in itertools.product(range(heads), range(E), range(E)):
        one = {name: i[name][head : head + 1] for name in ("log_rates", "frequencies", "C", "log_step")}  # fmt: skip
        z = keys[..., head * E + a] * v[..., head * E + b]
        y = _loop_diagonal(z[..., None], one, i["skip"][head : head + 1], method)[..., 0]
        out[..., head * E + b] += q[..., head * E + a] * y
    return out


def _inputs(length: int, heads: int, width: int = 6, modes: int = 4, taps: int = 5) -> dict[str, Tensor]:  # fmt: skip
    randn = _randn(length * 100 + heads)
    return {
        "qkv": randn(2, length, 3 * width),
        "shift_B": randn(width, taps),
        "shift_C": randn(width, taps),
        "shift_D": randn(width),
        "skip": randn(heads),
        **_ssm(heads, modes, seed=heads),
    }


def _h3(i: dict[str, Tensor], method: str = "bilinear", **kw: Any) -> tuple[Tensor, Any]:
    taps = shift_taps(i["shift_B"], i["shift_C"], i["shift_D"])
    return h3(i["qkv"], taps, _modes(i, method), i["skip"], **kw)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [*LENGTHS, SECOND_TILE])
def test_the_diagonal_model_equals_its_recurrence(length: int, method: str) -> None:
    parameters, skip = _ssm(3, 5), _randn(1)(3)
    u = _randn(2)(2, length, 6)
    found, _ = diagonal_ssm(u, _modes(parameters, method), skip)
    expected = _loop_diagonal(u, parameters, skip, method)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("heads", [6, 3, 2, 1])
@pytest.mark.parametrize("length", [1, 2, 6, 70])
def test_h3_equals_its_two_recurrences(length: int, heads: int, method: str) -> None:
    inputs = _inputs(length, heads)
    expected = _loop_h3(inputs, method)
    torch.testing.assert_close(_h3(inputs, method)[0], expected, rtol=1e-10, atol=1e-10)


def test_a_head_of_one_channel_is_two_gates_around_a_convolution() -> None:
    inputs = _inputs(50, 6)
    q, k, v = inputs["qkv"].chunk(3, dim=-1)
    keys = _loop_shift(k, inputs["shift_B"], inputs["shift_C"], inputs["shift_D"])
    y, _ = diagonal_ssm(keys * v, _modes(inputs, "bilinear"), inputs["skip"])
    torch.testing.assert_close(_h3(inputs)[0], q * y, rtol=1e-12, atol=1e-12)


def test_taps_of_the_shift_are_correlations() -> None:
    B = torch.tensor([[1.0, 10.0, 0.0]])
    C = torch.tensor([[2.0, 3.0, 5.0]])
    # Lag 0: 1 * 2 + 10 * 3, and the skip; lag 1: 1 * 3 + 10 * 5; lag 2: 1 * 5.
    expected = torch.tensor([[32.0 + 7, 53.0, 5.0]])
    assert torch.equal(shift_taps(B, C, torch.tensor([7.0])), expected)


@pytest.mark.parametrize("method", METHODS)
def test_discretised_modes_are_those_of_the_formulas(method: str) -> None:
    parameters = _ssm(4, 16)
    A, B, C = _sampled(parameters, method)
    modes = _modes(parameters, method)
    size, angle = modes.log_poles.unbind(-1)
    torch.testing.assert_close(torch.polar(size.exp(), angle), A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.view_as_complex(modes.residues), B * C)
    assert bool((size <= 0).all())


@pytest.mark.parametrize("method", METHODS)
def test_poles_of_every_rate_decay_and_have_finite_gradients(method: str) -> None:
    """Slow beyond rounding, fast beyond it, and a bilinear pole of exactly zero (step A = -2)."""
    log_rates = torch.tensor([[-40.0, -1.0, 0.0, 40.0]], dtype=torch.float64)
    frequencies = torch.zeros_like(log_rates)
    values = [log_rates, frequencies, torch.ones(1, 4, 2, dtype=torch.float64)]
    for step in (2.0, 1e-3):
        log_step = torch.tensor([step], dtype=torch.float64).log()
        leaves = [x.clone().requires_grad_() for x in (*values, log_step)]
        modes = discretise(*leaves, method)  # type: ignore[arg-type]
        y, _ = diagonal_ssm(torch.ones(1, 200, 1).double(), modes, torch.ones(1).double())
        assert bool((modes.log_poles[..., 0] <= 0).all())
        for gradient in torch.autograd.grad(y.sum(), leaves):
            assert bool(gradient.isfinite().all())


def test_zoh_of_a_slow_mode_does_not_cancel() -> None:
    """(exp(a) - 1) / a is 1 + a/2 near 0, where the difference has no digits left."""
    tiny = torch.tensor([[-38.0]], dtype=torch.float64)
    frequency = torch.tensor([[1e-16]], dtype=torch.float64)
    modes = discretise(tiny, frequency, torch.tensor([[[1.0, 0.0]]]), torch.zeros(1), "zoh")
    torch.testing.assert_close(modes.residues[0, 0], torch.tensor([1.0, 0.0]).double())


def test_decay_of_a_slow_bilinear_mode_keeps_its_digits() -> None:
    """log |(1 + a/2) / (1 - a/2)| is a for small real a; 1 + a has none of its digits left."""
    rate = torch.tensor([[1e-13]], dtype=torch.float64)
    modes = discretise(rate.log(), torch.zeros(1, 1), torch.ones(1, 1, 2), torch.zeros(1))
    torch.testing.assert_close(modes.log_poles[0, 0, 0], -rate[0, 0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["h3", "s4d"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_right(name: str, method: str) -> None:
    inputs = _inputs(4, 2, width=4, modes=2, taps=3)
    inputs["qkv"] = inputs["qkv"][:1]
    keys = [k for k in inputs if name == "h3" or not k.startswith("shift")]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        i = dict(zip(keys, values, strict=True))
        if name == "h3":
            y, state = _h3(i, method, return_state=True)
        else:
            y, state = diagonal_ssm(i["qkv"], _modes(i, method), i["skip"], return_state=True)
        return (y, *state)

    leaves = [inputs[k].clone().requires_grad_() for k in keys]
    assert torch.autograd.gradcheck(function, leaves)
    if method == "bilinear":
        assert torch.autograd.gradgradcheck(lambda *x: function(*x)[0], leaves)


@settings(max_examples=15, deadline=None)
@given(
    heads=st.sampled_from([6, 3, 1]),
    cuts=st.lists(st.integers(1, 199), max_size=7, unique=True),
    taps=st.sampled_from([2, 5, 64]),
    name=st.sampled_from(["h3", "s4d"]),
)
def test_any_split_equals_one_pass_forward_and_gradients(
    heads: int, cuts: list[int], taps: int, name: str
) -> None:
    inputs = {k: v.requires_grad_() for k, v in _inputs(200, heads, taps=taps).items()}
    keys = [k for k in inputs if name == "h3" or not k.startswith("shift")]

    def call(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        i = {**inputs, "qkv": x}
        if name == "h3":
            return _h3(i, state=state, return_state=True)
        return diagonal_ssm(x, _modes(i, "zoh"), i["skip"], state, return_state=True)

    whole, end = call(inputs["qkv"], None)
    weights = torch.randn_like(whole)
    leaves = [inputs[k] for k in keys]
    expected = torch.autograd.grad((whole * weights).sum() + sum(x.sum() for x in end), leaves)
    state, parts = None, []
    for start, stop in itertools.pairwise([0, *sorted(cuts), 200]):
        part, state = call(inputs["qkv"][:, start:stop], state)
        parts.append(part)
    split = torch.cat(parts, dim=1)
    torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-9)
    assert type(state) is type(end)
    for mine, theirs in zip(state, end, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad((split * weights).sum() + sum(x.sum() for x in state), leaves)
    for key, mine, theirs in zip(keys, found, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(
            mine, theirs, rtol=1e-9, atol=1e-10 * scale, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("heads", [6, 2])
def test_steps_of_one_position_equal_one_pass(heads: int) -> None:
    inputs = _inputs(80, heads, taps=64)
    whole, _ = _h3(inputs)
    state, parts = None, []
    for t in range(80):
        step = {**inputs, "qkv": inputs["qkv"][:, t : t + 1]}
        part, state = _h3(step, state=state, return_state=True)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-10, atol=1e-9)


def test_spans_of_wide_heads_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs(300, 2)
    whole, end = _h3(inputs, return_state=True)
    # Not by its dotted path, where `evo_kernels.h3` is the function. 85 positions at once.
    monkeypatch.setattr(sys.modules[h3_reference.__module__], "CHUNKS_PER_TILE", 4)
    seen: list[int] = []
    convolve = DiagonalScan.__call__

    def spy(self: DiagonalScan, u: Tensor, *args: Any, **kw: Any) -> Any:
        seen.append(u.shape[1])
        return convolve(self, u, *args, **kw)

    monkeypatch.setattr(DiagonalScan, "__call__", spy)
    torch.testing.assert_close(_h3(inputs)[0], whole, rtol=1e-11, atol=1e-11)
    assert seen == [85, 85, 85, 45]
    spanned, state = _h3(inputs, return_state=True)
    torch.testing.assert_close(spanned, whole, rtol=1e-11, atol=1e-11)
    for mine, theirs in zip(state, end, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [1, 63, 64, 129, 4096, SECOND_TILE])
def test_outputs_are_the_same_whether_a_state_comes_in_or_out(length: int) -> None:
    """Work for a state that nobody wants is left out; zeros coming in take the whole way."""
    parameters, skip, u = _ssm(1, 2), torch.ones(1).double(), _randn(4)(1, length, 1)
    modes = _modes(parameters, "zoh")
    found, none = diagonal_ssm(u, modes, skip)
    with_end, end = diagonal_ssm(u, modes, skip, return_state=True)
    zeros = DiagonalState(torch.zeros(1, 1, 2, 2, dtype=torch.float64))
    with_both, both = diagonal_ssm(u, modes, skip, zeros, return_state=True)
    assert none is None and end is not None and both is not None
    assert torch.equal(found, with_end)
    torch.testing.assert_close(found, with_both, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(end.modal, both.modal, rtol=1e-13, atol=1e-13)


def test_nothing_sees_what_comes_after_it() -> None:
    inputs = _inputs(150, 2)
    later = {**inputs, "qkv": inputs["qkv"].clone()}
    later["qkv"][:, 90:] += 1
    before, after = _h3(inputs)[0], _h3(later)[0]
    assert torch.equal(before[:, :90], after[:, :90])
    assert not torch.allclose(before[:, 90], after[:, 90])


@pytest.mark.parametrize("heads", [8, 2])
def test_half_precision_in_and_out_float32_between(heads: int) -> None:
    inputs = {k: v.float() for k, v in _inputs(130, heads, width=8, taps=64).items()}
    inputs["qkv"] = inputs["qkv"].bfloat16()
    y, state = _h3(inputs, return_state=True)
    assert y.dtype == torch.bfloat16
    assert {x.dtype for x in state} == {torch.float32}
    exact, _ = _h3({k: v.double() for k, v in inputs.items()})
    # One rounding to bf16 (8 bits) at the end and float32 sums before it.
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-5 * float(exact.abs().max()))


def test_float32_is_exact_to_float32_at_length() -> None:
    """Slow modes of high frequency: an angle made in float32 would be off by 1e-3 here."""
    parameters = {
        "log_rates": torch.full((4, 8), -7.0),
        "frequencies": 30 * torch.arange(1.0, 9).repeat(4, 1),
        "C": torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(0)),
        "log_step": torch.full((4,), math.log(0.1)),
    }
    u = torch.randn(1, 9000, 4, generator=torch.Generator().manual_seed(1))
    for method in METHODS:
        y, _ = diagonal_ssm(u, _modes(parameters, method), torch.ones(4))
        double = {k: v.double() for k, v in parameters.items()}
        exact, _ = diagonal_ssm(u.double(), _modes(double, method), torch.ones(4).double())
        assert float((y.double() - exact).norm() / exact.norm()) < 2e-6


def test_a_state_owns_its_memory_and_is_of_the_size_it_says() -> None:
    inputs = _inputs(400, 3, taps=64)
    _, state = _h3(inputs, return_state=True)
    assert isinstance(state, H3State)
    assert state.keys.shape == (2, 63, 6) and state.modal.shape == (2, 6, 2, 4, 2)
    _, alone = diagonal_ssm(
        inputs["qkv"][..., :6], _modes(inputs, "zoh"), inputs["skip"], return_state=True
    )
    assert isinstance(alone, DiagonalState) and alone.modal.shape == (2, 6, 4, 2)
    for x in (*state, *alone):
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


def test_wrong_shapes_and_backends_are_one_clear_line() -> None:
    inputs = _inputs(4, 3)
    modes = _modes(inputs, "zoh")
    with pytest.raises(KernelError, match="there are 4 heads; the number must divide the 6"):
        _h3({**inputs, "skip": torch.zeros(4), **_ssm(4, 2)})
    with pytest.raises(KernelError, match="there are 3 filters; the number must divide the 5"):
        diagonal_ssm(inputs["qkv"][..., :5], modes, inputs["skip"])
    none = DiagonalModes(torch.zeros(0, 2, 2), torch.zeros(0, 2, 2))
    with pytest.raises(KernelError, match="there are 0 filters"):
        diagonal_ssm(inputs["qkv"], none, torch.zeros(0))
    with pytest.raises(KernelError, match="there are 0 heads"):
        h3(inputs["qkv"], torch.zeros(6, 3), none, torch.zeros(0))
    with pytest.raises(KernelError, match="the shift has no taps"):
        h3(inputs["qkv"], torch.zeros(6, 0), modes, inputs["skip"])
    with pytest.raises(KernelError, match="three equal blocks"):
        _h3({**inputs, "qkv": inputs["qkv"][..., :-1]})
    with pytest.raises(KernelError, match="no positions"):
        _h3({**inputs, "qkv": inputs["qkv"][:, :0]})
    _, state = _h3(inputs, return_state=True)
    with pytest.raises(KernelError, match=r"state\.keys has shape \(2, 4, 6\); it must be \[2, 63, 6\]"):  # fmt: skip
        _h3(_inputs(4, 3, taps=64), state=state)
    with pytest.raises(KernelError, match=r"state\.modal has shape"):
        _h3(_inputs(4, 3, modes=2), state=state)
    with pytest.raises(KernelError, match="use bilinear or zoh"):
        _modes(inputs, "euler")
    with pytest.raises(KernelUnavailableError, match="h3 cannot run its Triton kernel: it has none"):  # fmt: skip
        _h3(inputs, backend="triton")


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "name",
    [
        "q and k swapped",
        "skip dropped",
        "shift's D dropped",
        "taps moved",
        "conjugate",
        "zoh",
        "fast",
    ],
)
def test_the_comparison_with_the_recurrences_notices(name: str) -> None:
    inputs = _inputs(70, 2)
    q, k, v = inputs["qkv"].chunk(3, dim=-1)
    wrong: dict[str, dict[str, Tensor]] = {
        "q and k swapped": {"qkv": torch.cat([k, q, v], dim=-1)},
        "skip dropped": {"skip": torch.zeros_like(inputs["skip"])},
        "shift's D dropped": {"shift_D": torch.zeros_like(inputs["shift_D"])},
        "taps moved": {"shift_C": inputs["shift_C"].roll(1, -1)},
        "conjugate": {"frequencies": -inputs["frequencies"]},
        "zoh": {},
        "fast": {"log_rates": inputs["log_rates"] + 0.1},
    }
    expected = _loop_h3(inputs, "bilinear")
    found, _ = _h3({**inputs, **wrong[name]}, "zoh" if name == "zoh" else "bilinear")
    assert _relative(found, expected) > 1e-4


@pytest.mark.parametrize("name", ["skip dropped", "conjugate", "C halved", "slower"])
def test_the_comparison_of_the_diagonal_model_notices(name: str) -> None:
    parameters, skip, u = _ssm(3, 5), _randn(1)(3), _randn(2)(2, 70, 6)
    wrong: dict[str, dict[str, Tensor]] = {
        "skip dropped": {},
        "conjugate": {"frequencies": -parameters["frequencies"]},
        "C halved": {"C": parameters["C"] / 2},
        "slower": {"log_step": parameters["log_step"] - 0.1},
    }
    modes = _modes({**parameters, **wrong[name]}, "zoh")
    found, _ = diagonal_ssm(u, modes, torch.zeros_like(skip) if name == "skip dropped" else skip)
    assert _relative(found, _loop_diagonal(u, parameters, skip, "zoh")) > 1e-4
