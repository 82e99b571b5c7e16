"""Whether a module is only itself, so that its parent may fold its work into a neighbour's."""

from __future__ import annotations

from torch import nn


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling `module` is nothing but `kind.forward`.

    Not so for wrapped or parametrised modules, a replaced `forward`, or anybody's hooks: these must
    see the call, its inputs and its output as they are written in the architecture.
    """
    return (
        type(module) is kind
        and "forward" not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
    )
