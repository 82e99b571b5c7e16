"""Hooks and wrapped projections see what the architecture says, whatever is folded together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evo_toolkit.model.plain import is_plain
from evo_toolkit.model.projection import Projection
from tests.model.test_model import ids, make


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_only_an_untouched_module_is_plain() -> None:
    assert is_plain(Projection(2, 2), Projection)
    assert not is_plain(nn.Linear(2, 2), Projection)
    for touch in (
        lambda p: p.register_forward_hook(lambda *_: None),
        lambda p: p.register_forward_pre_hook(lambda *_: None),
        lambda p: p.register_full_backward_hook(lambda *_: None),
        lambda p: setattr(p, "forward", lambda x: x),
        lambda p: parametrize.register_parametrization(p, "weight", _Double()),
    ):
        projection = Projection(2, 2)
        touch(projection)
        assert not is_plain(projection, Projection)


def test_a_removed_hook_leaves_a_module_plain() -> None:
    projection = Projection(2, 2)
    projection.register_forward_hook(lambda *_: None).remove()
    assert is_plain(projection, Projection)


class _LowRank(nn.Module):
    """A projection with a low-rank addition, as adapters wrap one."""

    def __init__(self, base: Projection, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(base.in_features, rank, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(rank, base.out_features, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + x @ self.down @ self.up


@pytest.mark.parametrize("name", ["projections", "out_projection", "mlp.l1", "mlp.l3"])
def test_a_wrapped_projection_is_used_as_it_is(name: str) -> None:
    wrapped, merged = make("SH*"), make("SH*")
    for index in range(3):
        block = wrapped.blocks[index]
        parent, _, child = f"x.{name}".rpartition(".")
        owner = block.get_submodule(parent.removeprefix("x").removeprefix("."))
        adapter = _LowRank(getattr(owner, child))
        setattr(owner, child, adapter)
        base = merged.blocks[index].get_submodule(name)
        with torch.no_grad():
            base.weight += (adapter.down @ adapter.up).T  # type: ignore[operator]
    tokens = ids(40)
    torch.testing.assert_close(wrapped(tokens), merged(tokens), rtol=1e-9, atol=1e-10)


def test_hooks_see_the_product_without_the_residual() -> None:
    model = make("S")
    seen: dict[str, Tensor] = {}
    block = model.blocks[0]
    for name in ("out_projection", "post_norm", "mlp.l3"):
        block.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: seen.update({name: o, f"{name} in": i[0]})  # type: ignore[misc]
        )
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    with torch.no_grad():
        y, _ = block(x)
    torch.testing.assert_close(seen["post_norm in"], x + seen["out_projection"])
    torch.testing.assert_close(y, seen["post_norm in"] + seen["mlp.l3"])
