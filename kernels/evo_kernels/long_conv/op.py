"""Public functions of the long convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from evo_kernels.backend import Backend, resolve
from evo_kernels.butterfly import LearnedForm, learned_block_sizes, learned_matrices
from evo_kernels.checks import check_groups, check_qkv, check_shape
from evo_kernels.errors import KernelError
from evo_kernels.fir import accumulation_dtype
from evo_kernels.long_conv.reference import (
    Algorithm,
    LongConvState,
    learned_long_conv_reference,
    long_conv_reference,
)

_NO_KERNEL = "it has none"
# Passes of two points, in segments of 8192.
_MAX_ORDER = 13


def _check(
    qkv: Tensor, featurizer: Tensor, h: Tensor, skip: Tensor, h_ahead: Tensor | None
) -> tuple[int, int, int]:
    B, L, D = check_qkv(qkv, featurizer)
    check_groups(h, D)
    if h.shape[1] < 1:
        raise KernelError("h has no taps; a filter has at least one")
    check_shape("skip", skip, (D,))
    if h_ahead is not None:
        check_shape("h_ahead", h_ahead, tuple(h.shape))
    return B, L, D


def long_conv(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    state: LongConvState | None = None,
    *,
    h_ahead: Tensor | None = None,
    algorithm: Algorithm = "auto",
    order: int = 2,
    return_state: bool = False,
    backend: Backend = "auto",
    rounding: torch.dtype | None = None,
) -> tuple[Tensor, LongConvState | None]:
    """Return `q * (conv(h, k * v) + skip * k * v)` after the 3-tap featurizers.

    Shapes: B batch, L positions in this chunk, D channels, G filter groups, K filter length.

    Args:
        qkv: Projected inputs in blocks [q | k | v], `[B, L, 3D]`. A sequence may be longer than the
            filter, which then reaches K - 1 positions back and no further.
        featurizer: Depthwise taps, lag 0 first, `[3D, 3]`.
        h: Grouped taps, lag 0 first, `[G, K]`; channel c uses group `c // (D / G)`.
        skip: One weight per channel, `[D]`.
        state: What the positions before this chunk left; None means zeros.
        h_ahead: For a bidirectional convolution, taps of the positions after each: tap j weighs
            position t + 1 + j, `[G, K]`. The whole sequence must then be one chunk.
        algorithm: How the sums are made; the values are the same but for rounding. "auto" takes
            block-Toeplitz products for filters of up to 128 taps and the FFT for longer ones;
            "butterfly" makes the Fourier transforms in `order` passes of small dense products.
        order: Passes of the butterfly, 1 to 13.
        return_state: Also return the state for the next chunk.
        backend: "auto" or "reference"; there is no Triton kernel, so "triton" is refused.
        rounding: Round to this dtype after the featurizer, the gate, and the convolution with its
            skip; None keeps float32.

    Returns:
        `[B, L, D]` in the dtype of `qkv` (sums are float32), and the new state if asked for.

    Raises:
        KernelError: if shapes disagree, G does not divide D, the algorithm is unknown, the order
            does not exist, or a bidirectional convolution is given a state or asked for one.
        KernelUnavailableError: for "triton".

    Source: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", 2023.
    """
    B, _, D = _check(qkv, featurizer, h, skip, h_ahead)
    if algorithm not in get_args(Algorithm):
        raise KernelError(
            f"algorithm is {algorithm!r}; use {', '.join(map(repr, get_args(Algorithm)))}"
        )
    if not 1 <= order <= _MAX_ORDER:
        raise KernelError(f"order is {order}; a butterfly has 1 to {_MAX_ORDER} passes")
    if h_ahead is not None and (state is not None or return_state):
        raise KernelError(
            "a bidirectional convolution has no state: its outputs depend on later positions; pass the whole sequence as one chunk"
        )
    if state is not None:
        check_shape("state.featurizer", state.featurizer, (B, featurizer.shape[1] - 1, 3 * D))
        check_shape("state.gated", state.gated, (B, h.shape[1] - 1, D))
    resolve("long_conv", backend, qkv, unsupported=_NO_KERNEL, rounding=rounding)
    return long_conv_reference(
        qkv, featurizer, h, skip, h_ahead, state, algorithm, order, return_state, rounding
    )


def learned_long_conv(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    input_factors: Mapping[int, Tensor],
    filter_factors: Mapping[int, Tensor],
    *,
    form: LearnedForm,
    h_ahead: Tensor | None = None,
    backend: Backend = "auto",
    rounding: torch.dtype | None = None,
) -> Tensor:
    """Return `q * (ifft(T_z(k * v) T_h(h)) + skip * k * v)` with learned butterflies T_z and T_h.

    Inputs and filter are padded with zeros to N points, the power of two that is at least 2K, however
    long the sequence is. With both butterflies as they start in the free form this is `long_conv`;
    once trained they let every output depend on every position, so there is no state.

    Shapes: B batch, L positions (at most K), D channels, G filter groups, K filter length, H heads.

    Args:
        qkv, featurizer, h, skip, h_ahead, backend, rounding: As in `long_conv`.
        input_factors, filter_factors: Size n of a pass to `[H, n, n, 2]`, real and imaginary part; H
            divides G. Sizes are those of `learned_block_sizes(N)`.
        form: Whether the factors are the matrices ("free") or are added to the Fourier transform's
            ("additive").

    Returns:
        `[B, L, D]` in the dtype of `qkv`.

    Raises:
        KernelError: if shapes disagree, H does not divide G, the form is unknown, or the sequence is
            longer than the filter.
        KernelUnavailableError: for "triton".

    Source: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", 2023.
    """
    _, L, _ = _check(qkv, featurizer, h, skip, h_ahead)
    G, K = h.shape
    if L > K:
        raise KernelError(
            f"the sequence has {L} positions, but a learned butterfly for filters of {K} taps takes at most {K}; use longer filters or shorter sequences"
        )
    sizes = learned_block_sizes(learned_transform_size(K))
    heads = {x.shape[0] for factors in (input_factors, filter_factors) for x in factors.values()}
    if len(heads) != 1 or min(heads) < 1 or G % min(heads):
        raise KernelError(
            f"the butterflies have {sorted(heads)} heads; it must be one number that divides the {G} filter groups"
        )
    for name, factors in (("input_factors", input_factors), ("filter_factors", filter_factors)):
        if set(factors) != set(sizes):
            raise KernelError(
                f"{name} are of sizes {sorted(factors)}; filters of {K} taps need {sorted(set(sizes))}"
            )
        for n, x in factors.items():
            check_shape(f"{name}[{n}]", x, (None, n, n, 2))
    resolve("learned_long_conv", backend, qkv, unsupported=_NO_KERNEL, rounding=rounding)
    acc = accumulation_dtype(qkv)
    matrices = [learned_matrices(f, sizes, form, acc) for f in (input_factors, filter_factors)]
    return learned_long_conv_reference(
        qkv, featurizer, h, skip, matrices[0], matrices[1], h_ahead, rounding
    )


def learned_transform_size(taps: int) -> int:
    """Points of the learned butterflies of filters of `taps` taps: the power of two from 2 taps on."""
    return 1 << (2 * taps - 1).bit_length()
