"""Launch configurations of the Hyena-LI forward kernels."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

# Eight groups of eight chunks times 16 poles give one value to each of 128 threads, hence four warps.
# 128 registers let four programs share a multiprocessor.
register(
    "hyena_li_forward",
    {
        "sm_90": KernelConfig({"maxnreg": 128}, num_warps=4, num_stages=1),
        "default": KernelConfig({"maxnreg": 128}, num_warps=4, num_stages=1),
    },
)
register(
    "hyena_li_end_state",
    {
        "sm_90": KernelConfig({"maxnreg": 128}, num_warps=4, num_stages=1),
        "default": KernelConfig({"maxnreg": 128}, num_warps=4, num_stages=1),
    },
)
register(
    "hyena_li_step",
    {
        "sm_90": KernelConfig({"BD": 32}, num_warps=4, num_stages=1),
        "default": KernelConfig({"BD": 32}, num_warps=4, num_stages=1),
    },
)
