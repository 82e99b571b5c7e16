"""Launch configurations of two-segment attention."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

register("attention_merge", {"default": KernelConfig(num_warps=4)})
