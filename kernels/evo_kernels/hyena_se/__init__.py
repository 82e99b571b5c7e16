"""Hyena-SE: gated convolution with short explicit filters."""

from evo_kernels.hyena_se.op import SEState, hyena_se

__all__ = ["SEState", "hyena_se"]
