"""From a diagonal state space model in continuous time to the poles and residues of its filter.

`x' = A x + B u`, `y = 2 Re(C x)` with complex diagonal A in the left half plane, sampled with a step
of its own per filter. Complex numbers are pairs (real, imaginary) in the last dimension, which every
checkpoint format, collective and compiler takes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from evo_kernels.checks import check_shape
from evo_kernels.errors import KernelError

Discretisation = Literal["bilinear", "zoh"]

# A sampled pole of exactly zero has no logarithm; one of 1.5e-8 is gone after one position as well.
_NO_POLE = 2.0**-52 - 1


class DiagonalModes(NamedTuple):
    """The filter `h[l] = 2 Re sum_n residues[n] exp(log_poles[n] l)`, one per group.

    Attributes:
        log_poles: `[G, N, 2]`: logarithm of the pole's size, not above 0, and its angle per position.
        residues: `[G, N, 2]`: real and imaginary part.
    """

    log_poles: Tensor
    residues: Tensor


def complex_product(a: Tensor, b: Tensor) -> Tensor:
    """Product of complex numbers in pairs, broadcast: `[..., 2]`."""
    (ar, ai), (br, bi) = a.unbind(-1), b.unbind(-1)
    return torch.stack([ar * br - ai * bi, ar * bi + ai * br], dim=-1)


def _complex_quotient(a: Tensor, b: Tensor) -> Tensor:
    conjugate = torch.stack([b[..., 0], -b[..., 1]], dim=-1)
    return complex_product(a, conjugate) / b.square().sum(-1, keepdim=True)


def discretise(
    log_rates: Tensor,
    frequencies: Tensor,
    output: Tensor,
    log_step: Tensor,
    method: Discretisation = "bilinear",
) -> DiagonalModes:
    """Sample a diagonal state space model with `A = -exp(log_rates) + i frequencies` and B = 1.

    With a = step A, a pole is `(1 + a/2) / (1 - a/2)` and its input weight `step / (1 - a/2)`
    (bilinear), or `exp(a)` and `(exp(a) - 1) / A` (zoh: the input is held between samples). The
    residue is the input weight times the output weight; a learned B would be one more factor.

    Shapes: G filters, N conjugate pairs of poles per filter.

    Args:
        log_rates: Logarithms of -Re A, `[G, N]`: the poles decay whatever is learned.
        frequencies: Im A, `[G, N]`.
        output: The weights C, `[G, N, 2]`.
        log_step: Logarithm of the step, `[G]`.
        method: "bilinear" or "zoh".

    Returns:
        Float64, whatever the parameters are: an angle that is rounded to float32 is wrong by as much
        as its distance in positions.

    Raises:
        KernelError: if shapes disagree, or for another method.

    Source: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models",
    arXiv 2206.11893, section 3.
    """
    if method not in get_args(Discretisation):
        raise KernelError(f"discretisation is {method!r}; use bilinear or zoh")
    check_shape("log_rates", log_rates, (None, None))
    G, N = log_rates.shape
    check_shape("frequencies", frequencies, (G, N))
    check_shape("C", output, (G, N, 2))
    check_shape("log_step", log_step, (G,))
    step = log_step.double().exp()[:, None]
    x, y = -step * log_rates.double().exp(), step * frequencies.double()
    if method == "bilinear":
        below = torch.stack([1 - x / 2, -y / 2], dim=-1)
        # |1 + a/2|^2 / |1 - a/2|^2 - 1, without cancellation for slow poles.
        excess = (2 * x / below.square().sum(-1)).clamp(min=_NO_POLE)
        log_size = torch.log1p(excess) / 2
        angle = torch.atan2(y / 2, 1 + x / 2) + torch.atan2(y / 2, 1 - x / 2)
        input_weight = _complex_quotient(
            torch.stack([step.expand_as(x), torch.zeros_like(x)], dim=-1), below
        )
    else:
        log_size, angle = x, y
        # exp(a) - 1 without cancellation for a near 0.
        risen = torch.stack(
            [torch.expm1(x) * y.cos() - 2 * (y / 2).sin().square(), x.exp() * y.sin()], dim=-1
        )
        input_weight = step[..., None] * _complex_quotient(risen, torch.stack([x, y], dim=-1))
    log_poles = torch.stack([log_size, angle], dim=-1)
    return DiagonalModes(log_poles, complex_product(input_weight, output.double()))
