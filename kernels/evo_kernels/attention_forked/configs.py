"""Launch configurations of attention over forked prefixes."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

register(
    "attention_forked",
    {"default": KernelConfig({"QUERIES": 128, "KEYS": 32}, num_warps=8, num_stages=3)},
)
