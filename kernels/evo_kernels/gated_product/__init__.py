"""The gate of the MLP: one product, with an exact GELU or without."""

from evo_kernels.gated_product.op import gated_product

__all__ = ["gated_product"]
