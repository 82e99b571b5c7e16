"""Root-mean-square normalisation, alone or with the residual addition before it."""

from evo_kernels.rms_norm.op import add_rms_norm, rms_norm

__all__ = ["add_rms_norm", "rms_norm"]
