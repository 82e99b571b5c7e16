"""Hyena-MR: gated convolution with medium-length regularised filters."""

from evo_kernels.hyena_mr.op import MRState, hyena_mr

__all__ = ["MRState", "hyena_mr"]
