"""Launch configurations of the Hyena-MR kernels.

In the gating and input-gradient kernels a thread should own two channels of one phase (one 4-byte
load), so that its taps and windows stay in registers: `I * BD = 2 * 32 * num_warps`.
"""

from evo_kernels.launch import KernelConfig, register

register(
    "hyena_mr_gate", {"default": KernelConfig({"I": 4, "U": 16, "BD": 64, "TILES": 4}, num_warps=4)}
)
register("hyena_mr_conv", {"default": KernelConfig({"N": 64}, num_warps=4, num_stages=3)})
register("hyena_mr_step_forward", {"default": KernelConfig({"BD": 32}, num_warps=4)})
register(
    "hyena_mr_backward_filter",
    {"default": KernelConfig({"N": 32, "TILES": 4}, num_warps=4, num_stages=2)},
)
register(
    "hyena_mr_backward_inputs",
    {"default": KernelConfig({"I": 4, "U": 8, "BD": 64, "TILES": 16}, num_warps=4)},
)
# Three programs on a multiprocessor want at most 168 registers.
register("hyena_mr_forward", {"default": KernelConfig({"E": 4}, num_warps=4, max_registers=168)})
