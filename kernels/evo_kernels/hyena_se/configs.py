"""Launch configurations of the Hyena-SE kernels.

A thread should own two channels of one phase (one 4-byte load), so that its taps and windows stay in
registers: `I * BD = 2 * 32 * num_warps`.
"""

from evo_kernels.launch import KernelConfig, register

_FORWARD = KernelConfig({"I": 4, "U": 8, "BD": 64, "TILES": 4}, num_warps=4)
register("hyena_se_forward", {"sm_90": _FORWARD, "default": _FORWARD})
_STEP = KernelConfig({"I": 1, "U": 16, "BD": 64, "TILES": 1}, num_warps=1)
register("hyena_se_step_forward", {"sm_90": _STEP, "default": _STEP})
_BACKWARD = KernelConfig({"I": 4, "U": 8, "BD": 64, "TILES": 16}, num_warps=4)
register("hyena_se_backward", {"sm_90": _BACKWARD, "default": _BACKWARD})
