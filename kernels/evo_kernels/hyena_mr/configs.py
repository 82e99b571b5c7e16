"""Launch configurations of the Hyena-MR kernels."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

register(
    "hyena_mr_forward",
    {
        "sm_90": KernelConfig({"N": 32, "U": 4}, num_warps=4),
        "default": KernelConfig({"N": 32, "U": 4}, num_warps=4),
    },
)

register(
    "hyena_mr_backward_query",
    {
        "sm_90": KernelConfig({"N": 32, "U": 4}, num_warps=4),
        "default": KernelConfig({"N": 32, "U": 4}, num_warps=4),
    },
)

register(
    "hyena_mr_backward_key_value",
    {
        "sm_90": KernelConfig({"N": 32, "U": 4}, num_warps=4),
        "default": KernelConfig({"N": 32, "U": 4}, num_warps=4),
    },
)

register(
    "hyena_mr_step_forward",
    {
        "sm_90": KernelConfig({"BD": 32}, num_warps=4),
        "default": KernelConfig({"BD": 32}, num_warps=4),
    },
)
