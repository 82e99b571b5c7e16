"""What a model says at every position, on a GPU: as on the CPU, and the same alone and in company."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from evo_data.fasta import Fasta
from evo_data.interval import Interval
from evo_data.variant import Variant, edit_of
from evo_data.windows import variant_windows
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.variants.ism import ism_marginal
from evo_toolkit.variants.method_values import method_values
from evo_toolkit.variants.methods import METHOD_NAMES, get_methods
from evo_toolkit.variants.positions import PositionModel
from evo_toolkit.variants.track import Track

SEQUENCE = "".join(random.Random(2).choices("ACGT", k=20_000))
ROWS = [np.frombuffer(SEQUENCE[:size].encode(), np.uint8) for size in (1, 2, 63, 700, 2048, 20_000)]


@pytest.fixture(scope="module")
def models(device: torch.device) -> dict[str, object]:
    return {
        "exact": load_model("evo-mini", device=str(device), precision="exact"),
        "default": load_model("evo-mini", device=str(device)),
        "cpu": load_model("evo-mini", device="cpu", precision="exact"),
    }


# Nats per base: float32 sums in another order, and bfloat16 blocks.
@pytest.mark.parametrize(("precision", "bound"), [("exact", 1e-3), ("default", 0.15)])
def test_positions_as_on_the_cpu(models: dict, precision: str, bound: float) -> None:
    found = PositionModel(models[precision], bases=True)(ROWS)
    expected = PositionModel(models["cpu"], bases=True)(ROWS)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_probs, two.log_probs, atol=bound)
        np.testing.assert_allclose(one.bases, two.bases, atol=bound)


@pytest.mark.parametrize("precision", ["exact", "default"])
def test_company_does_not_matter(models: dict, precision: str) -> None:
    runner = PositionModel(models[precision], bases=True)
    together = runner(ROWS)
    for row, expected in zip(ROWS, together, strict=True):
        (alone,) = runner([row])
        np.testing.assert_array_equal(alone.log_probs, expected.log_probs)
        np.testing.assert_array_equal(alone.bases, expected.bases)


def test_the_fused_head_agrees_with_the_logits(models: dict) -> None:
    """`log_probs` may come from one fused operator, `bases` from the head's logits."""
    (found,) = PositionModel(models["default"], bases=True)([ROWS[3]])
    own = found.bases[np.arange(700), ["ACGT".index(chr(t)) for t in ROWS[3]]]
    np.testing.assert_allclose(found.log_probs[1:], own[1:], atol=2e-3)


def test_track_and_marginals(models: dict, tmp_path: Path) -> None:
    path = tmp_path / "g.fa"
    path.write_text(f">c\n{SEQUENCE}\n")
    with Fasta(path) as genome:
        region = [Interval("c", 5000, 6000)]
        for model in ("exact", "cpu"):
            track = Track(models[model], genome, window=1024)
            (block,) = ism_marginal(track, region)
            if model == "exact":
                found = block.scores
        np.testing.assert_allclose(found, block.scores, atol=2e-3)


def test_methods(models: dict) -> None:
    def fetch(start: int, end: int) -> bytes:
        return SEQUENCE[start:end].encode()

    alleles = []
    for pos in (4000, 9000):
        ref = SEQUENCE[pos - 1]
        for alt in ("A" if ref != "A" else "C", ref + "GGC"):
            edit = edit_of(Variant("c", pos, ref, alt))
            alleles.append(variant_windows(fetch, 20_000, edit, 1024)[0])
    methods = get_methods(METHOD_NAMES, ["blocks.4"])
    found = method_values(models["exact"], alleles, methods)
    expected = method_values(models["cpu"], alleles, methods)
    for one, two in zip(found, expected, strict=True):
        assert one == {
            name: pytest.approx(value, rel=5e-3, abs=5e-3) for name, value in two.items()
        }
