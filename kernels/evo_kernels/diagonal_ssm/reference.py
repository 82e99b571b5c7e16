"""Plain PyTorch twin of the diagonal state space model: the chunked modal scan with complex poles.

The filter of a group is `h[l] = 2 Re sum_n R_n exp(lambda_n l)`, so the convolution is a linear
recurrence with one complex state per conjugate pair of poles, `s[t] = exp(lambda) s[t-1] + u[t]`,
`y[t] = 2 Re sum_n R_n s_n[t]`. As in Hyena-LI, whose poles are real, positions are cut into chunks of
`CHUNK`: within a chunk the convolution is a product with a triangular Toeplitz matrix, and a chunk
hands its state to the next (state passing). Only non-negative powers of numbers in the unit disk
occur, so nothing overflows. No tensor of the filter's full length ever exists.

Complex numbers are pairs (real, imaginary) in the last dimension: every product is a real matrix
product with twice the columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evo_kernels.diagonal_ssm.modes import DiagonalModes, complex_product
from evo_kernels.fir import accumulation_dtype
from evo_kernels.hyena_li.reference import CHUNK, CHUNKS_PER_TILE


class DiagonalState(NamedTuple):
    """What earlier positions leave to a diagonal state space model.

    Attributes:
        modal: `sum_{k <= t} exp(lambda (t - k)) u[k]` at the last position t, real and imaginary
            part, `[B, C, N, 2]`, accumulation dtype. Input and output weights are not in it.
    """

    modal: Tensor


class _Tables(NamedTuple):
    """What a chunk of C positions needs of the modes, in the accumulation dtype.

    Attributes:
        toeplitz: `[G, C, C]`: from inputs to outputs within the chunk.
        into_state: `[G, C, 2N]`: from inputs to the state at the chunk's last position.
        out_of_state: `[G, C, 2N]`: from the state before the chunk to its outputs.
    """

    toeplitz: Tensor
    into_state: Tensor
    out_of_state: Tensor


class DiagonalScan:
    """Causal convolution with one set of modes; what depends on the modes alone is made once."""

    def __init__(self, modes: DiagonalModes, dtype: torch.dtype) -> None:
        """Take modes of any floating dtype; float64 keeps angles exact. Sums are made in `dtype`."""
        self.modes = modes
        self.dtype = dtype
        self._tables: dict[int, _Tables] = {}

    def _powers(self, exponents: Tensor) -> Tensor:
        """`exp(lambda e)` in the dtype of the modes: `[E]` to `[G, E, N, 2]`."""
        scaled = self.modes.log_poles[:, None] * exponents[None, :, None, None]
        size, angle = scaled[..., 0].exp(), scaled[..., 1]
        return torch.stack([size * angle.cos(), size * angle.sin()], dim=-1)

    def _counted(self, start: int, stop: int, step: int = 1) -> Tensor:
        poles = self.modes.log_poles
        return torch.arange(start, stop, device=poles.device, dtype=poles.dtype) * step

    def _tables_of(self, chunk: int) -> _Tables:
        if chunk not in self._tables:
            residues = self.modes.residues[:, None]
            rising = self._powers(self._counted(0, chunk))  # exp(lambda l)
            h = 2 * complex_product(residues, rising)[..., 0].sum(-1)  # [G, C]
            position = torch.arange(chunk, device=h.device)
            lag = position[:, None] - position[None, :]
            toeplitz = torch.where(lag >= 0, h[:, lag.clamp(min=0)], h.new_zeros(()))
            # 2 Re (w s) = 2 Re w Re s - 2 Im w Im s
            w = 2 * complex_product(residues, self._powers(self._counted(1, chunk + 1)))
            out = torch.stack([w[..., 0], -w[..., 1]], dim=-1)
            self._tables[chunk] = _Tables(
                toeplitz.to(self.dtype),
                rising.flip(1).flatten(2).to(self.dtype),
                out.flatten(2).to(self.dtype),
            )
        return self._tables[chunk]

    def _tile(self, u: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve m whole chunks of C positions.

        Args:
            u: `[G, R, m, C]`; the R rows of a group share its filter.
            carry: State before the first position, `[G, R, N, 2]`.

        Returns:
            `[G, R, m, C]` and the state after the last position.
        """
        G, R, m, C = u.shape
        N = carry.shape[2]
        tables = self._tables_of(C)
        rows = u.reshape(G, R * m, C)
        y = rows @ tables.toeplitz.transpose(1, 2)
        # What each chunk adds to the state, as seen at its last position.
        added = (rows @ tables.into_state).view(G, R, m, N, 2)
        # Inclusive scan over chunks by doubling: log2(m) steps, all chunks at once.
        step = 1
        while step < m:
            decay = self._powers(self._counted(step, step + 1, C)).to(self.dtype)[:, None]
            shifted = torch.nn.functional.pad(added[:, :, :-step], (0, 0, 0, 0, step, 0))
            added = added + complex_product(decay, shifted)
            step *= 2
        to_chunk = self._powers(self._counted(0, m + 1, C)).to(self.dtype)[:, None]
        entering = complex_product(to_chunk, carry[:, :, None])  # [G, R, m + 1, N, 2]
        entering = entering + torch.nn.functional.pad(added, (0, 0, 0, 0, 1, 0))
        before = entering[:, :, :m].reshape(G, R * m, 2 * N)
        y = y + before @ tables.out_of_state.transpose(1, 2)
        # A copy: a view would keep every chunk's state alive with the last one.
        return y.view(G, R, m, C), entering[:, :, m].clone()

    def __call__(self, u: Tensor, modal: Tensor | None) -> tuple[Tensor, Tensor]:
        """Convolve a chunk of any length.

        Args:
            u: `[B, L, C]` in the dtype of the sums; adjacent channels share a filter, C / G each.
            modal: State before the first position, `[B, C, N, 2]`, or None for zeros.

        Returns:
            `[B, L, C]` and the state after the last position.
        """
        B, L, channels = u.shape
        G, N, _ = self.modes.log_poles.shape
        members = channels // G
        by_group = u.view(B, L, G, members).permute(2, 0, 3, 1).reshape(G, B * members, L)
        if modal is None:
            carry = u.new_zeros(G, B * members, N, 2)
        else:
            carry = modal.to(u.dtype).view(B, G, members, N, 2).transpose(0, 1)
            carry = carry.reshape(G, B * members, N, 2)
        outputs = []
        position = 0
        while position < L:
            rest = L - position
            C = min(CHUNK, rest)
            m = min(CHUNKS_PER_TILE, rest // C)
            tile = by_group[:, :, position : position + m * C].reshape(G, B * members, m, C)
            y, carry = self._tile(tile, carry)
            outputs.append(y.reshape(G, B * members, m * C))
            position += m * C
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        y = joined.view(G, B, members, L).permute(1, 3, 0, 2).reshape(B, L, channels)
        end = carry.view(G, B, members, N, 2).transpose(0, 1).reshape(B, channels, N, 2)
        return y, end


def diagonal_ssm_reference(
    u: Tensor, modes: DiagonalModes, skip: Tensor, state: DiagonalState | None
) -> tuple[Tensor, DiagonalState]:
    """Return `causal_conv(h, u) + skip * u`; arguments as in `diagonal_ssm`."""
    acc = accumulation_dtype(u)
    inputs = u.to(acc)
    y, modal = DiagonalScan(modes, acc)(inputs, state.modal if state else None)
    members = u.shape[2] // skip.shape[0]
    y = torch.addcmul(y, inputs, skip.to(acc).repeat_interleave(members))
    return y.to(u.dtype), DiagonalState(modal)
