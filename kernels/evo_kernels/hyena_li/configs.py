"""Launch configurations of the Hyena-LI kernels."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

# Four warps, always: eight groups of eight chunks times 16 poles give one value to each of 128 threads,
# and triton 3.6.0 does not compile the exchange between groups for eight warps. With 128 registers four
# programs share a multiprocessor.
_FOUR_A_MULTIPROCESSOR = KernelConfig(num_warps=4, max_registers=128)
register("hyena_li_forward", {"sm_90": _FOUR_A_MULTIPROCESSOR, "default": _FOUR_A_MULTIPROCESSOR})
register("hyena_li_end_state", {"sm_90": _FOUR_A_MULTIPROCESSOR, "default": _FOUR_A_MULTIPROCESSOR})
register(
    "hyena_li_step",
    {
        "sm_90": KernelConfig({"BD": 32}, num_warps=4, num_stages=1),
        "default": KernelConfig({"BD": 32}, num_warps=4, num_stages=1),
    },
)

BACKWARD = "hyena_li_backward"
register(
    BACKWARD,
    {
        "sm_90": KernelConfig({"SPLIT_Z": 1}, num_warps=4, num_stages=1),
        "default": KernelConfig({"SPLIT_Z": 1}, num_warps=4, num_stages=1),
    },
)
