"""Hyena-LI: gated convolution with long implicit filters, sums of real exponentials."""

from evo_kernels.hyena_li.op import LIState, hyena_li

__all__ = ["LIState", "hyena_li"]
