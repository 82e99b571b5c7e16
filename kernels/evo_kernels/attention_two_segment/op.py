"""Public function of two-segment attention."""

from __future__ import annotations

import torch
from torch import Tensor

from evo_kernels.attention_two_segment.reference import attention_two_segment_reference
from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_continuations, check_shape

# Widest head of the fused attention that both segments call.
_MAX_HEAD_WIDTH = 256


@torch.library.custom_op("evo_kernels::attention_two_segment", mutates_args=())
def _attention_two_segment(
    q: Tensor, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    from evo_kernels.attention_two_segment.forward import attention_two_segment_forward

    return attention_two_segment_forward(q, prefix_k, prefix_v, k, v)


@_attention_two_segment.register_fake
def _(q: Tensor, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape)


def _unsupported(tensors: tuple[Tensor, ...]) -> str:
    """Why the fused path cannot run, or ""."""
    q = tensors[0]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "gradients take the reference"
    if not all(x.shape[1] for x in tensors):
        return "a segment is empty"
    if q.device.type == "cuda" and (q.shape[3] % 8 or q.shape[3] > _MAX_HEAD_WIDTH):
        return f"heads are {q.shape[3]} wide; fused attention takes multiples of 8 up to {_MAX_HEAD_WIDTH}"
    if q.device.type == "cuda" and q.dtype == torch.float32:
        return "fused attention takes bfloat16 and float16"
    return ""


def attention_two_segment(
    q: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of A continuations over one shared prefix and, causally, over their own keys.

    Shapes: A continuations, L queries, P prefix positions, S own positions (S >= L; the last query
    is at the last own position), H heads, E channels per head.

    Args:
        q: `[A, L, H, E]`, rotated.
        prefix_k, prefix_v: `[1, P, H, E]`, read only.
        k, v: `[A, S, H, E]`.
        backend: "triton", "reference", or "auto" (fused attention where the device allows and no
            gradient is asked for).

    Returns:
        `[A, L, H, E]` in the dtype of `q`; softmax and merge are float32.

    Raises:
        KernelError: if shapes disagree.
    """
    _, _, H, E = check_continuations(q, k, v)
    check_shape("prefix_k", prefix_k, (1, None, H, E))
    check_shape("prefix_v", prefix_v, tuple(prefix_k.shape))
    tensors = (q, prefix_k, prefix_v, k, v)
    unsupported = _unsupported(tensors)
    if resolve("attention_two_segment", backend, q, unsupported=unsupported) == "reference":
        return attention_two_segment_reference(*tensors)
    y: Tensor = _attention_two_segment(*tensors)
    return y
