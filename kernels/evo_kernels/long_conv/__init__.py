"""Long convolution: gated convolution with explicit filters as long as the context."""

from evo_kernels.long_conv.op import learned_long_conv, learned_transform_size, long_conv
from evo_kernels.long_conv.reference import Algorithm, LongConvState
from evo_kernels.long_conv.regularise import smooth, smooth_spectrum, squash

__all__ = [
    "Algorithm",
    "LongConvState",
    "learned_long_conv",
    "learned_transform_size",
    "long_conv",
    "smooth",
    "smooth_spectrum",
    "squash",
]
