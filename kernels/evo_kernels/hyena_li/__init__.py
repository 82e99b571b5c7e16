"""Hyena-LI: gated convolution with long implicit filters, sums of real exponentials."""

from evo_kernels.hyena_li.op import hyena_li, hyena_li_end_state, hyena_li_step_forward
from evo_kernels.hyena_li.reference import LIState

__all__ = ["LIState", "hyena_li", "hyena_li_end_state", "hyena_li_step_forward"]
