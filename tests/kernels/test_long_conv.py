"""Long convolutions against loops over time, against each other, and under any split."""

from __future__ import annotations

import cmath
import itertools
import math
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv1d, pad

from evo_kernels.butterfly import dft_matrix, initial_factors, learned_block_sizes
from evo_kernels.errors import KernelError, KernelUnavailableError
from evo_kernels.long_conv import (
    LongConvState,
    learned_long_conv,
    learned_transform_size,
    long_conv,
    reference,
    smooth,
    smooth_spectrum,
    squash,
)

B, D = 2, 6
WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "toeplitz": {"algorithm": "toeplitz"},
    "fft": {"algorithm": "fft"},
    "butterfly-1": {"algorithm": "butterfly", "order": 1},
    "butterfly-2": {"algorithm": "butterfly", "order": 2},
    "butterfly-3": {"algorithm": "butterfly", "order": 3},
}
NAMES = ("qkv", "featurizer", "h", "skip", "h_ahead")


def _inputs(length: int, taps: int, groups: int = D, batch: int = B) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length * 1000 + taps)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "qkv": randn(batch, length, 3 * D),
        "featurizer": randn(3 * D, 3),
        "h": randn(groups, taps),
        "skip": randn(D),
        "h_ahead": randn(groups, taps),
    }


def _operator(inputs: dict[str, Tensor], *, ahead: bool = False, **kw: Any) -> Any:
    qkv, featurizer, h, skip, h_ahead = (inputs[name] for name in NAMES)
    return long_conv(qkv, featurizer, h, skip, h_ahead=h_ahead if ahead else None, **kw)


def _gates(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """q and k * v after the featurizers, one tap at a time."""
    x, taps = inputs["qkv"], inputs["featurizer"]
    y = torch.zeros_like(x)
    for t, lag in itertools.product(range(x.shape[1]), range(3)):
        if t >= lag:
            y[:, t] += taps[:, lag] * x[:, t - lag]
    q, k, v = y.chunk(3, dim=-1)
    return q, k * v


def _loop(inputs: dict[str, Tensor], ahead: bool) -> Tensor:
    q, z = _gates(inputs)
    h, h_ahead = inputs["h"], inputs["h_ahead"]
    group = D // h.shape[0]
    rows = z.tolist()
    y = torch.zeros_like(z)
    for b, c, t in itertools.product(range(z.shape[0]), range(D), range(z.shape[1])):
        total = 0.0
        for s in range(z.shape[1]):
            if 0 <= t - s < h.shape[1]:
                total += float(h[c // group, t - s]) * rows[b][s][c]
            elif ahead and 0 <= s - t - 1 < h.shape[1]:
                total += float(h_ahead[c // group, s - t - 1]) * rows[b][s][c]
        y[b, t, c] = total
    return q * (y + inputs["skip"] * z)


@pytest.mark.parametrize("ahead", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(
    ("length", "taps", "groups"), [(1, 1, 6), (2, 9, 3), (9, 4, 6), (13, 13, 1), (17, 70, 2)]
)
def test_every_algorithm_equals_a_loop(length: int, taps: int, groups: int, ahead: bool) -> None:
    inputs = _inputs(length, taps, groups)
    expected = _loop(inputs, ahead)
    for name, way in WAYS.items():
        found, state = _operator(inputs, ahead=ahead, **way)
        assert state is None
        torch.testing.assert_close(
            found, expected, rtol=1e-11, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("ahead", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("length", [5, 63, 64, 65, 129, 300, 1000])
@pytest.mark.parametrize("taps", [1, 2, 64, 65, 128, 129, 500])
def test_every_algorithm_equals_a_direct_convolution_at_its_borders(
    length: int, taps: int, ahead: bool
) -> None:
    inputs = _inputs(length, taps, 3)
    q, z = _gates(inputs)
    z = z.transpose(1, 2)
    filters = [inputs[name].repeat_interleave(2, dim=0)[:, None] for name in ("h", "h_ahead")]
    y = conv1d(pad(z, (taps - 1, 0)), filters[0].flip(2), groups=D)
    if ahead:
        y = y + conv1d(pad(z, (0, taps))[..., 1:], filters[1], groups=D)
    expected = q * (y.transpose(1, 2) + inputs["skip"] * z.transpose(1, 2))
    for way in WAYS.values():
        found, _ = _operator(inputs, ahead=ahead, **way)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["fft", "butterfly-2"])
def test_long_chunks_go_through_overlapping_segments(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = _inputs(300, 20, 2)
    whole, _ = _operator(inputs, ahead=True, **WAYS[name])
    monkeypatch.setattr(reference, "_SEGMENT", 64)
    seen: list[int] = []
    segments = reference._by_segments

    def spy(padded: Tensor, h: Tensor, positions: int, size: int, convolve: Any) -> Tensor:
        seen.append(size)
        return segments(padded, h, positions, size, convolve)

    monkeypatch.setattr(reference, "_by_segments", spy)
    found, _ = _operator(inputs, ahead=True, **WAYS[name])
    # 40 taps, four times that as a power of two.
    assert seen == [256]
    torch.testing.assert_close(found, whole, rtol=1e-11, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(
    way=st.sampled_from(sorted(WAYS)),
    cuts=st.lists(st.integers(1, 199), max_size=8, unique=True),
    taps=st.sampled_from([1, 2, 50, 129, 250]),
    groups=st.sampled_from([2, 6]),
)
def test_any_split_equals_one_pass_forward_and_gradients(
    way: str, cuts: list[int], taps: int, groups: int
) -> None:
    inputs = {k: v.requires_grad_() for k, v in _inputs(200, taps, groups).items()}
    leaves = [inputs[k] for k in NAMES[:4]]
    whole, end = _operator(inputs, return_state=True, **WAYS[way])
    assert end.gated.shape == (B, taps - 1, D)
    weights = torch.randn_like(whole)
    loss = (whole * weights).sum() + sum((x * 0.5).sum() for x in end)
    expected = torch.autograd.grad(loss, leaves, allow_unused=taps == 1)

    state, parts = None, []
    for start, stop in itertools.pairwise([0, *sorted(cuts), 200]):
        chunk = {**inputs, "qkv": inputs["qkv"][:, start:stop]}
        part, state = _operator(chunk, state=state, return_state=True, **WAYS[way])
        parts.append(part)
    split = torch.cat(parts, dim=1)
    torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-9)
    for mine, theirs in zip(state, end, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
    loss = (split * weights).sum() + sum((x * 0.5).sum() for x in state)
    found = torch.autograd.grad(loss, leaves, allow_unused=taps == 1)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


def test_steps_equal_the_parallel_form() -> None:
    inputs = _inputs(40, 30)
    expected, end = _operator(inputs, return_state=True)
    state, outputs = None, []
    for t in range(40):
        step = {**inputs, "qkv": inputs["qkv"][:, t : t + 1]}
        y, state = _operator(step, state=state, return_state=True)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.gated, end.gated)
    torch.testing.assert_close(state.gated, _gates(inputs)[1][:, -29:])


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("way", ["toeplitz", "fft"])
def test_a_sequence_has_the_same_bits_wherever_it_stands_in_a_batch(way: str) -> None:
    # With two threads small matrix products differ from row to row; one thread hides it.
    options = {"order": 2, **WAYS[way]}
    order = torch.tensor([4, 2, 5, 0, 1, 3])
    generator = torch.Generator().manual_seed(1)
    for length, taps in itertools.product((1, 3, 64, 100), (7, 128, 300)):
        x = torch.randn(6, taps - 1 + length, 32, generator=generator)
        h = torch.randn(32, taps, generator=generator)
        found = reference.long_fir(x, h, length, **options)
        moved = reference.long_fir(x[order], h, length, **options)
        assert torch.equal(found[order], moved), (length, taps)


def test_a_state_owns_its_memory() -> None:
    _, state = _operator(_inputs(4000, 3), return_state=True)
    for x in state:
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


@pytest.mark.parametrize("way", sorted(WAYS))
def test_gradients_are_right(way: str) -> None:
    inputs = _inputs(6, 3, 2, batch=1)
    _, state = _operator(inputs, return_state=True)
    assert state is not None

    def causal(qkv: Tensor, h: Tensor, skip: Tensor, tail: Tensor, gated: Tensor) -> Any:
        chunk = {**inputs, "qkv": qkv, "h": h, "skip": skip}
        y, end = _operator(chunk, state=LongConvState(tail, gated), return_state=True, **WAYS[way])
        return y, end.gated

    values = [inputs["qkv"], inputs["h"], inputs["skip"], *state]
    assert torch.autograd.gradcheck(causal, [x.clone().requires_grad_() for x in values])

    def bidirectional(h: Tensor, h_ahead: Tensor) -> Tensor:
        return _operator({**inputs, "h": h, "h_ahead": h_ahead}, ahead=True, **WAYS[way])[0]

    values = [inputs["h"], inputs["h_ahead"]]
    leaves = [x.clone().requires_grad_() for x in values]
    assert torch.autograd.gradcheck(bidirectional, leaves)
    if way in ("fft", "butterfly-2"):
        assert torch.autograd.gradgradcheck(bidirectional, leaves)


def test_outputs_have_the_dtype_of_the_input_and_sum_in_float32() -> None:
    inputs = {k: v.float() for k, v in _inputs(400, 300).items()}
    low = {**inputs, "qkv": inputs["qkv"].to(torch.bfloat16)}
    exact, _ = _operator({k: v.double() for k, v in low.items()})
    for way in WAYS.values():
        y, state = _operator(low, return_state=True, **way)
        assert y.dtype == state.featurizer.dtype == torch.bfloat16
        assert state.gated.dtype == torch.float32
        # One rounding to bf16 (8 bits) at the end and float32 sums before it.
        scale = float(exact.abs().max())
        torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-5 * scale)


@pytest.mark.parametrize("way", ["toeplitz", "fft", "butterfly-2"])
def test_float32_is_exact_to_float32_at_length(way: str) -> None:
    inputs = {k: v.float() for k, v in _inputs(5000, 2000, batch=1).items()}
    y, _ = _operator(inputs, **WAYS[way])
    exact, _ = _operator({k: v.double() for k, v in inputs.items()})
    assert float((y.double() - exact).norm() / exact.norm()) < 1e-6


def test_causal_outputs_do_not_see_what_follows_and_bidirectional_ones_do() -> None:
    inputs = _inputs(20, 20)
    changed = {**inputs, "qkv": inputs["qkv"].clone()}
    changed["qkv"][:, 12] += 1.0
    for way in ("toeplitz", "auto"):
        before, after = (_operator(x, **WAYS[way])[0] for x in (inputs, changed))
        assert torch.equal(before[:, :12], after[:, :12])
        assert not torch.equal(before[:, 12:], after[:, 12:])
    before, after = (_operator(x, ahead=True)[0] for x in (inputs, changed))
    assert bool(((before - after)[:, :12].abs() > 1e-6).any(-1).all())


# ---- learned butterflies -------------------------------------------------------------------------


def _factors(taps: int, heads: int, seed: int) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = learned_block_sizes(learned_transform_size(taps))
    return {
        n: torch.randn(heads, n, n, 2, generator=generator, dtype=torch.float64) * 0.3
        for n in sorted(set(sizes))
    }


def _learned(
    inputs: dict[str, Tensor],
    input_factors: dict[int, Tensor],
    filter_factors: dict[int, Tensor],
    form: Any = "free",
    ahead: bool = False,
) -> Tensor:
    qkv, featurizer, h, skip, h_ahead = (inputs[name] for name in NAMES)
    return learned_long_conv(
        qkv, featurizer, h, skip, input_factors, filter_factors, form=form,
        h_ahead=h_ahead if ahead else None,
    )  # fmt: skip


def _dense(factors: dict[int, Tensor], head: int, N: int, form: str) -> list[list[complex]]:
    """The whole transform as one matrix: row f sums the products along the digits of f and t."""
    sizes = learned_block_sizes(N)

    def entry(n: int, c: int, a: int) -> complex:
        real, imag = factors[n][head, c, a].tolist()
        fixed = cmath.exp(-2j * math.pi * a * c / n) if form == "additive" else 0
        return complex(real, imag) + fixed

    rows = []
    for f in range(N):
        row = []
        for t in range(N):
            value, rest_f, rest_t, left = 1 + 0j, f, t, N
            for n in sizes:
                m = left // n
                c, a, b = rest_f % n, rest_t // m, rest_t % m
                value *= entry(n, c, a) * cmath.exp(-2j * math.pi * b * c / left)
                rest_f, rest_t, left = rest_f // n, b, m
            row.append(value)
        rows.append(row)
    return rows


@pytest.mark.parametrize("ahead", [False, True], ids=["one-sided", "bidirectional"])
@pytest.mark.parametrize("form", ["free", "additive"])
@pytest.mark.parametrize(
    ("length", "taps", "groups", "heads"), [(5, 8, 6, 2), (12, 12, 3, 3), (3, 8, 2, 1)]
)
def test_learned_butterflies_equal_dense_matrices(
    length: int, taps: int, groups: int, heads: int, form: str, ahead: bool
) -> None:
    inputs = _inputs(length, taps, groups, batch=1)
    mine, theirs = _factors(taps, heads, 1), _factors(taps, heads, 2)
    found = _learned(inputs, mine, theirs, form, ahead)
    N = learned_transform_size(taps)
    q, z = _gates(inputs)
    y = torch.zeros_like(z)
    for c in range(D):
        head, group = c // (D // heads), c // (D // groups)
        over_z, over_h = (
            torch.tensor(_dense(f, head, N, form), dtype=torch.complex128) for f in (mine, theirs)
        )
        padded_z, padded_h = torch.zeros(2, N, dtype=torch.complex128)
        padded_z[:length] = z[0, :, c]
        padded_h[:taps] = inputs["h"][group]
        if ahead:
            for j in range(taps):
                padded_h[-1 - j] += inputs["h_ahead"][group, j]
        product = (over_z @ padded_z) * (over_h @ padded_h)
        y[0, :, c] = torch.fft.ifft(product).real[:length]
    torch.testing.assert_close(found, q * (y + inputs["skip"] * z), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ahead", [False, True], ids=["one-sided", "bidirectional"])
@pytest.mark.parametrize(("length", "taps"), [(1, 1), (7, 7), (20, 33), (100, 128)])
def test_untrained_butterflies_are_the_convolution(length: int, taps: int, ahead: bool) -> None:
    inputs = _inputs(length, taps)
    sizes = learned_block_sizes(learned_transform_size(taps))
    exact = {n: torch.view_as_real(dft_matrix(n, torch.complex128))[None] for n in set(sizes)}
    zero = {n: torch.zeros_like(x) for n, x in exact.items()}
    expected, _ = _operator(inputs, ahead=ahead)
    for factors, form in ((exact, "free"), (zero, "additive")):
        found = _learned(inputs, factors, factors, form, ahead)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    start = initial_factors(sizes, 2, "free")
    found = _learned({k: v.float() for k, v in inputs.items()}, start, start, "free", ahead)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_trained_butterflies_let_outputs_depend_on_later_positions() -> None:
    inputs = _inputs(8, 8)
    changed = {**inputs, "qkv": inputs["qkv"].clone()}
    changed["qkv"][:, 7] += 1.0
    factors = _factors(8, 1, 3)
    before, after = (_learned(x, factors, factors) for x in (inputs, changed))
    assert bool(((before - after).abs() > 1e-6).any(-1).all())


@pytest.mark.parametrize("form", ["free", "additive"])
def test_gradients_of_learned_butterflies_are_right(form: str) -> None:
    inputs = _inputs(3, 4, 2, batch=1)
    mine, theirs = _factors(4, 2, 1), _factors(4, 2, 2)
    (n,) = mine

    def function(qkv: Tensor, h: Tensor, ahead: Tensor, a: Tensor, b: Tensor) -> Tensor:
        chunk = {**inputs, "qkv": qkv, "h": h, "h_ahead": ahead}
        return _learned(chunk, {n: a}, {n: b}, form, True)

    values = [inputs["qkv"], inputs["h"], inputs["h_ahead"], mine[n], theirs[n]]
    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in values])


# ---- regularisation ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 5, 9])
@pytest.mark.parametrize("taps", [1, 4, 11])
def test_smooth_is_a_moving_average_with_zeros_outside(taps: int, width: int) -> None:
    h = torch.randn(3, taps, dtype=torch.float64)
    half = width // 2
    expected = torch.zeros_like(h)
    for j, i in itertools.product(range(taps), range(-half, half + 1)):
        if 0 <= j + i < taps:
            expected[:, j] += h[:, j + i] / width
    torch.testing.assert_close(smooth(h, width), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("taps", [2, 7, 8])
def test_smooth_spectrum_weighs_neighbouring_frequencies(taps: int, width: int) -> None:
    h = torch.randn(2, taps, dtype=torch.float64)
    half, count = width // 2, taps // 2 + 1
    for row, found in zip(h.tolist(), smooth_spectrum(h, width).tolist(), strict=True):
        spectrum = [
            sum(x * cmath.exp(-2j * math.pi * f * t / taps) for t, x in enumerate(row))
            for f in range(count)
        ]
        smoothed = [
            sum(
                math.exp(-0.5 * i * i) * spectrum[f + i]
                for i in range(-half, half + 1)
                if 0 <= f + i < count
            )
            for f in range(count)
        ]
        for t in range(taps):
            # Every frequency but zero and the middle one stands for its mirror image too.
            total = 0.0
            for f, value in enumerate(smoothed):
                twice = 1 if f == 0 or 2 * f == taps else 2
                total += twice * (value * cmath.exp(2j * math.pi * f * t / taps)).real / taps
            assert found[t] == pytest.approx(total, abs=1e-12)


def test_squash_is_the_soft_threshold() -> None:
    h = torch.tensor([[-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.5]])
    assert squash(h, 1.0).tolist() == [[-2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.5]]
    assert squash(h, 0.0) is h


@pytest.mark.parametrize("function", [smooth, smooth_spectrum])
def test_regularisation_is_differentiable_and_checks_its_window(function: Any) -> None:
    h = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: function(x, 3), [h])
    for width in (0, 2, -1):
        with pytest.raises(KernelError, match=f"window of {width}; use an odd number"):
            function(h, width)
    with pytest.raises(KernelError, match=r"threshold of -0\.1"):
        squash(h, -0.1)


# ---- what is refused -----------------------------------------------------------------------------


def test_wrong_use_is_one_clear_line() -> None:
    inputs = _inputs(4, 7, 2)
    with pytest.raises(KernelError, match="7 filter groups; the number must divide the 6"):
        _operator({**inputs, "h": torch.zeros(7, 3)})
    with pytest.raises(KernelError, match="0 filter groups; the number must divide the 6"):
        _operator({**inputs, "h": torch.zeros(0, 3)})
    with pytest.raises(KernelError, match="featurizer has no taps"):
        _operator({**inputs, "featurizer": torch.zeros(18, 0)})
    with pytest.raises(KernelError, match="h has no taps"):
        _operator({**inputs, "h": torch.zeros(2, 0)})
    with pytest.raises(KernelError, match="h_ahead has shape"):
        _operator({**inputs, "h_ahead": torch.zeros(2, 3)}, ahead=True)
    with pytest.raises(KernelError, match="algorithm is 'fastest'; use 'auto', 'toeplitz'"):
        _operator(inputs, algorithm="fastest")
    with pytest.raises(KernelError, match="order is 0; a butterfly has 1 to 13 passes"):
        _operator(inputs, algorithm="butterfly", order=0)
    with pytest.raises(KernelError, match="bidirectional convolution has no state"):
        _operator(inputs, ahead=True, return_state=True)
    _, state = _operator(inputs, return_state=True)
    with pytest.raises(KernelError, match="bidirectional convolution has no state"):
        _operator(inputs, ahead=True, state=state)
    with pytest.raises(KernelError, match=r"state\.gated has shape"):
        _operator(_inputs(4, 8, 2), state=state)
    with pytest.raises(KernelUnavailableError, match="cannot run its Triton kernel: it has none"):
        _operator(inputs, backend="triton")


def test_wrong_butterflies_are_one_clear_line() -> None:
    inputs = _inputs(9, 8, 2)
    factors = _factors(8, 2, 0)
    with pytest.raises(KernelError, match=r"9 positions, but .* takes at most 8"):
        _learned(inputs, factors, factors)
    inputs = _inputs(4, 8, 2)
    with pytest.raises(KernelError, match=r"\[1, 2\] heads; it must be one number"):
        _learned(inputs, factors, {n: x[:1] for n, x in factors.items()})
    with pytest.raises(KernelError, match="divides the 2 filter groups"):
        _learned(inputs, _factors(8, 3, 0), _factors(8, 3, 0))
    with pytest.raises(KernelError, match=r"\[0\] heads; it must be one number"):
        _learned(inputs, _factors(8, 0, 0), _factors(8, 0, 0))
    with pytest.raises(KernelError, match="form is 'fixed'; use"):
        _learned(inputs, factors, factors, "fixed")
    with pytest.raises(KernelError, match=r"input_factors are of sizes \[4\]; .* need \[16\]"):
        _learned(inputs, {4: torch.zeros(2, 4, 4, 2)}, factors)
    with pytest.raises(KernelError, match=r"input_factors\[16\] has shape"):
        _learned(inputs, {16: torch.zeros(2, 16, 16)}, factors)


def test_the_benchmark_prints_a_row_for_every_filter_length(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = Path(__file__).parents[2] / "kernels" / "benchmarks" / "long_convolutions.py"
    runpy.run_path(str(path))["main"](["--length", "50", "--width", "4", "--taps", "3", "40"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line[:2] in ("| ", "|-")]
    assert [row.count("|") for row in rows] == [6, 6, 6, 6]
    assert rows[2].startswith("| 3 ") and rows[3].startswith("| 40 ")


@pytest.mark.parametrize("ahead", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", ["h", "skip", "featurizer", "h_ahead", "qkv"])
def test_the_comparison_with_the_loop_notices(name: str, ahead: bool) -> None:
    inputs = _inputs(17, 9, 3)
    wrong = {
        "h": inputs["h"].flip(1),
        "skip": torch.zeros_like(inputs["skip"]),
        "featurizer": inputs["featurizer"].flip(1),
        "h_ahead": inputs["h_ahead"].roll(1, 1),
        "qkv": inputs["qkv"].roll(D, 2),
    }
    expected = _loop(inputs, ahead)
    for way in WAYS.values():
        found, _ = _operator({**inputs, name: wrong[name]}, ahead=ahead, **way)
        noticed = float((found - expected).norm() / expected.norm()) > 1e-3
        assert noticed == (ahead or name != "h_ahead")
