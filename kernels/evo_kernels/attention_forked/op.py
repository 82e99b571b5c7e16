"""Public function of attention over forked prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evo_kernels.attention_forked.reference import attention_forked_reference
from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_continuations, check_shape
from evo_kernels.errors import KernelError
from evo_kernels.launch import on_device

_MAX_HEAD_WIDTH = 256


@torch.library.custom_op("evo_kernels::attention_forked", mutates_args=())
def _attention_forked(q: Tensor, table: Tensor, k: Tensor, v: Tensor, common: int) -> Tensor:
    from evo_kernels.attention_forked.forward import attention_forked_forward

    return attention_forked_forward(q, table, k, v, common)


@_attention_forked.register_fake
def _(q: Tensor, table: Tensor, k: Tensor, v: Tensor, common: int) -> Tensor:
    return q.new_empty(q.shape)


def prefix_table(prefix_k: Sequence[Tensor], prefix_v: Sequence[Tensor]) -> Tensor:
    """Where prefixes lie: `[3, A]` int64, addresses of keys and of values, and lengths.

    Valid as long as the prefixes live where they are. The copy to a GPU waits for nothing.

    Args:
        prefix_k, prefix_v: A of `[1, P, H, E]`, P of each its own, the channels of a position in one piece.

    Raises:
        KernelError: if the channels of a position do not lie in one piece.
    """
    rows: list[list[int]] = [[], [], []]
    for keys, values in zip(prefix_k, prefix_v, strict=True):
        for x in (keys, values):
            _, positions, H, E = x.shape
            if x.stride()[1:] != (H * E, E, 1) and positions > 1:
                raise KernelError(
                    f"a prefix has strides {x.stride()}; its positions must follow one another, as in contiguous tensors"
                )
        rows[0].append(keys.data_ptr())
        rows[1].append(values.data_ptr())
        rows[2].append(keys.shape[1])
    return on_device(torch.tensor(rows), prefix_k[0].device)


def _unsupported(q: Tensor, tensors: Sequence[Tensor]) -> str:
    """Why the kernel cannot run, or ""."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "gradients take the reference"
    if q.shape[3] % 8 or q.shape[3] > _MAX_HEAD_WIDTH:
        return (
            f"heads are {q.shape[3]} wide; the kernel takes multiples of 8 up to {_MAX_HEAD_WIDTH}"
        )
    return ""


def attention_forked(
    q: Tensor,
    prefix_k: Sequence[Tensor] | None,
    prefix_v: Sequence[Tensor] | None,
    k: Tensor,
    v: Tensor,
    *,
    table: Tensor | None = None,
    common: int = 0,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of A continuations, each over a prefix and, causally, over its own keys.

    Rows may share a prefix, and each has its own length. With as many rows and the same `common`
    a row's result does not depend on the others, to the last bit.

    Shapes: A continuations, L queries, S own positions (S >= L; the last query is at the last own
    position), H heads, E channels per head.

    Args:
        q: `[A, L, H, E]`, rotated.
        prefix_k, prefix_v: For every row `[1, P, H, E]`, read only; None if there is a table and
            somebody else keeps them alive, which leaves the kernel alone.
        k, v: `[A, S, H, E]`.
        table: `prefix_table` of the prefixes, if known; the kernel believes it.
        common: So many positions of every prefix are brought together and read by the fastest call;
            no prefix may have fewer. The same for all calls whose results are to be the same bits.
        backend: "triton", "reference", or "auto" (the kernel where the device allows and no
            gradient is asked for).

    Returns:
        `[A, L, H, E]` in the dtype of `q`; scores and softmax are float32.

    Raises:
        KernelError: if shapes disagree.
    """
    A, _, H, E = check_continuations(q, k, v)
    for name, prefixes in (("prefix_k", prefix_k), ("prefix_v", prefix_v)):
        if prefixes is None:
            continue
        if len(prefixes) != A:
            raise KernelError(
                f"{name} has {len(prefixes)} prefixes for {A} rows; give one for each"
            )
        for x in prefixes:
            check_shape(name, x, (1, None, H, E))
            if x.shape[1] < common:
                raise KernelError(
                    f"{name} has a prefix of {x.shape[1]} positions where {common} are common to all"
                )
    for keys, values in zip(prefix_k or (), prefix_v or (), strict=False):
        check_shape("prefix_v", values, tuple(keys.shape))
    unsupported = _unsupported(q, (q, k, v, *(prefix_k or ()), *(prefix_v or ())))
    chosen = resolve("attention_forked", backend, q, unsupported=unsupported)
    if chosen == "reference" or table is None:
        if prefix_k is None or prefix_v is None:
            raise KernelError(
                "prefixes are missing; give them, or a table of prefixes and sizes for the kernel"
            )
        if chosen == "reference":
            return attention_forked_reference(q, prefix_k, prefix_v, k, v)
        table = prefix_table(prefix_k, prefix_v)
    y: Tensor = _attention_forked(q, table, k, v, common)
    return y
