"""Launch configurations of the featurizer's kernels: two channels of one phase per thread."""

from evo_kernels.launch import KernelConfig, register

_FORWARD = KernelConfig({"I": 4, "U": 16, "BD": 64, "TILES": 4}, num_warps=4)
register("short_conv_forward", {"sm_90": _FORWARD, "default": _FORWARD})
_STEP = KernelConfig({"I": 1, "U": 16, "BD": 64, "TILES": 1}, num_warps=1)
register("short_conv_step_forward", {"sm_90": _STEP, "default": _STEP})
_BACKWARD = KernelConfig({"I": 4, "U": 16, "BD": 64, "TILES": 8}, num_warps=4)
register("short_conv_backward", {"sm_90": _BACKWARD, "default": _BACKWARD})
