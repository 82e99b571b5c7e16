"""Public function of the featurizer."""

from __future__ import annotations

from torch import Tensor

from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_chunk, check_shape
from evo_kernels.short_conv.reference import short_conv_reference


def short_conv(
    x: Tensor,
    taps: Tensor,
    state: Tensor | None = None,
    *,
    return_state: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Return `y[t] = sum_j taps[:, j] * x[t - j]`, depthwise and causal.

    Shapes: B batch, L positions in this chunk, C channels, K taps.

    Args:
        x: `[B, L, C]`.
        taps: `[C, K]`, lag 0 first.
        state: The last K - 1 inputs before this chunk, `[B, K - 1, C]`; None means zeros.
        backend: "reference", "auto" (the fastest that exists), or "triton", which does not exist yet
            for this operator and never falls back.

    Returns:
        `[B, L, C]` in the dtype of `x` (sums are float32), and the new state if asked for.

    Raises:
        KernelError: if shapes disagree.

    Source: StripedHyena 2 paper, section 2 (featurizer).
    """
    B, _, C = check_chunk("x", x)
    check_shape("taps", taps, (C, None))
    if state is not None:
        check_shape("state", state, (B, taps.shape[1] - 1, C))
    resolve("short_conv", backend, x, unsupported="it has none in this version")
    y, new_state = short_conv_reference(x, taps, state)
    return y.to(x.dtype), new_state if return_state else None
