"""Launch configurations of the backward kernel of Hyena-LI."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

BACKWARD = "hyena_li_backward"

register(
    BACKWARD,
    {
        "sm_90": KernelConfig({"SPLIT_Z": 1}, num_warps=4, num_stages=1),
        "default": KernelConfig({"SPLIT_Z": 1}, num_warps=4, num_stages=1),
    },
)
