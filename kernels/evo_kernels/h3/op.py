"""Public function of H3."""

from __future__ import annotations

from torch import Tensor

from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_blocks, check_divides, check_shape
from evo_kernels.diagonal_ssm.modes import DiagonalModes
from evo_kernels.diagonal_ssm.op import check_modes
from evo_kernels.errors import KernelError
from evo_kernels.h3.reference import H3State, h3_reference


def h3(
    qkv: Tensor,
    taps: Tensor,
    modes: DiagonalModes,
    skip: Tensor,
    state: H3State | None = None,
    *,
    return_state: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, H3State | None]:
    """Return `o_j = sum_i q_i (causal_conv(h, z_ij) + skip * z_ij)` with `z_ij = causal_conv(taps, k)_i v_j`.

    i and j are channels of one head, and h is the head's `2 Re sum_n residues_n exp(log_poles_n l)`. With
    heads of one channel: `q * (causal_conv(h, z) + skip * z)`, `z = causal_conv(taps, k) * v`.

    Shapes: B batch, L positions in this chunk, D channels, K taps, G heads of E = D / G channels, N
    conjugate pairs of poles per head.

    Args:
        qkv: Projected inputs in blocks [q | k | v], `[B, L, 3D]`; a head's channels are adjacent.
        taps: Of the shift on the keys with its skip, lag 0 first, `[D, K]`, as `shift_taps` gives them.
        modes: Of the heads' filters, `[G, N, 2]`, as `discretise` gives them; best float64.
        skip: One weight per head, `[G]`.
        state: What the positions before this chunk left; None means zeros.
        backend: "reference" or "auto"; "triton" is refused, since there is no kernel.

    Returns:
        `[B, L, D]` in the dtype of `qkv` (sums are float32, float64 for float64 inputs), and the new
        state if asked for.

    Raises:
        KernelError: if shapes disagree or G does not divide D.
        KernelUnavailableError: for "triton".

    Source: Fu et al., "Hungry Hungry Hippos", arXiv 2212.14052, sections 3 and 4.
    """
    B, _, D = check_blocks(qkv)
    check_shape("taps", taps, (D, None))
    if taps.shape[1] < 1:
        raise KernelError("the shift has no taps; it has at least one")
    G, N = check_modes(modes, skip)
    check_divides("heads", G, D)
    if state is not None:
        check_shape("state.keys", state.keys, (B, taps.shape[1] - 1, D))
        check_shape("state.modal", state.modal, (B, D, D // G, N, 2))
    resolve("h3", backend, qkv, unsupported="it has none")
    return h3_reference(qkv, taps, modes, skip, state, return_state)
