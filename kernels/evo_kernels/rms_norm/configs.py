"""Launch configurations of root-mean-square normalisation."""

from __future__ import annotations

from evo_kernels.launch import KernelConfig, register

register("rms_norm_forward", {"default": KernelConfig(num_warps=8)})
register("rms_norm_backward", {"default": KernelConfig(num_warps=8)})

# Programs of the backward, each of which sums the gradient of the scale over its own rows. A
# constant, so that the sums do not depend on the device.
BACKWARD_PROGRAMS = 528

# Channels that a program reads at once. One row of 256 channels is half a kilobyte: too little to
# keep the memory busy, five times too slow.
_TILE_CHANNELS = 4096


def rows_per_tile(block: int) -> int:
    """Rows that a program takes together, of `block` channels each (a power of two)."""
    return max(1, _TILE_CHANNELS // block)
