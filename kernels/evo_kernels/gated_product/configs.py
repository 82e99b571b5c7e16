"""Launch configurations of the gated product."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

register("gated_product_forward", {"default": KernelConfig({"BLOCK": 2048}, num_warps=4)})
register("gated_product_backward", {"default": KernelConfig({"BLOCK": 1024}, num_warps=4)})
