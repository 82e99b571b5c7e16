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
    hyena_mr,
    hyena_se,
)
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.mixer import Convolution, padded_response
from evo_toolkit.model.precision import PrecisionPolicy

# Positions that `HyenaLI.response` takes as one digit.
_LOW_DIGIT = 1024


def _uniform(*shape: int, bound: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class HyenaSE(Convolution):
    """Short explicit filters, one per group of channels."""

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.policy = policy
        bound = 1 / math.sqrt(config.featurizer_length)
        self.featurizer = _uniform(3 * config.width, config.featurizer_length, bound=bound)
        self.h = _uniform(config.filter_groups, config.se_length, bound=bound)
        self.num_groups = config.filter_groups

    def filters(self) -> tuple[Tensor, ...]:
        return self.featurizer, self.h

    def with_filters(
        self,
        qkv: Tensor,
        filters: tuple[Tensor, ...],
        state: SEState | None = None,
        *,
        return_state: bool = False,
    ) -> tuple[Tensor, SEState | None]:
        featurizer, h = filters
        return hyena_se(
            qkv, featurizer, h, state, return_state=return_state,
            backend=self.policy.backend, rounding=self.policy.rounding,
        )  # fmt: skip

    def response(self, length: int) -> Tensor:
        return padded_response(self.h, None, self.featurizer.shape[0] // 3, length)


class HyenaMR(Convolution):
    """Medium-length explicit filters, one per group of channels, and a skip per channel.

    The filters start as small noise under an exponential window (the paper's regularisation); the
    window is folded into the taps. The skip starts at one.
    """

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.policy = policy
        bound = 1 / math.sqrt(config.featurizer_length)
        G, K = config.filter_groups, config.mr_length
        self.num_groups = G
        self.featurizer = _uniform(3 * config.width, config.featurizer_length, bound=bound)
        # Preset "weak" of the released training: rates 10^-2 to 10^2 per context length.
        rates = torch.logspace(-2, 2, G)
        window = torch.exp(-rates[:, None] * torch.arange(K) / max(config.context_length - 1, 1))
        noise = torch.randn(G, K) * (1e-5 / math.sqrt(config.context_length))
        self.h = nn.Parameter(noise * window)
        self.D = nn.Parameter(torch.ones(config.width))

    def filters(self) -> tuple[Tensor, ...]:
        return self.featurizer, self.h, self.D

    def with_filters(
        self,
        qkv: Tensor,
        filters: tuple[Tensor, ...],
        state: MRState | None = None,
        *,
        return_state: bool = False,
    ) -> tuple[Tensor, MRState | None]:
        featurizer, h, skip = filters
        return hyena_mr(
            qkv, featurizer, h, skip, state, return_state=return_state,
            backend=self.policy.backend, rounding=self.policy.rounding,
        )  # fmt: skip

    def response(self, length: int) -> Tensor:
        return padded_response(self.h, self.D, self.D.shape[0], length)


class HyenaLI(Convolution):
    """Long implicit filters, a sum of real exponentials per channel, and a skip per channel."""

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.policy = policy
        bound = 1 / math.sqrt(config.featurizer_length)
        D, N = config.width, config.li_order
        self.num_groups = D
        self.featurizer = _uniform(3 * D, config.featurizer_length, bound=bound)
        # Rates exp(-1) * U(0.01, 0.1) per base: time constants of 27 to 272 bases.
        rates = torch.empty(D, N).uniform_(0.01, 0.1) * math.exp(-1)
        self.log_poles = nn.Parameter(-rates)
        self.residues = nn.Parameter(torch.randn(D, N) * (0.1 / math.sqrt(N)))
        self.D = nn.Parameter(torch.ones(D))

    def filters(self) -> tuple[Tensor, ...]:
        return self.featurizer, self.log_poles, self.residues, self.D

    def with_filters(
        self,
        qkv: Tensor,
        filters: tuple[Tensor, ...],
        state: LIState | None = None,
        *,
        return_state: bool = False,
    ) -> tuple[Tensor, LIState | None]:
        featurizer, log_poles, residues, skip = filters
        return hyena_li(
            qkv, featurizer, log_poles, residues, skip, state,
            return_state=return_state, backend=self.policy.backend, rounding=self.policy.rounding,
        )  # fmt: skip

    def response(self, length: int) -> Tensor:
        # In two digits of a position: no [D, length, N] tensor exists.
        high, low = (
            torch.arange(-(-length // _LOW_DIGIT), device=self.D.device),
            torch.arange(_LOW_DIGIT, device=self.D.device),
        )
        poles = self.log_poles[:, None]
        rising = self.residues[:, None] * torch.exp(poles * (_LOW_DIGIT * high)[:, None])
        h = rising @ torch.exp(poles * low[:, None]).transpose(1, 2)  # [D, high, low]
        return padded_response(h.flatten(1), self.D, self.D.shape[0], length)
