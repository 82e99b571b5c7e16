"""Hyena-MR: gated convolution with medium-length regularised filters."""

from evo_kernels.hyena_mr.op import hyena_mr
from evo_kernels.hyena_mr.reference import MRState

__all__ = ["MRState", "hyena_mr"]
