"""S4D: convolution with filters of complex exponentials, from a diagonal state space model."""

from evo_kernels.diagonal_ssm.modes import DiagonalModes, Discretisation, discretise
from evo_kernels.diagonal_ssm.op import diagonal_ssm
from evo_kernels.diagonal_ssm.reference import DiagonalState

__all__ = ["DiagonalModes", "DiagonalState", "Discretisation", "diagonal_ssm", "discretise"]
