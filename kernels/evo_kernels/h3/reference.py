"""Plain PyTorch twin of H3: a shift on the keys, outer products with the values, a diagonal scan.

A head of E channels is a matrix memory: `z_ij = K_i v_j` for its E x E pairs of channels, K being the
keys after their shift, runs through one filter per head, and the queries read it, `o_j = sum_i q_i y_ij`.
With E = 1 this is two gates around a convolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evo_kernels.diagonal_ssm.modes import DiagonalModes
from evo_kernels.diagonal_ssm.reference import DiagonalScan
from evo_kernels.fir import ALIGNED, accumulation_dtype, with_left_context
from evo_kernels.hyena_li.reference import CHUNK, CHUNKS_PER_TILE
from evo_kernels.hyena_mr.reference import grouped_fir


class H3State(NamedTuple):
    """What earlier positions leave to H3.

    Attributes:
        keys: Last keys before the shift, `[B, K - 1, D]`, accumulation dtype.
        modal: State of the diagonal model for every pair of a key's and a value's channel within a
            head, real and imaginary part, `[B, D, E, N, 2]`, accumulation dtype.
    """

    keys: Tensor
    modal: Tensor


def shift_taps(input_weights: Tensor, output_weights: Tensor, skip: Tensor) -> Tensor:
    """The shift model as a filter: `tap_l = sum_n B_n C_(n+l)`, the skip added at lag 0.

    Its state is the last K inputs (A moves them down by one), its input weights B say where an
    input enters, its output weights C what is read. With B the first unit vector the taps are C.

    Args:
        input_weights: B, `[D, K]`.
        output_weights: C, `[D, K]`.
        skip: `[D]`.

    Returns:
        Taps, lag 0 first, `[D, K]`.
    """
    K = input_weights.shape[1]
    later = torch.nn.functional.pad(output_weights, (0, K - 1)).unfold(1, K, 1)  # [D, l, n]
    taps = (later @ input_weights[:, :, None])[..., 0]
    return taps + torch.nn.functional.pad(skip[:, None], (0, K - 1))


def h3_reference(
    qkv: Tensor,
    taps: Tensor,
    modes: DiagonalModes,
    skip: Tensor,
    state: H3State | None,
    return_state: bool = True,
) -> tuple[Tensor, H3State | None]:
    """Return the outputs, and the new state if asked for; arguments as in `h3`."""
    acc = accumulation_dtype(qkv)
    B, L, _ = qkv.shape
    D, K = taps.shape
    G, N, _ = modes.log_poles.shape
    E = D // G
    q, k, v = qkv.to(acc).chunk(3, dim=-1)
    padded, tail = with_left_context(k, state.keys if state else None, K - 1)
    more = -(K - 1) % ALIGNED
    shifted = grouped_fir(
        torch.nn.functional.pad(padded, (0, 0, more, 0)),
        torch.nn.functional.pad(taps.to(acc), (0, more)),
        L,
    )
    modal = state.modal.reshape(B, D * E, N, 2) if state else None
    scan = DiagonalScan(modes, acc)
    weights = skip.to(acc).repeat_interleave(E * E)
    # E times as many pairs as channels: so many fewer positions at once.
    span = max(CHUNK, CHUNK * CHUNKS_PER_TILE // E)
    outputs = []
    for start in range(0, L, span):
        here = slice(start, min(start + span, L))
        keys, values = shifted[:, here].view(B, -1, G, E, 1), v[:, here].reshape(B, -1, G, 1, E)
        z = (keys * values).reshape(B, -1, D * E)
        y, modal = scan(z, modal, return_end=return_state or here.stop < L)
        y = torch.addcmul(y, z, weights).view(B, -1, G, E, E)
        queries = q[:, here].reshape(B, -1, G, E, 1)
        outputs.append((queries * y).sum(-2).view(B, -1, D))
    joined = (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)).to(qkv.dtype)
    if modal is None:
        return joined, None
    return joined, H3State(tail, modal.view(B, D, E, N, 2))
