"""The Hyena mixers: modules that own the filters and call the operators.

Filters, skips, poles and residues are float32 whatever the residual stream is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evo_kernels import (
    LIState,
    MRState,
    SEState,
    hyena_li,
    hyena_li_end_state,
    hyena_mr,
    hyena_se,
)
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.mixer import Mixer
from evo_toolkit.model.precision import PrecisionPolicy


def _uniform(*shape: int, bound: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class HyenaSE(Mixer):
    """Short explicit filters, one per group of channels."""

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.policy = policy
        bound = 1 / math.sqrt(config.featurizer_length)
        self.featurizer = _uniform(3 * config.width, config.featurizer_length, bound=bound)
        self.h = _uniform(config.filter_groups, config.se_length, bound=bound)

    def mix(
        self, qkv: Tensor, state: SEState | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, SEState | None]:
        """`[B, L, 3D]` to `[B, L, D]`, and the new state if asked for."""
        return hyena_se(
            qkv, self.featurizer, self.h, state, return_state=return_state,
            backend=self.policy.backend, rounding=self.policy.rounding,
        )  # fmt: skip


class HyenaMR(Mixer):
    """Medium-length explicit filters, one per group of channels, and a skip per channel.

    The filters start as small noise under an exponential window (the paper's regularisation); the
    window is folded into the taps. The skip starts at one.
    """

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.policy = policy
        bound = 1 / math.sqrt(config.featurizer_length)
        G, K = config.filter_groups, config.mr_length
        self.featurizer = _uniform(3 * config.width, config.featurizer_length, bound=bound)
        # Preset "weak" of the released training: rates 10^-2 to 10^2 per context length.
        rates = torch.logspace(-2, 2, G)
        window = torch.exp(-rates[:, None] * torch.arange(K) / max(config.context_length - 1, 1))
        noise = torch.randn(G, K) * (1e-5 / math.sqrt(config.context_length))
        self.h = nn.Parameter(noise * window)
        self.D = nn.Parameter(torch.ones(config.width))

    def mix(
        self, qkv: Tensor, state: MRState | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, MRState | None]:
        """`[B, L, 3D]` to `[B, L, D]`, and the new state if asked for."""
        return hyena_mr(
            qkv, self.featurizer, self.h, self.D, state, return_state=return_state,
            backend=self.policy.backend, rounding=self.policy.rounding,
        )  # fmt: skip


class HyenaLI(Mixer):
    """Long implicit filters, a sum of real exponentials per channel, and a skip per channel."""

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.policy = policy
        bound = 1 / math.sqrt(config.featurizer_length)
        D, N = config.width, config.li_order
        self.featurizer = _uniform(3 * D, config.featurizer_length, bound=bound)
        # Rates exp(-1) * U(0.01, 0.1) per base: time constants of 27 to 272 bases.
        rates = torch.empty(D, N).uniform_(0.01, 0.1) * math.exp(-1)
        self.log_poles = nn.Parameter(-rates)
        self.residues = nn.Parameter(torch.randn(D, N) * (0.1 / math.sqrt(N)))
        self.D = nn.Parameter(torch.ones(D))

    def mix(
        self, qkv: Tensor, state: LIState | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, LIState | None]:
        """`[B, L, 3D]` to `[B, L, D]`, and the new state if asked for."""
        return hyena_li(
            qkv, self.featurizer, self.log_poles, self.residues, self.D, state,
            return_state=return_state, backend=self.policy.backend, rounding=self.policy.rounding,
        )  # fmt: skip

    def end_state(self, qkv: Tensor, state: LIState | None = None) -> Tensor:
        """The modal state after the last position, `[B, D, N]`, without the outputs.

        With gradients it takes as long as `mix`; without, half.
        """
        if torch.is_grad_enabled():
            new_state = self.mix(qkv, state, return_state=True)[1]
            assert new_state is not None
            return new_state.modal
        return hyena_li_end_state(
            qkv, self.featurizer, self.log_poles, state, backend=self.policy.backend
        )
