"""Public function of the diagonal state space model."""

from __future__ import annotations

from torch import Tensor

from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_chunk, check_divides, check_shape
from evo_kernels.diagonal_ssm.modes import DiagonalModes
from evo_kernels.diagonal_ssm.reference import DiagonalState, diagonal_ssm_reference


def check_modes(modes: DiagonalModes, skip: Tensor) -> tuple[int, int]:
    """Return (G, N) of modes with their skip weights."""
    check_shape("log_poles", modes.log_poles, (None, None, 2))
    check_shape("residues", modes.residues, tuple(modes.log_poles.shape))
    check_shape("skip", skip, (modes.log_poles.shape[0],))
    return modes.log_poles.shape[0], modes.log_poles.shape[1]


def diagonal_ssm(
    u: Tensor,
    modes: DiagonalModes,
    skip: Tensor,
    state: DiagonalState | None = None,
    *,
    return_state: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, DiagonalState | None]:
    """Return `causal_conv(h, u) + skip * u` with `h[l] = 2 Re sum_n residues_n exp(log_poles_n l)`.

    Shapes: B batch, L positions in this chunk, C channels, G filters, N conjugate pairs of poles.

    Args:
        u: Inputs, `[B, L, C]`; adjacent channels share a filter, C / G each.
        modes: Of the filters, as `discretise` gives them; best float64, since an angle is multiplied
            by the distance in positions.
        skip: One weight per filter, `[G]`.
        state: What the positions before this chunk left; None means zeros.
        backend: "reference" or "auto"; "triton" is refused, since there is no kernel.

    Returns:
        `[B, L, C]` in the dtype of `u` (sums are float32, float64 for float64 inputs), and the new
        state if asked for.

    Raises:
        KernelError: if shapes disagree or G does not divide C.
        KernelUnavailableError: for "triton".

    Source: S4D (Gu et al., arXiv 2206.11893); state passing as in H3 (Fu et al., arXiv 2212.14052),
    section 4.
    """
    B, _, channels = check_chunk("u", u)
    G, N = check_modes(modes, skip)
    check_divides("filters", G, channels)
    if state is not None:
        check_shape("state.modal", state.modal, (B, channels, N, 2))
    resolve("diagonal_ssm", backend, u, unsupported="it has none")
    return diagonal_ssm_reference(u, modes, skip, state, return_state)
