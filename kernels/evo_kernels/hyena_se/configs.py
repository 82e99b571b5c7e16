"""Launch configurations of the Hyena-SE kernels.

`I * BD = V * 32 * num_warps`: a thread owns U rows of V channels, two in the forward (4-byte loads) and
one in the backward, whose windows, taps and sums fill the 128 registers that leave four programs of
four warps on a multiprocessor.
"""

from evo_kernels.launch import KernelConfig, register

register(
    "hyena_se_forward",
    {
        "default": KernelConfig(
            {"I": 4, "U": 16, "BD": 64, "TILES": 4}, num_warps=4, max_registers=128
        )
    },
)
register(
    "hyena_se_step_forward",
    {"default": KernelConfig({"I": 1, "U": 16, "BD": 64, "TILES": 1}, num_warps=1)},
)
register(
    "hyena_se_backward",
    {"default": KernelConfig({"I": 4, "U": 8, "BD": 32, "TILES": 16}, num_warps=4)},
)
