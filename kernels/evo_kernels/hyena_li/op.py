"""Public function of Hyena-LI."""

from __future__ import annotations

import torch
from torch import Tensor

from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_qkv, check_shape
from evo_kernels.hyena_li.reference import LIState, hyena_li_reference


def hyena_li(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    state: LIState | None = None,
    *,
    return_state: bool = False,
    backend: Backend = "auto",
    rounding: torch.dtype | None = None,
) -> tuple[Tensor, LIState | None]:
    """Return `q * (causal_conv(h, k * v) + skip * k * v)` after the 3-tap featurizers.

    The filter is implicit: `h[t] = sum_n residues[:, n] * exp(log_poles[:, n] * t)`, one per channel.

    Shapes: B batch, L positions in this chunk, D channels, N poles per channel.

    Args:
        qkv: Projected inputs in blocks [q | k | v], `[B, L, 3D]`.
        featurizer: Depthwise taps, lag 0 first, `[3D, 3]`.
        log_poles: Logarithms of the real poles, negative, `[D, N]`.
        residues: `[D, N]`.
        skip: One weight per channel, `[D]`.
        state: What the positions before this chunk left; None means zeros.
        backend: "reference", "auto" (the fastest that exists), or "triton", which does not exist yet
            for this operator and never falls back.
        rounding: Round to this dtype where the released implementation does (after the
            featurizer, the gate, the convolution, the skip and their sum); None keeps float32.

    Returns:
        `[B, L, D]` in the dtype of `qkv` (sums are float32), and the new state if asked for.

    Raises:
        KernelError: if shapes disagree.

    Source: StripedHyena 2 paper, section 2; the scan is the standard chunked form of a diagonal
    linear recurrence.
    """
    B, _, D = check_qkv(qkv, featurizer)
    check_shape("log_poles", log_poles, (D, None))
    check_shape("residues", residues, tuple(log_poles.shape))
    check_shape("skip", skip, (D,))
    if state is not None:
        check_shape("state.featurizer", state.featurizer, (B, featurizer.shape[1] - 1, 3 * D))
        check_shape("state.modal", state.modal, (B, D, log_poles.shape[1]))
    resolve("hyena_li", backend, qkv, unsupported="it has none in this version")
    y, new_state = hyena_li_reference(qkv, featurizer, log_poles, residues, skip, state, rounding)
    return y, new_state if return_state else None
