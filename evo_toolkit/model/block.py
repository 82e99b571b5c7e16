"""One layer: a sequence mixer between projections, then a gated MLP, both with residuals."""

from __future__ import annotations

import pkgutil

from torch import Tensor, nn

from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.layers import LAYER_KINDS
from evo_toolkit.model.mlp import GatedMLP
from evo_toolkit.model.norm import RMSNorm
from evo_toolkit.model.plain import is_plain
from evo_toolkit.model.precision import PrecisionPolicy
from evo_toolkit.model.projection import Projection
from evo_toolkit.model.state import MixerState


class Block(nn.Module):
    """`u = x + out_projection(mixer(projections(pre_norm(x)))); y = u + mlp(post_norm(u))`."""

    def __init__(self, config: StripedHyena2Config, index: int, policy: PrecisionPolicy) -> None:
        super().__init__()
        D, kind = config.width, LAYER_KINDS[config.pattern[index]]
        self.pre_norm = RMSNorm(D, config.norm_eps, policy)
        self.projections = Projection(D, kind.streams * D, bias=False)
        self.mixer = pkgutil.resolve_name(kind.mixer)(config, policy)
        self.out_projection = Projection(D, D, bias=True)
        # In the released implementation a Hyena layer's output product is rounded before its bias
        # is added; attention's is not.
        self.out_projection.round_before_bias = (
            policy.rounding is not None and config.pattern[index] != "*"
        )
        if config.pattern[index] == "H" and policy.rounding is None:
            # Hyena-LI scans along positions: both projections speak its layout.
            self.projections.channel_first = policy.backend != "reference"
            self.out_projection.takes_channel_first = policy.backend != "reference"
        self.post_norm = RMSNorm(D, config.norm_eps, policy)
        self.mlp = GatedMLP(
            D, config.mlp_width, gelu=index in config.gelu_layers, backend=policy.backend
        )

    def forward(
        self, x: Tensor, state: MixerState | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        """`[B, L, D]` to `[B, L, D]`, and the mixer's new state if asked for."""
        mixed, new_state = self.mixer(
            self.projections(self.pre_norm(x)), state, return_state=return_state
        )
        x, normalised = self.post_norm.after_adding(x, self.out_projection(mixed))
        if is_plain(self.post_norm, RMSNorm):
            return self.mlp.add_to(x, normalised), new_state
        return self.mlp(normalised) + x, new_state  # hooks may have kept x
