"""Public function of two-segment attention."""

from __future__ import annotations

from torch import Tensor

from evo_kernels.attention_two_segment.reference import attention_two_segment_reference
from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_shape
from evo_kernels.errors import KernelError


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

    Returns:
        `[A, L, H, E]` in the dtype of `q`; softmax and merge are float32.

    Raises:
        KernelError: if shapes disagree.
    """
    if q.dim() != 4:
        raise KernelError(
            f"q has shape {tuple(q.shape)}; it must be [continuations, positions, heads, channels]"
        )
    A, L, H, E = q.shape
    for name, x, rows in (
        ("prefix_k", prefix_k, 1),
        ("prefix_v", prefix_v, 1),
        ("k", k, A),
        ("v", v, A),
    ):
        check_shape(name, x, (rows, None, H, E))
    if k.shape[1] < L:
        raise KernelError(
            f"k has {k.shape[1]} positions for {L} queries; it must hold those of the queries too"
        )
    resolve("attention_two_segment", backend, q, unsupported="it has none in this version")
    return attention_two_segment_reference(q, prefix_k, prefix_v, k, v)
