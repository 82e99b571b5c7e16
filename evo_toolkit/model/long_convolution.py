"""The long convolution as a mixer: explicit filters as long as the context, regularised on their way."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_kernels import LongConvState, learned_long_conv, long_conv
from evo_kernels.butterfly import initial_factors, learned_block_sizes
from evo_kernels.long_conv import (
    Algorithm,
    learned_transform_size,
    smooth,
    smooth_spectrum,
    squash,
)
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.mixer import Convolution, padded_response
from evo_toolkit.model.precision import PrecisionPolicy

# Standard deviations of the two initialisations.
_RANDOM = 0.002
_GEOMETRIC = 0.02


def _first_filters(config: StripedHyena2Config) -> nn.Parameter:
    """Small noise, or noise that fades: at rates from one a filter length to half the width times that."""
    D, K = config.width, config.long_length
    noise = torch.randn(D, K)
    if config.long_init == "random":
        return nn.Parameter(noise * _RANDOM)
    rates = (D / 2) ** (torch.arange(D) / D)
    lags = torch.arange(K) / K
    return nn.Parameter(noise * _GEOMETRIC * torch.exp(-rates[:, None] * lags))


class LongConvolution(Convolution):
    """Explicit long filters, one per channel, and a skip per channel.

    In every forward the filters are smoothed, squashed and, in training, thinned out by dropout; the
    parameters are what they were before that. Dropout draws anew for every call, so that pieces of
    one sequence see one filter in evaluation alone. Without gradients there is no dropout, whatever
    the mode: a score must not depend on how a model was left.

    Attributes:
        algorithm: How causal and bidirectional convolutions are made, as in `long_conv`; the values
            are the same but for rounding.
        order: Passes of the butterfly, where that is the algorithm.
    """

    algorithm: Algorithm = "auto"
    order: int = 2

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.config = config
        D, taps = config.width, config.featurizer_length
        self.num_groups = D
        bound = 1 / math.sqrt(taps)
        self.featurizer = nn.Parameter(torch.empty(3 * D, taps).uniform_(-bound, bound))
        self.h = _first_filters(config)
        self.h_ahead = _first_filters(config) if config.long_bidirectional else None
        self.D = nn.Parameter(torch.ones(D))
        self.input_factors = self.filter_factors = None
        if config.long_butterfly != "fixed":
            self.input_factors = self._first_factors()
            self.filter_factors = self._first_factors()

    def _first_factors(self) -> nn.ParameterDict:
        assert self.config.long_butterfly != "fixed"
        sizes = learned_block_sizes(learned_transform_size(self.config.long_length))
        heads = self.config.long_butterfly_heads
        factors = initial_factors(sizes, heads, self.config.long_butterfly)
        return nn.ParameterDict({str(n): nn.Parameter(x) for n, x in factors.items()})

    def regularised(self, h: Tensor) -> Tensor:
        """Filters `[D, K]` as the convolution takes them."""
        config = self.config
        h = smooth_spectrum(smooth(h, config.long_smooth), config.long_smooth_spectrum)
        return F.dropout(squash(h, config.long_squash), config.long_dropout, self._drops)

    @property
    def _drops(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def filters(self) -> tuple[Tensor, ...]:
        h = self.regularised(self.h)
        ahead = () if self.h_ahead is None else (self.regularised(self.h_ahead),)
        return self.featurizer, h, self.D, *ahead

    def with_filters(
        self,
        qkv: Tensor,
        filters: tuple[Tensor, ...],
        state: LongConvState | None = None,
        *,
        return_state: bool = False,
    ) -> tuple[Tensor, LongConvState | None]:
        """As `Convolution.with_filters`.

        Raises:
            UsageError: for a state, given or asked for, where outputs depend on later positions.
        """
        if state is not None or return_state:
            self.config.require_causal("take a sequence in pieces, as generation and scores do")
        featurizer, h, skip, *rest = filters
        ahead = rest[0] if rest else None
        if self.input_factors is None or self.filter_factors is None:
            return long_conv(
                qkv, featurizer, h, skip, state, h_ahead=ahead, algorithm=self.algorithm,
                order=self.order, return_state=return_state, backend=self.policy.backend,
                rounding=self.policy.rounding,
            )  # fmt: skip
        assert self.config.long_butterfly != "fixed"
        y = learned_long_conv(
            qkv, featurizer, h, skip, self._thinned(self.input_factors),
            self._thinned(self.filter_factors), form=self.config.long_butterfly, h_ahead=ahead,
            backend=self.policy.backend, rounding=self.policy.rounding,
        )  # fmt: skip
        return y, None

    def response(self, length: int) -> Tensor:
        """As `Convolution.response`.

        Raises:
            UsageError: where outputs depend on later positions.
        """
        self.config.require_causal("be convolved by an impulse response")
        return padded_response(self.regularised(self.h), self.D, self.D.shape[0], length)

    def _thinned(self, factors: nn.ParameterDict) -> dict[int, Tensor]:
        """Factors by size, after dropout of complex entries as wholes."""
        share = self.config.long_butterfly_dropout
        if not (self._drops and share):
            return {int(n): x for n, x in factors.items()}
        return {
            int(n): x * F.dropout(torch.ones_like(x[..., :1]), share) for n, x in factors.items()
        }
