"""Plain PyTorch twin of the butterfly: a Fourier transform of N = N_1 N_2 ... N_p points in p passes.

With N = n M, write the time as `t = M a + b` and the frequency as `f = c + n d`. Then
`exp(-2 pi i t f / N)` is the product of three factors,

    exp(-2 pi i a c / n)      a transform of n points over a: one small dense product
    exp(-2 pi i b c / N)      a twiddle
    exp(-2 pi i b d / M)      a transform of M points over b, for every c on its own

and the last one is taken apart the same way. Each pass is a product with a block-diagonal matrix of
N / N_i equal blocks, between permutations that are views. The frequencies come out in the order of
the digits c, d, ...; a convolution multiplies spectra in that order and never sorts them.

The first pass over a sequence that does not fit into fast memory leaves n independent problems of M
points that do: passes 2 to p, the product of the spectra and the inverses of passes p to 2 are then
one visit, and the inverse of pass 1 is the third ("three-pass").

Source: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", 2023,
section 3; Cooley and Tukey, 1965.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evo_kernels.errors import KernelError


def _unit_roots(numerators: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """`exp(-2 pi i k / n)`, complex `dtype`; whole numerators are reduced first, so that none is large."""
    angle = (numerators % n).to(torch.float64) * (-2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle).to(dtype)


def _outer(n: int, m: int, device: torch.device | str) -> Tensor:
    return torch.arange(n, device=device)[:, None] * torch.arange(m, device=device)


def dft_matrix(n: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """`exp(-2 pi i a c / n)` in row c and column a, `[n, n]`, complex `dtype`."""
    return _unit_roots(_outer(n, n, device), n, dtype)


def _twiddles(n: int, m: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`exp(-2 pi i b c / (n m))` in row c and column b, `[n, m]`."""
    return _unit_roots(_outer(n, m, device), n * m, dtype)


def block_sizes(length: int, order: int) -> tuple[int, ...]:
    """Divide a power of two into `order` powers of two, as equal as they can be, largest first.

    Raises:
        KernelError: if `length` is not a power of two, or has fewer factors of two than `order`.
    """
    twos = length.bit_length() - 1
    if length < 2 or length != 1 << twos:
        raise KernelError(
            f"a butterfly of {length} points does not exist; the number must be a power of two from 2 on"
        )
    if not 1 <= order <= twos:
        raise KernelError(
            f"a butterfly of {length} points has no order {order}; use 1 to {twos} passes"
        )
    share, more = divmod(twos, order)
    return tuple(1 << (share + (i < more)) for i in range(order))


def frequencies(sizes: Sequence[int]) -> Tensor:
    """Which frequency stands at each place of a butterfly's result, `[N]` int64."""
    found = torch.zeros(1, dtype=torch.int64)
    stride = 1
    for n in sizes:
        found = (found[:, None] + stride * torch.arange(n)).flatten()
        stride *= n
    return found


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype in (torch.float64, torch.complex128) else torch.complex64


def butterfly(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Transform the last dimension in one pass for each matrix.

    With `dft_matrix` for every pass this is the Fourier transform, frequencies in the order of
    `frequencies`. Any other matrices may stand in their place; the twiddles remain.

    Args:
        x: Real or complex, `[B, H, C, N]`: B sequences of H heads of C channels.
        matrices: One for each pass, complex: `[n_i, n_i]` for all heads or `[H, n_i, n_i]`; N is
            the product of the n_i.

    Returns:
        Complex `[B, H, C, N]`.
    """
    lead, N = x.shape[:-1], x.shape[-1]
    dtype = _complex(x.dtype)
    x = x.to(dtype)
    done, rest = 1, N
    for matrix in matrices:
        n = matrix.shape[-1]
        rest //= n
        x = x.reshape(*lead, done, n, rest)
        pattern = "hca,bhkdam->bhkdcm" if matrix.dim() == 3 else "ca,bhkdam->bhkdcm"
        x = torch.einsum(pattern, matrix.to(dtype), x)
        if rest > 1:
            x = x * _twiddles(n, rest, dtype, x.device)
        done *= n
    assert rest == 1, f"{N} points are not the product of the passes"
    return x.reshape(*lead, N)


def inverse_butterfly(spectrum: Tensor, sizes: Sequence[int]) -> Tensor:
    """The inverse of the Fourier transform by butterfly: the same passes, conjugate, last one first.

    Args:
        spectrum: Complex, `[..., N]`, frequencies in the order of `frequencies(sizes)`.
        sizes: Points of each pass, as in the forward transform.

    Returns:
        Complex `[..., N]`, in the order of time.
    """
    lead, N = spectrum.shape[:-1], spectrum.shape[-1]
    x, dtype = spectrum, spectrum.dtype
    done, rest = N, 1
    for n in reversed(sizes):
        done //= n
        x = x.reshape(*lead, done, n, rest)
        if rest > 1:
            x = x * _twiddles(n, rest, dtype, x.device).conj()
        x = torch.einsum("ac,...dcm->...dam", dft_matrix(n, dtype, x.device).conj(), x)
        rest *= n
    assert done == 1, f"{N} points are not the product of the passes"
    return x.reshape(*lead, N) / N
