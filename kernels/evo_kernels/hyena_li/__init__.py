"""Hyena-LI: gated convolution with long implicit filters, sums of real exponentials."""

from evo_kernels.hyena_li.op import hyena_li, hyena_li_adjoint_state, hyena_li_end_state
from evo_kernels.hyena_li.reference import LIState

__all__ = ["LIState", "hyena_li", "hyena_li_adjoint_state", "hyena_li_end_state"]
