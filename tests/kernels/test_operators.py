"""Operators against loops over time, against torch.fft, and against themselves under any split."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evo_kernels import (
    attention_forked,
    attention_two_segment,
    hyena_li,
    hyena_mr,
    hyena_se,
    short_conv,
)
from evo_kernels.backend import resolve
from evo_kernels.errors import KernelError, KernelUnavailableError

B, D, N = 2, 30, 16
LENGTHS = (1, 2, 7, 16, 17, 63, 64, 65, 127, 128, 129, 300)


def _loop_featurizer(x: Tensor, taps: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for t, lag in itertools.product(range(x.shape[1]), range(taps.shape[1])):
        if t >= lag:
            y[:, t] += taps[:, lag] * x[:, t - lag]
    return y


def _loop_gates(qkv: Tensor, featurizer: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = _loop_featurizer(qkv, featurizer).chunk(3, dim=-1)
    return q, k * v


def _loop_fir(qkv: Tensor, featurizer: Tensor, h: Tensor, skip: Tensor | None) -> Tensor:
    q, z = _loop_gates(qkv, featurizer)
    group = z.shape[-1] // h.shape[0]
    y = torch.zeros_like(z)
    for c in range(z.shape[-1]):
        taps = h[c // group]
        for t in range(z.shape[1]):
            for lag in range(min(t + 1, h.shape[1])):
                y[:, t, c] += taps[lag] * z[:, t - lag, c]
    return q * (y if skip is None else y + skip * z)


def _loop_li(
    qkv: Tensor, featurizer: Tensor, log_poles: Tensor, residues: Tensor, skip: Tensor
) -> Tensor:
    q, z = _loop_gates(qkv, featurizer)
    modal = torch.zeros(z.shape[0], *log_poles.shape, dtype=z.dtype)
    outputs = []
    for t in range(z.shape[1]):
        modal = log_poles.exp() * modal + z[:, t, :, None]
        outputs.append((residues * modal).sum(-1) + skip * z[:, t])
    return q * torch.stack(outputs, dim=1)


def _inputs(
    length: int, groups: int, taps: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length * 1000 + groups)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "qkv": randn(B, length, 3 * D),
        "featurizer": randn(3 * D, 3),
        "h": randn(groups, taps),
        "skip": randn(D),
        "log_poles": -torch.rand(D, N, generator=generator, dtype=torch.float64).to(dtype) * 0.3
        - 1e-3,
        "residues": randn(D, N),
    }


def _se(i: dict[str, Tensor], **kw: Any) -> Any:
    return hyena_se(i["qkv"], i["featurizer"], i["h"], **kw)


def _mr(i: dict[str, Tensor], **kw: Any) -> Any:
    return hyena_mr(i["qkv"], i["featurizer"], i["h"], i["skip"], **kw)


def _li(i: dict[str, Tensor], **kw: Any) -> Any:
    return hyena_li(i["qkv"], i["featurizer"], i["log_poles"], i["residues"], i["skip"], **kw)


OPERATORS: dict[str, tuple[Callable[..., Any], int]] = {
    "se": (_se, 7),
    "mr": (_mr, 128),
    "li": (_li, 7),
}


# Group sizes 30, 15 (odd, as in the released 1B), 2 and 1.
@pytest.mark.parametrize("groups", [1, 2, 15, 30])
@pytest.mark.parametrize("length", [1, 2, 9, 20])
def test_se_and_mr_equal_a_loop(length: int, groups: int) -> None:
    for taps in (7, 12):
        inputs = _inputs(length, groups, taps)
        expected = _loop_fir(inputs["qkv"], inputs["featurizer"], inputs["h"], None)
        torch.testing.assert_close(_se(inputs)[0], expected, rtol=1e-12, atol=1e-12)
        expected = _loop_fir(inputs["qkv"], inputs["featurizer"], inputs["h"], inputs["skip"])
        torch.testing.assert_close(_mr(inputs)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_mr_equals_a_direct_convolution_at_128_taps(length: int) -> None:
    inputs = _inputs(length, 2, 128)
    q, z = _loop_gates(inputs["qkv"], inputs["featurizer"])
    taps = inputs["h"].repeat_interleave(D // 2, dim=0).flip(1)[:, None]
    padded = torch.nn.functional.pad(z.transpose(1, 2), (127, 0))
    y = torch.nn.functional.conv1d(padded, taps, groups=D).transpose(1, 2)
    expected = q * (y + inputs["skip"] * z)
    torch.testing.assert_close(_mr(inputs)[0], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", [*LENGTHS, 64 * 64 + 65])
def test_li_equals_the_recurrence(length: int) -> None:
    inputs = _inputs(length, 1, 7)
    expected = _loop_li(
        inputs["qkv"], inputs["featurizer"], inputs["log_poles"], inputs["residues"], inputs["skip"]
    )
    torch.testing.assert_close(_li(inputs)[0], expected, rtol=1e-10, atol=1e-10)


def test_li_equals_a_convolution_by_fft() -> None:
    length = 1000
    inputs = _inputs(length, 1, 7)
    q, z = _loop_gates(inputs["qkv"], inputs["featurizer"])
    steps = torch.arange(length, dtype=torch.float64)
    h = (inputs["residues"][..., None] * torch.exp(inputs["log_poles"][..., None] * steps)).sum(1)
    spectrum = torch.fft.rfft(h, n=2 * length) * torch.fft.rfft(z.transpose(1, 2), n=2 * length)
    y = torch.fft.irfft(spectrum, n=2 * length)[..., :length].transpose(1, 2)
    torch.testing.assert_close(_li(inputs)[0], q * (y + inputs["skip"] * z), rtol=1e-9, atol=1e-9)


def test_short_conv_equals_a_loop_and_keeps_its_tail() -> None:
    x, taps = _inputs(5, 1, 7)["qkv"], torch.randn(3 * D, 3, dtype=torch.float64)
    y, state = short_conv(x, taps, return_state=True)
    torch.testing.assert_close(y, _loop_featurizer(x, taps))
    assert state is not None
    torch.testing.assert_close(state, x[:, -2:])
    one, state = short_conv(x[:, :1], taps, return_state=True)
    assert state is not None and torch.equal(state[:, 0], torch.zeros_like(one[:, 0]))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(OPERATORS)),
    cuts=st.lists(st.integers(1, 299), min_size=0, max_size=8, unique=True),
    groups=st.sampled_from([1, 2, 15, 30]),
)
def test_any_split_equals_one_pass_forward_and_gradients(
    name: str, cuts: list[int], groups: int
) -> None:
    operator, taps = OPERATORS[name]
    inputs = {k: v.requires_grad_() for k, v in _inputs(300, groups, taps).items()}
    used = [k for k in inputs if not (name == "li" and k == "h")]
    used = [k for k in used if name == "li" or k not in ("log_poles", "residues")]
    used = [k for k in used if not (name == "se" and k == "skip")]
    whole, end = operator(inputs, return_state=True)
    weights = torch.randn_like(whole)
    expected = torch.autograd.grad(
        (whole * weights).sum() + sum(x.sum() for x in end), [inputs[k] for k in used]
    )

    state, parts = None, []
    bounds = [0, *sorted(cuts), 300]
    for start, stop in itertools.pairwise(bounds):
        chunk = {**inputs, "qkv": inputs["qkv"][:, start:stop]}
        part, state = operator(chunk, state=state, return_state=True)
        parts.append(part)
    split = torch.cat(parts, dim=1)
    torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-9)
    for mine, theirs in zip(state, end, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(
        (split * weights).sum() + sum(x.sum() for x in state), [inputs[k] for k in used]
    )
    for key, mine, theirs in zip(used, found, expected, strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=1e-9, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_gradients_are_right(name: str) -> None:
    operator, _ = OPERATORS[name]
    inputs = _inputs(5, 2, 3)
    inputs["qkv"] = inputs["qkv"][:1]
    keys = {
        "se": ["qkv", "h"],
        "mr": ["qkv", "h", "skip"],
        "li": ["log_poles", "residues", "skip"],
    }[name]

    def function(*values: Tensor) -> Tensor:
        return operator({**inputs, **dict(zip(keys, values, strict=True))})[0]

    assert torch.autograd.gradcheck(function, [inputs[k].clone().requires_grad_() for k in keys])


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_outputs_have_the_dtype_of_the_input_and_sum_in_float32(name: str) -> None:
    operator, taps = OPERATORS[name]
    inputs = _inputs(130, 2, taps, torch.float32)
    low = {**inputs, "qkv": inputs["qkv"].to(torch.bfloat16)}
    y, state = operator(low, return_state=True)
    assert y.dtype == torch.bfloat16
    assert state.featurizer.dtype == torch.bfloat16
    assert state[1].dtype == torch.float32
    exact, _ = operator({k: v.double() for k, v in low.items()})
    # One rounding to bf16 (8 bits) at the end and float32 sums before it.
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-3 * float(exact.abs().max()))


def test_float32_is_exact_to_float32_at_length() -> None:
    inputs = _inputs(9000, 1, 7, torch.float32)
    y, _ = _li(inputs)
    exact, _ = _li({k: v.double() for k, v in inputs.items()})
    assert float((y.double() - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize(("prefix", "own"), [(1, 1), (5, 3), (300, 7), (3, 300)])
def test_two_segment_attention_equals_one_softmax(prefix: int, own: int) -> None:
    A, L, H, E = 3, min(own, 4), 2, 8
    generator = torch.Generator().manual_seed(prefix)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = randn(A, L, H, E), randn(A, own, H, E), randn(A, own, H, E)
    pk, pv = randn(1, prefix, H, E), randn(1, prefix, H, E)
    found = attention_two_segment(q, pk, pv, k, v)
    keys, values = (
        torch.cat([pk.expand(A, -1, -1, -1), k], 1),
        torch.cat([pv.expand(A, -1, -1, -1), v], 1),
    )
    scores = torch.einsum("alhe,ashe->ahls", q, keys) * E**-0.5
    seen = torch.arange(prefix + own)[None] <= torch.arange(L)[:, None] + prefix + own - L
    expected = torch.einsum(
        "ahls,ashe->alhe", scores.masked_fill(~seen, -torch.inf).softmax(-1), values
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_wrong_shapes_are_one_clear_line() -> None:
    inputs = _inputs(4, 2, 7)
    with pytest.raises(
        KernelError, match=r"h has 7 filter groups; the number must divide the 30 channels"
    ):
        hyena_se(inputs["qkv"], inputs["featurizer"], torch.zeros(7, 3))
    with pytest.raises(KernelError, match="must hold three equal blocks"):
        hyena_se(inputs["qkv"][..., :-1], inputs["featurizer"], inputs["h"])
    with pytest.raises(KernelError, match="no positions"):
        hyena_se(inputs["qkv"][:, :0], inputs["featurizer"], inputs["h"])
    _, state = _mr(inputs, return_state=True)
    with pytest.raises(KernelError, match=r"state\.gated has shape"):
        hyena_mr(inputs["qkv"], inputs["featurizer"], torch.zeros(2, 9), inputs["skip"], state)


@pytest.mark.parametrize("forked", [False, True])
def test_keys_and_values_of_continuations_belong_together(forked: bool) -> None:
    A, L, H, E = 2, 3, 4, 8
    q, own, prefix = torch.zeros(A, L, H, E), torch.zeros(A, L, H, E), torch.zeros(1, 5, H, E)

    def attend(q: Tensor, pk: Tensor, pv: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if forked:
            return attention_forked(q, [pk] * A, [pv] * A, k, v)
        return attention_two_segment(q, pk, pv, k, v)

    assert attend(q, prefix, prefix, own, own).shape == q.shape
    for arguments, message in (
        ((q[0], prefix, prefix, own, own), r"q has shape .* it must be \[continuations"),
        ((q, prefix, prefix, own[:, :2], own[:, :2]), "k has 2 positions for 3 queries"),
        ((q, prefix, prefix, own, own[:, :2]), "v has shape"),
        ((q, prefix, prefix[:, :4], own, own), "prefix_v has"),
        ((q, prefix[..., :4], prefix[..., :4], own, own), "prefix_k has shape"),
    ):
        with pytest.raises(KernelError, match=message):
            attend(*arguments)


def test_triton_never_falls_back() -> None:
    with pytest.raises(KernelUnavailableError, match="cannot run its Triton kernel"):
        resolve("hyena_se", "triton", torch.zeros(1))
    with pytest.raises(KernelError, match="use"):
        resolve("hyena_se", "fastest", torch.zeros(1))  # type: ignore[arg-type]
