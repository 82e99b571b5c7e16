"""Public function of the log-probabilities of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_shape
from evo_kernels.errors import KernelError
from evo_kernels.token_log_probs.reference import token_log_probs_reference


@torch.library.custom_op("evo_kernels::token_log_probs", mutates_args=())
def _token_log_probs(
    hidden: Tensor, scale: Tensor, eps: float, weight: Tensor, targets: Tensor
) -> Tensor:
    from evo_kernels.token_log_probs.forward import token_log_probs_forward

    return token_log_probs_forward(hidden.contiguous(), scale, eps, weight, targets.contiguous())


@_token_log_probs.register_fake
def _(hidden: Tensor, scale: Tensor, eps: float, weight: Tensor, targets: Tensor) -> Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=torch.float32)


# For fewer rows float32 products are as fast, and their sums are split as finely.
_FEWEST_ROWS = 1024


def why_unfused(hidden: Tensor, scale: Tensor, weight: Tensor) -> str:
    """Why the kernel cannot run on these tensors wherever it could otherwise, or ""."""
    if hidden.dtype != torch.bfloat16 and hidden.device.type == "cuda":
        return "its products take bfloat16 rows"
    if hidden.shape[:-1].numel() < _FEWEST_ROWS and hidden.device.type == "cuda":
        return f"fewer than {_FEWEST_ROWS} rows"
    if hidden.shape[-1] % 8:
        return f"{hidden.shape[-1]} channels are not a multiple of 8"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, scale, weight)):
        return "gradients take the reference"
    return ""


def token_log_probs(
    hidden: Tensor,
    scale: Tensor,
    eps: float,
    weight: Tensor,
    targets: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return `log_softmax(weight @ rms_norm(hidden))[target]` of every row, in nats.

    No `[R, V]` tensor of all rows exists. The kernel serves many bfloat16 rows and has no backward:
    for a few rows and where gradients are asked for, the twin runs.

    Shapes: R rows, D channels, V vocabulary.

    Args:
        hidden: Residual stream, `[R, D]`.
        scale: Of the final norm, `[D]`.
        eps: Of the final norm, outside the root.
        weight: Unembedding, `[V, D]`.
        targets: `[R]` integers below V.
        backend: "triton", "reference", or "auto" (Triton where the device allows).

    Returns:
        `[R]` float32 (float64 for float64 rows); norm, logits and softmax have float32 accuracy.

    Raises:
        KernelError: if shapes disagree.
    """
    if hidden.dim() != 2:
        raise KernelError(f"hidden has shape {tuple(hidden.shape)}; it must be [rows, channels]")
    R, D = hidden.shape
    check_shape("scale", scale, (D,))
    check_shape("weight", weight, (None, D))
    check_shape("targets", targets, (R,))
    unsupported = why_unfused(hidden, scale, weight)
    if resolve("token_log_probs", backend, hidden, unsupported=unsupported) == "reference":
        return token_log_probs_reference(hidden, scale, eps, weight, targets)
    out: Tensor = _token_log_probs(hidden, scale, eps, weight, targets)
    return out
