"""Launch configurations of the log-probabilities of tokens."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

register("token_log_probs", {"default": KernelConfig(num_warps=8)})

# Rows whose logits exist at one time; the twin holds [rows, V] floats, the kernel three times that.
SLICE_ROWS = 8192
