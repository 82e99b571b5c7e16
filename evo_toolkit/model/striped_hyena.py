"""StripedHyena 2 as a plain `nn.Module`."""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_kernels.backend import resolve
from evo_kernels.token_log_probs import token_log_probs, why_unfused
from evo_toolkit.errors import UsageError
from evo_toolkit.model.block import Block
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.init import initialise
from evo_toolkit.model.layers import unreleased_layers
from evo_toolkit.model.norm import RMSNorm
from evo_toolkit.model.plain import is_plain
from evo_toolkit.model.precision import (
    PrecisionPolicy,
    float32_products,
    products_as_released,
    resolve_precision,
)
from evo_toolkit.model.projection import Projection
from evo_toolkit.model.state import ModelState

# Positions per slice of the head: float32 logits of [B, 1024, V] instead of [B, L, V].
_HEAD_SLICE = 1024


class StripedHyena2(nn.Module):
    """Byte-level causal language model of interleaved Hyena and attention layers.

    Attributes:
        config: Shape and meaning.
        policy: How numbers are represented; fixed at construction.
        source: Where the weights came from, for outputs; "random" until a loader sets it.
        sha256: Digest of the weights, "" until a loader sets it.
        notes: Remarks that every output made with this model must carry.
    """

    def __init__(
        self,
        config: StripedHyena2Config,
        *,
        policy: PrecisionPolicy | None = None,
        generator_seed: int | None = None,
    ) -> None:
        """Build the model with initial weights for training.

        Args:
            policy: Defaults to `default` precision on the CPU.
            generator_seed: Draw the weights from this seed, leaving the global one as it was.

        Raises:
            UsageError: for the rounding points of released models with layers that they do not have.
        """
        super().__init__()
        self.config = config
        self.policy = policy or resolve_precision("default", torch.device("cpu"))
        odd = unreleased_layers(config.pattern)
        if odd and self.policy.rounding is not None:
            raise UsageError(
                f'precision "{self.policy.name}" reproduces released models, which have no {odd} layers; use "default" or "exact"'
            )
        self.source = "random"
        self.sha256 = ""
        self.notes: tuple[str, ...] = ()
        with torch.random.fork_rng(devices=[], enabled=generator_seed is not None):
            if generator_seed is not None:
                torch.manual_seed(generator_seed)
            self.embedding = nn.Embedding(config.vocab_size, config.width)
            self.blocks = nn.ModuleList(
                Block(config, index, self.policy) for index in range(config.num_layers)
            )
            self.norm = RMSNorm(config.width, config.norm_eps, self.policy)
            if not config.tie_embeddings:
                self.unembedding = Projection(config.width, config.vocab_size, bias=False)
            initialise(self, config)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def storage_dtype(self, name: str) -> torch.dtype:
        """Dtype in which a parameter or buffer of this name is kept for inference.

        Filters, skips, poles, residues and rotary frequencies are float32; the rest follows the
        policy.
        """
        return torch.float32 if ".mixer." in name else self.policy.compute_dtype

    def hidden(
        self,
        input_ids: Tensor,
        state: ModelState | None = None,
        *,
        return_state: bool = False,
        num_blocks: int | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """The residual stream after the last block, before the final norm: `[B, L, D]`.

        Args:
            input_ids: `[B, L]` integer tokens.
            state: What the positions before this chunk left, or None at the start.
            num_blocks: Run only the first so many blocks; a state then holds as many layers.

        Raises:
            UsageError: for a state, given or asked for, of a model with layers that look ahead.
        """
        if input_ids.dim() != 2 or input_ids.shape[1] < 1:
            raise ValueError(
                f"input_ids has shape {tuple(input_ids.shape)}; it must be [batch, positions] with at least one position"
            )
        blocks = self.blocks[:num_blocks]
        if state is not None and len(state) != len(blocks):
            raise ValueError(f"state has {len(state)} layers, the model {len(blocks)}")
        x = F.embedding(input_ids, self.embedding.weight).to(self.policy.compute_dtype)
        states = []
        with products_as_released(self.policy, x.device):
            for index, block in enumerate(blocks):
                x, layer_state = block(
                    x, None if state is None else state[index], return_state=return_state
                )
                states.append(layer_state)
        return x, tuple(states) if return_state else None

    def head(self, hidden: Tensor) -> Tensor:
        """Final norm and unembedding: `[B, L, D]` to logits `[B, L, V]`.

        Float32 except under a rounding policy, where logits are rounded as in the released code.
        """
        weight = self._head_weight()
        if self.policy.rounding is None:
            hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        with float32_products(True), products_as_released(self.policy, hidden.device):
            y = self.norm(hidden)
            return F.linear(y, weight.to(y.dtype))

    def _head_weight(self) -> Tensor:
        return self.embedding.weight if self.config.tie_embeddings else self.unembedding.weight

    def _fuses_head(self, hidden: Tensor) -> bool:
        """Whether log-probabilities come from one operator instead of the head's logits."""
        if not is_plain(self.norm, RMSNorm):
            return False
        if why_unfused(hidden, self.norm.scale, self._head_weight()):
            return False
        backend, rounding = self.policy.backend, self.policy.rounding
        return resolve("token_log_probs", backend, hidden, rounding=rounding) == "triton"

    @overload
    def forward(self, input_ids: Tensor, state: ModelState | None = ...) -> Tensor: ...
    @overload
    def forward(
        self, input_ids: Tensor, state: ModelState | None = ..., *, return_state: bool
    ) -> tuple[Tensor, ModelState]: ...

    def forward(
        self, input_ids: Tensor, state: ModelState | None = None, *, return_state: bool = False
    ) -> Tensor | tuple[Tensor, ModelState | None]:
        """Next-token logits of a chunk.

        Args:
            input_ids: `[B, L]` integer tokens, L at least 1.
            state: What the positions before this chunk left; None at the start of a sequence.
            return_state: Also return the state for the next chunk.

        Returns:
            Logits `[B, L, V]`; with `return_state`, a pair of logits and state. Entry t predicts
            token t + 1.
        """
        x, new_state = self.hidden(input_ids, state, return_state=return_state)
        logits = self.head(x)
        return (logits, new_state) if return_state else logits

    def token_log_probs(self, input_ids: Tensor) -> Tensor:
        """Log-probability in nats of each token given those before it.

        Float32 log-softmax over the full vocabulary, sliced along the sequence so that no
        `[B, L, V]` tensor exists.

        Args:
            input_ids: `[B, L]`.

        Returns:
            `[B, L]` float32 (float64 for a float64 model). Position 0 has no prediction and is NaN.
        """
        self.config.require_causal("predict the next base")
        x, _ = self.hidden(input_ids)
        first = x.new_full(
            (x.shape[0], 1), float("nan"), dtype=torch.promote_types(x.dtype, torch.float32)
        )
        return torch.cat([first, self.gather_log_probs(x[:, :-1], input_ids[:, 1:])], dim=1)

    def gather_log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probability of `targets[t]` from `hidden[t]`: `[B, L, D]`, `[B, L]` to `[B, L]`, nats."""
        self.config.require_causal("predict the next base")
        if self._fuses_head(hidden):
            rows = token_log_probs(
                hidden.flatten(0, 1), self.norm.scale, self.norm.eps, self._head_weight(),
                targets.flatten(), backend="triton",
            )  # fmt: skip
            return rows.view(targets.shape)
        slices = []
        for start in range(0, hidden.shape[1], _HEAD_SLICE):
            logits = self.head(hidden[:, start : start + _HEAD_SLICE])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            wanted = targets[:, start : start + _HEAD_SLICE, None].to(torch.int64)
            slices.append(logits.gather(-1, wanted)[..., 0] - logits.logsumexp(-1))
        if not slices:
            return hidden.new_zeros(
                (hidden.shape[0], 0), dtype=torch.promote_types(hidden.dtype, torch.float32)
            )
        return torch.cat(slices, dim=1)
