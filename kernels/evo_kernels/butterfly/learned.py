"""Butterflies with learned blocks: the small dense matrices of the passes become parameters.

The transform goes through passes of `LEARNED_RADIX` points, with one smaller pass at the end where
the length asks for it. All passes of one size share one matrix for each head; twiddles stay as they
are. Free matrices start as the Fourier transform's; additive ones are the Fourier transform's plus a
learned term that starts as small noise. Inputs and filter have matrices of their own, and the inverse
stays the true one, so that a trained butterfly is no longer a convolution: it mixes positions with
weights that depend on both places, later ones included.

Source: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", 2023,
section 3 ("learned butterfly extension").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from evo_kernels.butterfly.reference import _complex, dft_matrix
from evo_kernels.errors import KernelError

LEARNED_RADIX = 16
"""Points of a learned pass, but for a smaller last one."""
INITIAL_NOISE = 0.01
"""Standard deviation of the additive terms before training."""

LearnedForm = Literal["free", "additive"]


def learned_block_sizes(length: int, radix: int = LEARNED_RADIX) -> tuple[int, ...]:
    """Points of each pass over a power of two: as many of `radix` as go into it, then the rest.

    Raises:
        KernelError: if `length` or `radix` is not a power of two from 2 on.
    """
    for name, value in (("a learned butterfly", length), ("a learned pass", radix)):
        if value < 2 or value & (value - 1):
            raise KernelError(f"{name} has {value} points; use a power of two from 2 on")
    sizes = []
    while length > 1:
        sizes.append(min(radix, length))
        length //= sizes[-1]
    return tuple(sizes)


def _check_form(form: str) -> None:
    if form not in get_args(LearnedForm):
        raise KernelError(f'form is {form!r}; use "free" or "additive"')


def initial_factors(sizes: Sequence[int], heads: int, form: LearnedForm) -> dict[int, Tensor]:
    """First values of the parameters of one transform: size of a pass to `[heads, n, n, 2]` float32.

    The last dimension holds real and imaginary part.

    Args:
        sizes: Points of each pass; those of one size share their matrix.
        heads: Groups of channels with matrices of their own.
        form: "free": the Fourier transform's matrices; "additive": normal noise of
            `INITIAL_NOISE`, drawn from torch's own generator.

    Raises:
        KernelError: for an unknown form.
    """
    _check_form(form)
    factors = {}
    for n in sorted(set(sizes), reverse=True):
        if form == "free":
            pairs = torch.view_as_real(dft_matrix(n, torch.complex64))
            factors[n] = pairs.expand(heads, n, n, 2).clone()
        else:
            factors[n] = torch.randn(heads, n, n, 2) * INITIAL_NOISE
    return factors


def learned_matrices(
    factors: Mapping[int, Tensor], sizes: Sequence[int], form: LearnedForm, dtype: torch.dtype
) -> list[Tensor]:
    """The matrices of the passes, for `butterfly`.

    Args:
        factors: Size of a pass to its parameters, `[H, n, n, 2]`, as from `initial_factors`.
        sizes: Points of each pass.
        form: "free": the parameters are the matrices; "additive": they are added to the Fourier
            transform's.
        dtype: Real dtype that the products accumulate in.

    Returns:
        For each pass complex `[H, n, n]`.

    Raises:
        KernelError: for an unknown form.
    """
    _check_form(form)
    by_size = {}
    for n in set(sizes):
        matrix = torch.view_as_complex(factors[n].to(dtype).contiguous())
        if form == "additive":
            matrix = matrix + dft_matrix(n, _complex(dtype), matrix.device)
        by_size[n] = matrix
    return [by_size[n] for n in sizes]
