"""The featurizer alone: a depthwise causal FIR of a few taps."""

from evo_kernels.short_conv.op import short_conv

__all__ = ["short_conv"]
