"""Launch configurations of the rotary embedding."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

register("rotary", {"default": KernelConfig(num_warps=4)})
