"""Launch configurations of the Hyena-LI kernels."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

# Four warps, always: eight groups of eight chunks times 16 poles give one value to each of 128 threads,
# and triton 3.6.0 does not compile the exchange between groups for eight warps. With 128 registers four
# programs share a multiprocessor.
_FOUR_A_MULTIPROCESSOR = KernelConfig(num_warps=4, max_registers=128)
register("hyena_li_forward", {"default": _FOUR_A_MULTIPROCESSOR})
register("hyena_li_end_state", {"default": _FOUR_A_MULTIPROCESSOR})
register("hyena_li_step", {"default": KernelConfig({"BD": 32}, num_warps=4)})

BACKWARD = "hyena_li_backward"
register(BACKWARD, {"default": KernelConfig({"SPLIT_Z": 1}, num_warps=4)})
