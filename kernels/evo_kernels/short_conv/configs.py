"""Launch configurations of the featurizer's kernels: two channels of one phase per thread."""

from evo_kernels.launch import KernelConfig, register

register(
    "short_conv_forward",
    {"default": KernelConfig({"I": 4, "U": 16, "BD": 64, "TILES": 4}, num_warps=4)},
)
register(
    "short_conv_step_forward",
    {"default": KernelConfig({"I": 1, "U": 16, "BD": 64, "TILES": 1}, num_warps=1)},
)
register(
    "short_conv_backward",
    {"default": KernelConfig({"I": 4, "U": 16, "BD": 64, "TILES": 8}, num_warps=4)},
)
