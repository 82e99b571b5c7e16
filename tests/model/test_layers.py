"""The table of kinds of layer: what it says is what the modules are."""

from __future__ import annotations

import pytest

from evo_toolkit.checkpoint.names import tensor_shapes
from evo_toolkit.errors import ConfigError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.layers import LAYER_KINDS
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.flops import forward_flops

SHAPE = {
    "name": "toy", "width": 16, "num_heads": 2, "mlp_width": 24, "filter_groups": 4,
    "context_length": 64, "vocab_size": 256,
}  # fmt: skip


@pytest.mark.parametrize("symbol", sorted(LAYER_KINDS))
def test_a_kind_has_the_tensors_that_its_module_has(symbol: str) -> None:
    config = StripedHyena2Config(pattern=symbol, **SHAPE)  # type: ignore[arg-type]
    model = StripedHyena2(config, generator_seed=0)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == tensor_shapes(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameter_count()
    trained = {name for name, _ in model.blocks[0].mixer.named_parameters()}  # type: ignore[union-attr]
    kind = LAYER_KINDS[symbol]
    assert trained == set(kind.tensors(config)) - kind.buffers


@pytest.mark.parametrize("symbol", sorted(LAYER_KINDS))
def test_operations_grow_with_the_sequence(symbol: str) -> None:
    config = StripedHyena2Config(pattern=symbol, **SHAPE)  # type: ignore[arg-type]
    assert 0 < 2 * forward_flops(config, 50) <= forward_flops(config, 100)


def test_an_unknown_symbol_is_answered_with_all_that_exist() -> None:
    with pytest.raises(ConfigError) as caught:
        StripedHyena2Config(pattern="SX", **SHAPE)  # type: ignore[arg-type]
    for symbol, kind in LAYER_KINDS.items():
        assert f"{symbol} ({kind.name})" in str(caught.value)
