"""H3: keys through a shift, gated into a diagonal state space model that the queries read."""

from evo_kernels.h3.op import h3
from evo_kernels.h3.reference import H3State, shift_taps

__all__ = ["H3State", "h3", "shift_taps"]
