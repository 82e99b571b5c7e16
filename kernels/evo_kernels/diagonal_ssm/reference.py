"""Plain PyTorch twin of the diagonal state space model: the chunked modal scan with complex poles.

The filter of a group is `h[l] = 2 Re sum_n R_n exp(lambda_n l)`, so the convolution is a linear
recurrence with one complex state per conjugate pair of poles, `s[t] = exp(lambda) s[t-1] + u[t]`,
`y[t] = 2 Re sum_n R_n s_n[t]`. As in Hyena-LI, whose poles are real, positions are cut into chunks of
64: within a chunk the convolution is a product with a triangular Toeplitz matrix, and a chunk
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
from evo_kernels.fir import accumulation_dtype, whole_terms
from evo_kernels.hyena_li.reference import tiles


class DiagonalState(NamedTuple):
    """What earlier positions leave to a diagonal state space model.

    Attributes:
        modal: `sum_{k <= t} exp(lambda (t - k)) u[k]` at the last position t, real and imaginary
            part, `[B, C, N, 2]`, accumulation dtype. Input and output weights are not in it.
    """

    modal: Tensor


class DiagonalScan:
    """Causal convolution with one set of modes; what depends on the modes alone is made once."""

    def __init__(self, modes: DiagonalModes, dtype: torch.dtype) -> None:
        """Take modes of any floating dtype; float64 keeps angles exact. Sums are made in `dtype`."""
        self.modes = modes
        self.dtype = dtype
        self._rising: dict[int, Tensor] = {}
        self._toeplitz: dict[int, Tensor] = {}
        self._between: dict[int, tuple[Tensor, Tensor]] = {}

    def _powers(self, exponents: Tensor) -> Tensor:
        """`exp(lambda e)` in the dtype of the modes: `[E]` to `[G, E, N, 2]`."""
        scaled = self.modes.log_poles[:, None] * exponents[None, :, None, None]
        size, angle = scaled[..., 0].exp(), scaled[..., 1]
        return torch.stack([size * angle.cos(), size * angle.sin()], dim=-1)

    def _counted(self, start: int, stop: int, step: int = 1) -> Tensor:
        poles = self.modes.log_poles
        return torch.arange(start, stop, device=poles.device, dtype=poles.dtype) * step

    def _rising_of(self, chunk: int) -> Tensor:
        """`exp(lambda l)` for every lag l within a chunk, `[G, C, N, 2]`, dtype of the modes."""
        if chunk not in self._rising:
            self._rising[chunk] = self._powers(self._counted(0, chunk))
        return self._rising[chunk]

    def _toeplitz_of(self, chunk: int) -> Tensor:
        """From the padded inputs of a chunk to its outputs, `T[i, j] = h[i - j]`, `[G, C, P]`."""
        if chunk not in self._toeplitz:
            products = complex_product(self.modes.residues[:, None], self._rising_of(chunk))
            h = 2 * products[..., 0].sum(-1)  # [G, C]
            # Row i of the windows over [0 ... 0, h[0] ... h[C-1]] is h[i - C + 1] ... h[i].
            windows = torch.nn.functional.pad(h, (chunk - 1, 0)).unfold(1, chunk, 1)
            self._toeplitz[chunk] = whole_terms(windows.flip(2)).to(self.dtype)
        return self._toeplitz[chunk]

    def _between_chunks(self, chunk: int) -> tuple[Tensor, Tensor]:
        """From padded inputs to the state at the chunk's end, and from that before it to outputs.

        Returns:
            `[G, 2N, P]`, and `[G, C, 2N]` padded.
        """
        if chunk not in self._between:
            into_state = whole_terms(self._rising_of(chunk).flip(1).flatten(2).transpose(1, 2))
            powers = self._powers(self._counted(1, chunk + 1))
            # 2 Re (w s) = 2 Re w Re s - 2 Im w Im s
            w = 2 * complex_product(self.modes.residues[:, None], powers)
            out_of_state = torch.stack([w[..., 0], -w[..., 1]], dim=-1).flatten(2)
            out_of_state = whole_terms(out_of_state)
            self._between[chunk] = (
                into_state.to(self.dtype),
                out_of_state.to(self.dtype),
            )
        return self._between[chunk]

    def _tile(
        self, u: Tensor, carry: Tensor | None, return_end: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Convolve m whole chunks of C positions.

        Args:
            u: `[G, R, m, C]`; the R rows of a group share its filter.
            carry: State before the first position, `[G, R, N, 2]`, or None for zeros.
            return_end: Whether the state after the last position is wanted.

        Returns:
            `[G, R, m, C]` and that state or None.
        """
        G, R, m, C = u.shape
        N = self.modes.log_poles.shape[1]
        rows = whole_terms(u.reshape(G, R * m, C))
        y = rows @ self._toeplitz_of(C).transpose(1, 2)
        if m == 1 and carry is None and not return_end:
            return y.view(G, R, m, C), None
        into_state, out_of_state = self._between_chunks(C)
        # What each chunk adds to the state, as seen at its last position.
        added = (rows @ into_state.transpose(1, 2)).view(G, R, m, N, 2)
        # Inclusive scan over chunks by doubling: log2(m) steps, all chunks at once.
        step = 1
        while step < m:
            decay = self._powers(self._counted(step, step + 1, C)).to(self.dtype)[:, None]
            shifted = torch.nn.functional.pad(added[:, :, :-step], (0, 0, 0, 0, step, 0))
            added = added + complex_product(decay, shifted)
            step *= 2
        entering = torch.nn.functional.pad(added, (0, 0, 0, 0, 1, 0))  # [G, R, m + 1, N, 2]
        if carry is not None:
            to_chunk = self._powers(self._counted(0, m + 1, C)).to(self.dtype)[:, None]
            entering = entering + complex_product(to_chunk, carry[:, :, None])
        if m > 1 or carry is not None:
            before = whole_terms(entering[:, :, :m].reshape(G, R * m, 2 * N))
            y = y + before @ out_of_state.transpose(1, 2)
        # A copy: a view would keep every chunk's state alive with the last one.
        return y.view(G, R, m, C), entering[:, :, m].clone() if return_end else None

    def __call__(
        self, u: Tensor, modal: Tensor | None, *, return_end: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Convolve a chunk of any length.

        Args:
            u: `[B, L, C]` in the dtype of the sums; adjacent channels share a filter, C / G each.
            modal: State before the first position, `[B, C, N, 2]`, or None for zeros.
            return_end: Whether the state after the last position is wanted.

        Returns:
            `[B, L, C]` and that state or None.
        """
        B, L, channels = u.shape
        G, N, _ = self.modes.log_poles.shape
        members = channels // G
        by_group = u.view(B, L, G, members).permute(2, 0, 3, 1).reshape(G, B * members, L)
        carry = None
        if modal is not None:
            carry = modal.to(u.dtype).view(B, G, members, N, 2).transpose(0, 1)
            carry = carry.reshape(G, B * members, N, 2)
        outputs = []
        for start, m, C in tiles(L):
            stop = start + m * C
            tile = by_group[:, :, start:stop].reshape(G, B * members, m, C)
            y, carry = self._tile(tile, carry, return_end or stop < L)
            outputs.append(y.reshape(G, B * members, m * C))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        y = joined.view(G, B, members, L).permute(1, 3, 0, 2).reshape(B, L, channels)
        if carry is None:
            return y, None
        end = carry.view(G, B, members, N, 2).transpose(0, 1)
        return y, end.reshape(B, channels, N, 2)


def diagonal_ssm_reference(
    u: Tensor,
    modes: DiagonalModes,
    skip: Tensor,
    state: DiagonalState | None,
    return_state: bool = True,
) -> tuple[Tensor, DiagonalState | None]:
    """Return `causal_conv(h, u) + skip * u`; arguments as in `diagonal_ssm`."""
    acc = accumulation_dtype(u)
    inputs = u.to(acc)
    y, modal = DiagonalScan(modes, acc)(
        inputs, state.modal if state else None, return_end=return_state
    )
    members = u.shape[2] // skip.shape[0]
    y = torch.addcmul(y, inputs, skip.to(acc).repeat_interleave(members))
    return y.to(u.dtype), None if modal is None else DiagonalState(modal)
