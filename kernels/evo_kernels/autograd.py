"""Gradients of gradients: the kernels' backward has none of its own, the twins have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def gradients_through_twin(
    twin: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Differentiable gradients of an operator, for `create_graph=True`.

    Args:
        twin: Makes the operator's outputs from its inputs in plain PyTorch.
        inputs: The operator's tensors, as saved for the backward.
        grads: Gradients of the outputs; None where there is none.

    Returns:
        A gradient for every input that requires one, None for the others.
    """
    # Views: an input made from another one is a variable of its own here. Through the tensors
    # themselves autograd would follow how it was made, and count that path twice.
    inputs = [None if x is None else x.view_as(x) for x in inputs]
    outputs = twin(*inputs)
    pairs = [
        (y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad
    ]
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs],
            wanted,
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]
