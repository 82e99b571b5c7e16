"""Causal attention with rotary positions, as a mixer: (chunk, state) to (chunk, state)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from evo_kernels import attention_forked, attention_two_segment, cudnn
from evo_kernels.rotary import rotary
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.mixer import Mixer
from evo_toolkit.model.precision import PrecisionPolicy
from evo_toolkit.model.rotary import rotary_frequencies, rotary_table
from evo_toolkit.model.state import AttentionState

# Queries per call when a chunk continues a sequence: bounds the mask at [block, keys].
_QUERY_BLOCK = 512
_SHORT_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_LONG_BACKENDS = [SDPBackend.CUDNN_ATTENTION, *_SHORT_BACKENDS]


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the last L of S positions; `[B, L, H, E]` queries, `[B, S, H, E]` keys."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    L, S = q.shape[2], k.shape[2]
    if L == S:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        parts = []
        for start in range(0, L, _QUERY_BLOCK):
            stop = min(start + _QUERY_BLOCK, L)
            seen = S - L + stop
            last = torch.arange(start, stop, device=q.device)[:, None] + (S - L)
            mask = torch.arange(seen, device=q.device)[None, :] <= last
            parts.append(
                F.scaled_dot_product_attention(
                    q[:, :, start:stop], k[:, :, :seen], v[:, :, :seen], attn_mask=mask
                )
            )
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return y.transpose(1, 2)


def _causal_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`_causal` on a GPU in half precision, by the fused call that is fastest for the sizes."""
    (B, L), S = q.shape[:2], k.shape[1]
    before = S - L
    if before and B == 1 and L * before >= cudnn.NEW_SHAPE and not torch.is_grad_enabled():
        # Over the keys before this chunk no mask is needed, so that cuDNN can take them.
        return attention_two_segment(q, k[:, :before], v[:, :before], k[:, before:], v[:, before:])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if before:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(L, S))
    else:
        planned = cudnn.worth_planning(q.device, B * L * L // 2, cudnn.RECURRING_SHAPE)
        with sdpa_kernel(_LONG_BACKENDS if planned else _SHORT_BACKENDS, set_priority=True):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2)


def _causal_through_rounded_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`_causal` as the released implementation computes it when it keeps caches.

    Its scores are rounded to the inputs' dtype and masked by adding -10000, unlike those of its
    stateless forward, so that its own two paths differ.
    """
    L, S = q.shape[1], k.shape[1]
    scores = torch.einsum("blhe,bshe->bhls", q, k * q.shape[-1] ** -0.5)
    hidden = torch.full((L, S), -10_000.0, device=q.device).triu(S - L + 1)
    weights = torch.softmax(scores + hidden.to(scores.dtype), dim=-1)
    return torch.einsum("bhls,bshe->blhe", weights, v)


def _two_segments_on_cpu(
    q: Tensor, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """`attention_two_segment` of `[1, L, H, E]` by the CPU's fused call, without score matrices.

    As many own positions as queries. Both calls return the logarithm of their normaliser.
    """
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    q = q.transpose(1, 2)
    over_prefix, prefix_lse = fused(q, prefix_k.transpose(1, 2), prefix_v.transpose(1, 2))
    over_own, own_lse = fused(q, k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    share = torch.sigmoid(prefix_lse - own_lse)[..., None]
    y = torch.lerp(over_own.to(share.dtype), over_prefix.to(share.dtype), share)
    return y.to(q.dtype).transpose(1, 2)


def _starts(state: AttentionState | None, filled: int) -> tuple[int, ...] | Tensor:
    """Position of a chunk's first token in its sequence: one for all rows, or one for each."""
    if state is not None and state.table is not None:
        return state.table[2] + filled
    if state is None or state.prefix_k is None:
        return (filled,)
    prefixes = state.prefix_k if isinstance(state.prefix_k, tuple) else (state.prefix_k,)
    return tuple(filled + prefix.shape[1] for prefix in prefixes)


def _append(buffer: Tensor, filled: int, new: Tensor, capacity: int) -> Tensor:
    """A new buffer of `capacity` positions holding the filled ones and the new ones."""
    grown = new.new_empty((new.shape[0], capacity, *new.shape[2:]))
    grown[:, :filled] = buffer[:, :filled]
    grown[:, filled : filled + new.shape[1]] = new
    return grown


class Attention(Mixer):
    """Multi-head causal attention on projected inputs.

    The frequencies are a buffer because released checkpoints carry them.
    """

    inv_freq: Tensor

    def __init__(self, config: StripedHyena2Config, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.interpolation = config.rotary_interpolation
        self.policy = policy
        self.register_buffer(
            "inv_freq",
            rotary_frequencies(
                config.head_width, config.rotary_base, through_bf16=config.rotary_bf16_frequencies
            ),
        )

    def mix(
        self, qkv: Tensor, state: AttentionState | None = None, *, return_state: bool = False
    ) -> tuple[Tensor, AttentionState | None]:
        """Mix a chunk.

        Args:
            qkv: `[B, L, 3D]` in blocks [all q heads | all k heads | all v heads].
            state: What the positions before this chunk left, or None.

        Returns:
            `[B, L, D]`, and the new state if asked for.
        """
        B, L, C = qkv.shape
        filled = 0 if state is None else int(state.length)
        q, k, v = self._rotated_heads(qkv, _starts(state, filled))
        if state is None:
            new_state = self._first_state(k, v) if return_state else None
            y = self._attend(q, k, v, cached=return_state)
        else:
            own_k, own_v, new_state = k, v, None
            if return_state or filled:
                new_state = self._extend(state, filled, k, v)
                own_k, own_v = new_state.k[:, : filled + L], new_state.v[:, : filled + L]
            if state.prefix_k is None and state.table is None:
                y = self._attend(q, own_k, own_v, cached=True)
            else:
                y = self._continue(q, state, own_k, own_v)
        return y.reshape(B, L, C // 3), new_state if return_state else None

    def heads(self, qkv: Tensor, *starts: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each `[B, L, H, E]`.

        Args:
            starts: Position of the first token in its sequence, one for all rows or one for each.
        """
        return self._rotated_heads(qkv, starts)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of whole sequences of rotated heads, `[B, L, H, E]`."""
        return self._attend(q, k, v, cached=False)

    def _rotated_heads(
        self, qkv: Tensor, starts: tuple[int, ...] | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, L, _ = qkv.shape
        q, k, v = (x.reshape(B, L, self.num_heads, -1) for x in qkv.chunk(3, dim=-1))
        if isinstance(starts, Tensor):
            table = self._table(starts[:, None] + torch.arange(L, device=qkv.device), q.dtype)
        else:
            # Each from a tensor of its own: a CPU's cosine rounds by where in a tensor a number lies.
            tables = {
                start: self._table(torch.arange(start, start + L, device=qkv.device), q.dtype)
                for start in set(starts)
            }
            rows = zip(*(tables[start] for start in starts), strict=True)
            table = tables[starts[0]] if len(tables) == 1 else tuple(map(torch.stack, rows))
        cos, sin = table
        return *rotary(q, k, cos, sin, backend=self.policy.backend), v

    def _table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Cosines and sines of positions `[..., L]`, for heads of `dtype`."""
        wide = torch.promote_types(dtype, torch.float32)
        return rotary_table(
            positions, self.inv_freq, self.interpolation, self.policy.rounding, wide
        )

    def _continue(self, q: Tensor, state: AttentionState, k: Tensor, v: Tensor) -> Tensor:
        """Attention over prefixes and own positions."""
        backend, prefix_k, prefix_v = self.policy.backend, state.prefix_k, state.prefix_v
        if isinstance(prefix_k, Tensor) or isinstance(prefix_v, Tensor):
            assert isinstance(prefix_k, Tensor) and isinstance(prefix_v, Tensor)
            return attention_two_segment(q, prefix_k, prefix_v, k, v, backend=backend)
        fused = q.device.type == "cpu" and backend != "reference" and q.shape[1] == k.shape[1]
        if fused and not torch.is_grad_enabled():
            assert prefix_k is not None and prefix_v is not None
            rows = zip(q.split(1), prefix_k, prefix_v, k.split(1), v.split(1), strict=True)
            return torch.cat([_two_segments_on_cpu(*row) for row in rows])
        return attention_forked(
            q, prefix_k, prefix_v, k, v, table=state.table, common=state.common, backend=backend
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, cached: bool) -> Tensor:
        if cached and self.policy.rounding is not None:
            return _causal_through_rounded_scores(q, k, v)
        plain = self.policy.backend == "reference" or self.policy.rounding is not None
        if q.is_cuda and not plain and q.dtype in (torch.bfloat16, torch.float16):
            return _causal_fused(q, k, v)
        return _causal(q, k, v)

    @staticmethod
    def _first_state(k: Tensor, v: Tensor) -> AttentionState:
        length = torch.tensor(k.shape[1], dtype=torch.int64, device="cpu")
        return AttentionState(None, None, k, v.contiguous(), length, length.clone())

    @staticmethod
    def _extend(state: AttentionState, filled: int, k: Tensor, v: Tensor) -> AttentionState:
        """Append to the own buffers; `filled` is `state.length` as a number."""
        total = filled + k.shape[1]
        length = state.length + k.shape[1]
        if torch.is_grad_enabled():
            own_k = torch.cat([state.k[:, :filled], k], dim=1)
            own_v = torch.cat([state.v[:, :filled], v], dim=1)
            return state._replace(k=own_k, v=own_v, length=length, claimed=length.clone())
        # Tensors made in inference mode may not be written outside of it.
        writable = torch.is_inference_mode_enabled() or not state.k.is_inference()
        if writable and state.k.shape[1] >= total and int(state.claimed) == filled:
            state.k[:, filled:total] = k
            state.v[:, filled:total] = v
            state.claimed.fill_(total)
            return state._replace(length=length)
        capacity = max(total, 2 * filled, 64)
        own_k = _append(state.k, filled, k, capacity)
        own_v = _append(state.v, filled, v, capacity)
        return state._replace(k=own_k, v=own_v, length=length, claimed=length.clone())
