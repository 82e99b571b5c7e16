"""BRCA1's saturation genome editing on GRCh37 and GRCh38: the same sequence, so the same scores, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from evo_data.vcf import VariantReader
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.api import score_variants

OFFSET = 1_847_983
"""Positions of GRCh38 less those of GRCh37, in this block."""

BUILDS = {"GRCh37": "17", "GRCh38": "chr17"}
NUMBERS = (
    "dll",
    "dll_fwd",
    "dll_rc",
    "dmean",
    "llr",
    "dll_allele",
    "dll_flank",
    "ll_ref",
    "ll_alt",
)


@pytest.fixture
def folder(shared_dir: Path) -> Path:
    return shared_dir / "data" / "variants" / "brca1"


def texts(folder: Path, build: str, every: int) -> list[str]:
    with VariantReader(folder / f"BRCA1_SGE_Findlay2018.{build}.vcf.gz") as reader:
        return [f"{BUILDS[build]}-{r.pos}-{r.ref}-{r.alts[0]}" for r in reader][::every]


def scored(
    model: StripedHyena2, folder: Path, build: str, given: Sequence[str], **options: object
) -> pd.DataFrame:
    genome = folder / f"{build}_chr17.Npadded.BRCA1.fa.gz"
    found = score_variants(model, given, genome, allow_out_of_domain=True, **options)  # type: ignore[arg-type]
    assert not found["flags"].str.contains("n_in_window|window_shifted", na=False).any()
    return found


@pytest.mark.filterwarnings("ignore:out of domain")
@pytest.mark.parametrize(("mode", "every"), [("exact", 560), ("full", 1300)])
def test_some_with_evo_mini(folder: Path, mode: str, every: int) -> None:
    model = load_model("evo-mini", device="cpu")
    both = [
        # The second in another order: nothing may hang on batch-mates.
        scored(model, folder, build, sorted(texts(folder, build, every), reverse=build == "GRCh38"),
               window=256, window_mode=mode, methods=["delta", "jsd", "entropy"])
        for build in BUILDS
    ]  # fmt: skip
    compare(*both, number=-(-3893 // every), columns=(*NUMBERS, "jsd", "jsd_max", "ent_ref"))


@pytest.mark.filterwarnings("ignore:out of domain")
@pytest.mark.slow
def test_all_of_them(folder: Path, toy_model: StripedHyena2) -> None:
    both = [
        scored(toy_model, folder, build, texts(folder, build, 1), window=512) for build in BUILDS
    ]
    compare(*both, number=3893, columns=NUMBERS)


def compare(one: pd.DataFrame, other: pd.DataFrame, *, number: int, columns: Sequence[str]) -> None:
    other = other.assign(pos=other["pos"] - OFFSET, window_start=other["window_start"] - OFFSET)
    merged = one.merge(other, on=["pos", "ref", "alt"], suffixes=("_37", "_38"))
    assert len(one) == len(other) == len(merged) == number
    assert (merged["status_37"] == "ok").all() and (merged["status_38"] == "ok").all()
    assert (merged["window_start_37"] == merged["window_start_38"]).all()
    for name in columns:
        assert merged[f"{name}_37"].notna().all()
        pd.testing.assert_series_equal(
            merged[f"{name}_37"], merged[f"{name}_38"], check_names=False, check_exact=True
        )
