"""Launch configurations of the Hyena-MR kernels.

In the gating and input-gradient kernels a thread should own two channels of one phase (one 4-byte
load), so that its taps and windows stay in registers: `I * BD = 2 * 32 * num_warps`.
"""

from evo_kernels.launch import KernelConfig, register

_GATE = KernelConfig({"I": 4, "U": 16, "BD": 64, "TILES": 4}, num_warps=4)
register("hyena_mr_gate", {"sm_90": _GATE, "default": _GATE})
_CONV = KernelConfig({"N": 64}, num_warps=4, num_stages=3)
register("hyena_mr_conv", {"sm_90": _CONV, "default": _CONV})
_STEP = KernelConfig({"BD": 32}, num_warps=4)
register("hyena_mr_step_forward", {"sm_90": _STEP, "default": _STEP})
_FILTER = KernelConfig({"N": 32, "TILES": 4}, num_warps=4, num_stages=2)
register("hyena_mr_backward_filter", {"sm_90": _FILTER, "default": _FILTER})
_INPUTS = KernelConfig({"I": 4, "U": 8, "BD": 64, "TILES": 16}, num_warps=4)
register("hyena_mr_backward_inputs", {"sm_90": _INPUTS, "default": _INPUTS})
# Three programs on a multiprocessor want at most 168 registers.
_FORWARD = KernelConfig({"E": 4}, num_warps=4, max_registers=168)
register("hyena_mr_forward", {"sm_90": _FORWARD, "default": _FORWARD})
