"""H3, and its diagonal state space model alone (S4D), as mixers: modules that own the parameters.

All of them are float32 whatever the residual stream is; poles and residues are made from them in
float64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_kernels import (
    DiagonalModes,
    DiagonalState,
    H3State,
    diagonal_ssm,
    discretise,
    h3,
    shift_taps,
)
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.mixer import Mixer
from evo_toolkit.model.precision import PrecisionPolicy


class DiagonalModel(Mixer):
    """The parameters of `x' = A x + u`, `y = 2 Re(C x) + D u` with complex diagonal A: S4D.

    They start as S4D-Lin: `A_n = -1/2 + i pi n`, C standard normal, steps log-uniform, so that a
    filter's slowest mode reaches over 2 / step positions. `A = -exp(log_rates) + i frequencies` stays
    in the left half plane, so that no step of training can make a filter that grows.
    """

    def __init__(self, config: StripedHyena2Config, num_filters: int) -> None:
        super().__init__()
        G, N = num_filters, config.ssm_order
        self.discretisation = config.ssm_discretisation
        self.log_rates = nn.Parameter(torch.full((G, N), math.log(0.5)))
        self.frequencies = nn.Parameter((math.pi * torch.arange(N)).repeat(G, 1))
        # Real and imaginary part of variance 1/2 each.
        self.C = nn.Parameter(torch.randn(G, N, 2) * math.sqrt(0.5))
        low, high = math.log(config.ssm_min_step), math.log(config.ssm_max_step)
        self.log_step = nn.Parameter(torch.empty(G).uniform_(low, high))
        self.D = nn.Parameter(torch.randn(G))

    def modes(self) -> DiagonalModes:
        """Poles and residues of the sampled model, float64."""
        return discretise(
            self.log_rates, self.frequencies, self.C, self.log_step, self.discretisation
        )


class S4D(DiagonalModel):
    """A diagonal state space model per channel and a GELU: no gates, the control of H3's tasks."""

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__(config, config.width)
        self.policy = policy

    def mix(
        self, u: Tensor, state: DiagonalState | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, DiagonalState | None]:
        """`[B, L, D]` to `[B, L, D]`, and the new state if asked for."""
        y, new_state = diagonal_ssm(
            u, self.modes(), self.D, state,
            return_state=return_state, backend=self.policy.backend,
        )  # fmt: skip
        return F.gelu(y), new_state


class H3(DiagonalModel):
    """Keys through a shift, times values, into a diagonal model per head, read by the queries.

    The shift starts with its input weights on the first place and small random output weights, so
    that a key is joined with some of the values behind it.
    """

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__(config, config.width // config.h3_head_width)
        self.policy = policy
        D, K = config.width, config.h3_shift_length
        self.shift_B = nn.Parameter(torch.eye(K)[0].repeat(D, 1))
        self.shift_C = nn.Parameter(torch.randn(D, K) / math.sqrt(K))
        self.shift_D = nn.Parameter(torch.randn(D))

    def mix(
        self, qkv: Tensor, state: H3State | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, H3State | None]:
        """`[B, L, 3D]` to `[B, L, D]`, and the new state if asked for."""
        taps = shift_taps(self.shift_B, self.shift_C, self.shift_D)
        return h3(
            qkv, taps, self.modes(), self.D, state,
            return_state=return_state, backend=self.policy.backend,
        )  # fmt: skip
