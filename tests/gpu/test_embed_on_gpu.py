"""Embeddings on a GPU: near those of a CPU, and the same bits whatever runs beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.inference.embed import embed
from evo_toolkit.inference.readings import POOLS
from evo_toolkit.model.striped_hyena import StripedHyena2

LAYERS = ("blocks.1", "blocks.6", "norm")


@pytest.fixture(scope="module")
def model(device: torch.device) -> StripedHyena2:
    return load_model("evo-mini", device=str(device), precision="exact")


def sequences() -> list[str]:
    draw = np.random.default_rng(0)
    return ["".join(draw.choice(list("ACGT"), n)) for n in (81, 300, 64, 1000, 81)]


@pytest.mark.parametrize("pool", POOLS)
def test_near_those_of_a_cpu(model: StripedHyena2, pool: str) -> None:
    given = sequences()
    masks = [np.arange(len(s)) % 5 != 1 for s in given]
    options = {"pool": pool, "strands": "both", "masks": masks}
    found = embed(model, given, LAYERS, **options)  # type: ignore[call-overload]
    on_cpu = load_model("evo-mini", device="cpu", precision="exact")
    wanted = embed(on_cpu, given, LAYERS, **options)  # type: ignore[call-overload]
    for layer in LAYERS:
        # float32 in another order, through up to ten blocks.
        size = max(float(np.abs(v).max()) for v in wanted[layer])
        for one, two in zip(found[layer], wanted[layer], strict=True):
            assert float(np.abs(one - two).max()) < 1e-3 * size


def test_the_same_bits_alone(model: StripedHyena2) -> None:
    given = sequences()
    together = embed(model, given, LAYERS, strands="concat")
    for number, sequence in enumerate(given):
        alone = embed(model, [sequence], LAYERS, strands="concat")
        for layer in LAYERS:
            np.testing.assert_array_equal(alone[layer][0], together[layer][number])
