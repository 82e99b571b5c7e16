"""Operators of StripedHyena 2 and its kin, each a function from (chunk, state) to (chunk, state).

Exact for any split. Every tensor is logically `[B, L, C]` (batch, positions, channels). An operator
is a folder: `reference.py` is the plain PyTorch twin that anyone can audit, `forward.py` and
`backward.py` are the Triton kernels with what launches them, `configs.py` their launch
configurations, and `op.py` has the public function; H3, S4D and the long convolutions have no
kernels, only twins. Triton is imported when a kernel first runs. The twin accumulates in float32
(float64 for float64 inputs) and is differentiable through its states, twice.
"""

# Imported eagerly: each function has the name of its folder, and the later binding must win.
from evo_kernels.attention_forked import attention_forked, prefix_table
from evo_kernels.attention_two_segment import attention_two_segment
from evo_kernels.diagonal_ssm import DiagonalModes, DiagonalState, diagonal_ssm, discretise
from evo_kernels.h3 import H3State, h3, shift_taps
from evo_kernels.hyena_li import LIState, hyena_li, hyena_li_adjoint_state, hyena_li_end_state
from evo_kernels.hyena_mr import MRState, hyena_mr
from evo_kernels.hyena_se import SEState, hyena_se
from evo_kernels.long_conv import LongConvState, learned_long_conv, long_conv
from evo_kernels.short_conv import short_conv

__all__ = [
    "DiagonalModes",
    "DiagonalState",
    "H3State",
    "LIState",
    "LongConvState",
    "MRState",
    "SEState",
    "attention_forked",
    "attention_two_segment",
    "diagonal_ssm",
    "discretise",
    "h3",
    "hyena_li",
    "hyena_li_adjoint_state",
    "hyena_li_end_state",
    "hyena_mr",
    "hyena_se",
    "learned_long_conv",
    "long_conv",
    "prefix_table",
    "shift_taps",
    "short_conv",
]
