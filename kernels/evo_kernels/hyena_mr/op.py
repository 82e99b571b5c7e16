"""Public function of Hyena-MR."""

from __future__ import annotations

import torch
from torch import Tensor

from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_groups, check_qkv, check_shape
from evo_kernels.hyena_mr.reference import MRState, hyena_mr_reference


def hyena_mr(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    state: MRState | None = None,
    *,
    return_state: bool = False,
    backend: Backend = "auto",
    rounding: torch.dtype | None = None,
) -> tuple[Tensor, MRState | None]:
    """Return `q * (causal_conv(h, k * v) + skip * k * v)` after the 3-tap featurizers.

    Shapes: B batch, L positions in this chunk, D channels, G filter groups, K filter length.

    Args:
        qkv: Projected inputs in blocks [q | k | v], `[B, L, 3D]`.
        featurizer: Depthwise taps, lag 0 first, `[3D, 3]`.
        h: Grouped taps, lag 0 first, `[G, K]`; channel c uses group `c // (D / G)`.
        skip: One weight per channel, `[D]`.
        state: What the positions before this chunk left; None means zeros.
        backend: "reference", "auto" (the fastest that exists), or "triton", which does not exist yet
            for this operator and never falls back.
        rounding: Round to this dtype where the released implementation does (after the
            featurizer, the gate, and the convolution with its skip); None keeps float32.

    Returns:
        `[B, L, D]` in the dtype of `qkv` (sums are float32), and the new state if asked for.

    Raises:
        KernelError: if shapes disagree or G does not divide D.

    Source: StripedHyena 2 paper, section 2.
    """
    B, _, D = check_qkv(qkv, featurizer)
    check_groups(h, D)
    check_shape("skip", skip, (D,))
    if state is not None:
        check_shape("state.featurizer", state.featurizer, (B, featurizer.shape[1] - 1, 3 * D))
        check_shape("state.gated", state.gated, (B, h.shape[1] - 1, D))
    resolve("hyena_mr", backend, qkv, unsupported="it has none in this version")
    y, new_state = hyena_mr_reference(qkv, featurizer, h, skip, state, rounding)
    return y, new_state if return_state else None
