"""Hyena-SE: gated convolution with short explicit filters."""

from evo_kernels.hyena_se.op import hyena_se
from evo_kernels.hyena_se.reference import SEState

__all__ = ["SEState", "hyena_se"]
