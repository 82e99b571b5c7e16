"""Shape checks with messages that name the argument, what was given and what is allowed."""

from __future__ import annotations

from torch import Tensor

from evo_kernels.errors import KernelError


def check_chunk(name: str, x: Tensor) -> tuple[int, int, int]:
    """Return (B, L, C) of a `[B, L, C]` tensor with at least one position."""
    if x.dim() != 3:
        raise KernelError(
            f"{name} has shape {tuple(x.shape)}; it must be [batch, positions, channels]"
        )
    if x.shape[1] < 1:
        raise KernelError(f"{name} has no positions; a chunk has at least one")
    return x.shape[0], x.shape[1], x.shape[2]


def check_shape(name: str, x: Tensor, shape: tuple[int | None, ...]) -> None:
    """Raise unless `x` has the shape, where None allows any size."""
    if x.dim() != len(shape) or any(
        want is not None and want != have for want, have in zip(shape, x.shape, strict=True)
    ):
        want = ", ".join("any" if s is None else str(s) for s in shape)
        raise KernelError(f"{name} has shape {tuple(x.shape)}; it must be [{want}]")


def check_blocks(qkv: Tensor) -> tuple[int, int, int]:
    """Return (B, L, D) of projected inputs in blocks [q | k | v]."""
    B, L, C = check_chunk("qkv", qkv)
    if C % 3:
        raise KernelError(f"qkv has {C} channels; it must hold three equal blocks [q | k | v]")
    return B, L, C // 3


def check_continuations(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int]:
    """Return (A, L, H, E) of queries `[A, L, H, E]` with keys and values `[A, S, H, E]`, S >= L."""
    if q.dim() != 4:
        raise KernelError(
            f"q has shape {tuple(q.shape)}; it must be [continuations, positions, heads, channels]"
        )
    A, L, H, E = q.shape
    check_shape("k", k, (A, None, H, E))
    check_shape("v", v, tuple(k.shape))
    if k.shape[1] < L:
        raise KernelError(
            f"k has {k.shape[1]} positions for {L} queries; it must hold those of the queries too"
        )
    return A, L, H, E


def check_divides(what: str, number: int, width: int) -> None:
    """Raise unless so many of `what` (a plural) share the channels equally."""
    if number < 1 or width % number:
        raise KernelError(f"there are {number} {what}; the number must divide the {width} channels")


def check_qkv(qkv: Tensor, featurizer: Tensor) -> tuple[int, int, int]:
    """Return (B, L, D) of projected inputs in blocks [q | k | v] with their featurizer taps."""
    B, L, D = check_blocks(qkv)
    check_shape("featurizer", featurizer, (3 * D, None))
    if featurizer.shape[1] < 1:
        raise KernelError("featurizer has no taps; it has at least one")
    return B, L, D


def check_groups(h: Tensor, width: int) -> int:
    """Return the group size of grouped taps `[G, K]`."""
    check_shape("h", h, (None, None))
    if h.shape[0] < 1 or width % h.shape[0]:
        raise KernelError(
            f"h has {h.shape[0]} filter groups; the number must divide the {width} channels"
        )
    return width // h.shape[0]
