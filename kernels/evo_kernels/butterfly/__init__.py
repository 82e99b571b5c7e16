"""Butterflies: the Fourier transform as a product of small block-diagonal ones, fixed and learned."""

from evo_kernels.butterfly.learned import (
    LEARNED_RADIX,
    LearnedForm,
    initial_factors,
    learned_block_sizes,
    learned_matrices,
)
from evo_kernels.butterfly.reference import (
    block_sizes,
    butterfly,
    dft_matrix,
    frequencies,
    inverse_butterfly,
)

__all__ = [
    "LEARNED_RADIX",
    "LearnedForm",
    "block_sizes",
    "butterfly",
    "dft_matrix",
    "frequencies",
    "initial_factors",
    "inverse_butterfly",
    "learned_block_sizes",
    "learned_matrices",
]
