"""Rotary positions for queries and keys in one pass."""

from evo_kernels.rotary.op import rotary
from evo_kernels.rotary.reference import rotate_pairs

__all__ = ["rotary", "rotate_pairs"]
