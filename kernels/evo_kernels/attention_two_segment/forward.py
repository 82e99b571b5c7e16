"""Two-segment attention on the GPU: two fused attention calls and a merge of their results.

Both calls return the logarithm of their softmax normaliser, so that no score matrix ever exists.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.attention_two_segment.configs  # noqa: F401  (fills the launch table)
from evo_kernels import cudnn
from evo_kernels.attention_two_segment.reference import attention_with_lse
from evo_kernels.launch import on_its_device, select


def prefers_cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> bool:
    """Whether cuDNN's attention is right and faster for these `[B, H, L, E]` tensors."""
    pairs = q.shape[0] * q.shape[2] * k.shape[2] // (2 if causal else 1)
    if causal and q.shape[2] != k.shape[2]:
        return False  # its causal mask is aligned with the first query and the first key
    if not cudnn.worth_planning(q.device, pairs, cudnn.NEW_SHAPE):
        return False
    parameters = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, causal, False)
    return torch.backends.cuda.can_use_cudnn_attention(parameters)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Fused softmax attention and the logarithm of its normaliser.

    Args:
        q: `[B, L, H, E]`.
        k, v: `[B, S, H, E]`.
        causal: Query i sees keys up to `S - L + i` (the last query sees all).

    Returns:
        `[B, L, H, E]` in the dtype of `q`, contiguous, and `[B, H, L]` float32.
    """
    if q.device.type == "cpu":  # the interpreter
        y, lse = attention_with_lse(q, k, v, causal)
        return y.to(q.dtype), lse.transpose(1, 2).contiguous()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if prefers_cudnn(q, k, v, causal):
        y, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, causal
        )
        lse = lse.flatten(2)
    else:
        # Flash attention aligns its causal mask with the last query and the last key.
        y, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return y.transpose(1, 2).contiguous(), lse.contiguous()


@triton.jit
def _attention_merge(
    first_ptr, second_ptr, first_lse_ptr, second_lse_ptr, y_ptr, L, queries,
    H: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All heads of one query; weights are the shares `exp(lse_i) / sum_j exp(lse_j)`.

    The first normalisers are `[H, queries]` over all continuations, the second `[A, H, L]`.
    """
    query = tl.program_id(0)
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    row = (query // L).to(tl.int64)
    at_first = head.to(tl.int64) * queries + query
    at_second = (row * H + head) * L + query % L
    first_lse = tl.load(first_lse_ptr + at_first, mask=head < H, other=0.0)
    second_lse = tl.load(second_lse_ptr + at_second, mask=head < H, other=0.0)
    share = 1.0 / (1.0 + tl.exp(second_lse - first_lse))
    keep = (head < H) & (channel < E)
    at = query.to(tl.int64) * (H * E) + head * E + channel
    first = tl.load(first_ptr + at, mask=keep, other=0.0).to(tl.float32)
    second = tl.load(second_ptr + at, mask=keep, other=0.0).to(tl.float32)
    y = first * share + second * (1.0 - share)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=keep)


@on_its_device
def attention_two_segment_forward(
    q: Tensor, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Merge attention over the shared prefix and over the own suffix; arguments as in the twin."""
    A, L, H, E = q.shape
    # All continuations' queries folded together: one non-causal call over the prefix.
    over_prefix, prefix_lse = attend(q.reshape(1, A * L, H, E), prefix_k, prefix_v, causal=False)
    over_own, own_lse = attend(q, k, v, causal=True)
    y = torch.empty_like(over_own)
    _attention_merge[(A * L,)](
        over_prefix, over_own, prefix_lse, own_lse, y, L, A * L, H=H, E=E,
        HEADS=triton.next_power_of_2(H), BLOCK=triton.next_power_of_2(E),
        **select("attention_merge", q.device).launch_arguments(),
    )  # fmt: skip
    return y
