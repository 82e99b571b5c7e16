"""Formulas of the methods, by hand and against the scoring engine."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from evo_data.alphabet import BASES
from evo_data.fasta import Fasta
from evo_data.interval import Interval
from evo_data.variant import Variant, edit_of, normalise
from evo_data.vcf import VcfRecord
from evo_data.windows import StrandWindow, variant_windows
from evo_toolkit.errors import UsageError
from evo_toolkit.inference.embed import embed
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants import method_values as values_module
from evo_toolkit.variants.method_values import method_values, snv_marginals
from evo_toolkit.variants.methods import (
    METHOD_NAMES,
    WindowOutputs,
    entropy,
    flank,
    get_methods,
    jensen_shannon,
    marginal,
)
from evo_toolkit.variants.reuse import window_runner
from evo_toolkit.variants.score import VariantScorer
from evo_toolkit.variants.track import Track

SEQUENCE = "".join(random.Random(9).choices("ACGT", k=500))
NAN = float("nan")


def of(ref: str, alt: str, pos: int = 250) -> Variant:
    return Variant("c1", pos, ref, alt)


def reference(length: int, pos: int = 250) -> str:
    return SEQUENCE[pos - 1 : pos - 1 + length]


def other(base: str) -> str:
    return "ACGT"[("ACGT".index(base) + 1) % 4]


SNV = of(reference(1), other(reference(1)))
VARIANTS = [
    SNV,
    of(reference(2), "".join(other(b) for b in reference(2))),
    of(reference(1), reference(1) + "GATTACA"),
    of(reference(5), reference(1)),
    of(reference(4), other(reference(1)) + "CC"),
]


@pytest.fixture
def genome(tmp_path: Path) -> Fasta:
    path = tmp_path / "g.fa"
    path.write_text(f">c1\n{SEQUENCE}\n")
    return Fasta(path)


def windows_of(genome: Fasta, variant: Variant, window: int = 64) -> list[StrandWindow]:
    def fetch(start: int, end: int) -> bytes:
        return genome.fetch("c1", start, end)

    return variant_windows(fetch, 500, edit_of(normalise(variant, fetch)), window)[0]


def test_entropy_by_hand() -> None:
    assert entropy(np.log([0.25] * 4)) == pytest.approx(np.log(4))
    # The vocabulary holds more than four bases: the four are divided by their sum.
    assert entropy(np.log([0.1, 0.1, 1e-30, 1e-30])) == pytest.approx(np.log(2))
    assert entropy(np.array([0.0, -2000, -2000, -2000])) == 0
    assert entropy(np.array([-1e4, -1e4, -1e4, -1e4])) == pytest.approx(np.log(4))
    found = entropy(np.array([[NAN] * 4, np.log([0.5, 0.25, 0.125, 0.125])]))
    assert np.isnan(found[0]) and found[1] == pytest.approx(1.75 * np.log(2))


def test_divergence_by_hand() -> None:
    one, two = np.array([0.0, -2000, -2000, -2000]), np.array([-2000, 0.0, -2000, -2000])
    assert jensen_shannon(one, two) == pytest.approx(np.log(2))
    u, v = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.2, 0.5, 0.2, 0.1])
    middle = (u + v) / 2
    expected = 0.5 * (u * np.log(u / middle)).sum() + 0.5 * (v * np.log(v / middle)).sum()
    assert jensen_shannon(np.log(u), np.log(v)) == pytest.approx(expected)
    assert jensen_shannon(np.log(v) - 3, np.log(u)) == pytest.approx(expected)
    assert jensen_shannon(np.log(u), np.log(u)) == 0
    assert np.isnan(jensen_shannon(np.full(4, NAN), np.log(u)))


def test_marginal_by_hand() -> None:
    row = np.log(np.array([0.5, 0.1, 0.2, 0.2]))
    assert marginal(row, ord("A"), ord("C")) == pytest.approx(np.log(0.1 / 0.5))
    assert marginal(row, ord("N"), ord("C")) is None
    assert marginal(row, ord("A"), ord("N")) is None
    assert marginal(np.full(4, NAN), ord("A"), ord("C")) is None


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.kind)
def test_delta_and_marginal_are_the_scores(
    genome: Fasta, toy_model: StripedHyena2, variant: Variant
) -> None:
    (found,) = method_values(
        toy_model, [windows_of(genome, variant)], get_methods(["delta", "marginal"])
    )
    scorer = VariantScorer(window_runner(toy_model, 64, "full"), genome, {"c1": "c1"})
    record = VcfRecord(
        b"", b"", 1, "c1", variant.pos, ".", variant.ref, (variant.alt,), (), b""
    )  # fmt: skip
    ((expected,),) = [scored.alleles for scored in scorer.score([record])]
    assert found["dll"] == pytest.approx(expected.dll, abs=1e-4)
    assert found["dmean"] == pytest.approx(expected.dmean, abs=1e-6)
    assert found["marg"] == pytest.approx(expected.llr, abs=1e-5)


def four(model: StripedHyena2, text: bytes) -> np.ndarray:
    """Probabilities among the four bases after each token of a text, by the plain route."""
    with torch.no_grad():
        logits = model(torch.tensor([list(text)]))[0].double()
    found: np.ndarray = logits[:, [ord(b) for b in BASES]].softmax(-1).numpy()
    return found


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.kind)
def test_jsd_compares_predictions_of_the_same_base(
    genome: Fasta, toy_model: StripedHyena2, variant: Variant
) -> None:
    windows = windows_of(genome, variant)
    (found,) = method_values(toy_model, [windows], get_methods(["jsd", "entropy"]))
    sums, largest, entropies = [], [], []
    for window in windows:
        ref, alt = window.ref.tobytes(), window.alt.tobytes()
        p_ref, p_alt = four(toy_model, ref), four(toy_model, alt)
        divergences = []
        i, j = window.ref_allele[1], window.alt_allele[1]
        while max(i, j) < 64:
            assert ref[i] == alt[j]  # the same base of the genome
            u, v = p_ref[i - 1], p_alt[j - 1]
            m = (u + v) / 2
            divergences.append(((u * np.log(u / m)).sum() + (v * np.log(v / m)).sum()) / 2)
            i, j = i + 1, j + 1
        sums.append(sum(divergences))
        largest.append(max(divergences))
        site = p_ref[window.fork - 1]
        entropies.append(-(site * np.log(site)).sum())
    assert found["jsd"] == pytest.approx(np.mean(sums), rel=1e-3, abs=1e-6)
    assert found["jsd_max"] == pytest.approx(np.mean(largest), rel=1e-3, abs=1e-6)
    assert found["ent_ref"] == pytest.approx(np.mean(entropies), abs=1e-5)
    assert found["jsd"] is not None and found["jsd"] > 1e-6


def test_the_flank_of_an_insertion() -> None:
    ref, alt = np.frombuffer(b"AACCGGTT", np.uint8), np.frombuffer(b"AATTTCCG", np.uint8)
    window = StrandWindow("+", 0, 8, ref, alt, 2, (2, 2), (2, 5))
    here, there = flank(window)
    assert (here, there) == (slice(2, 5), slice(5, 8))
    np.testing.assert_array_equal(ref[here], alt[there])


@pytest.mark.parametrize("layer", ["blocks.1", "norm"])
def test_embed_is_the_distance_of_means_behind_the_fork(
    genome: Fasta, toy_model: StripedHyena2, layer: str
) -> None:
    windows = windows_of(genome, SNV)
    (found,) = method_values(toy_model, [windows], get_methods(["embed"], [layer]))
    distances, cosines = [], []
    for window in windows:
        texts = [window.ref.tobytes(), window.alt.tobytes()]
        whole = embed(toy_model, texts, layer, pool="none")[layer]
        ref, alt = (np.asarray(v)[window.fork :].mean(axis=0, dtype=np.float64) for v in whole)
        distances.append(np.linalg.norm(ref - alt))
        cosines.append(1 - ref @ alt / np.linalg.norm(ref) / np.linalg.norm(alt))
    assert found[f"embed_l2_{layer}"] == pytest.approx(np.mean(distances), rel=1e-3)
    assert found[f"embed_cos_{layer}"] == pytest.approx(np.mean(cosines), rel=0.02, abs=2e-7)
    assert distances[0] > 1e-5


def test_equal_alleles_differ_in_nothing(genome: Fasta, toy_model: StripedHyena2) -> None:
    windows = windows_of(genome, of(reference(1), reference(1)))
    (found,) = method_values(
        toy_model, [windows], get_methods(["delta", "marginal", "jsd", "embed"], ["norm"])
    )
    assert set(found.values()) == {0.0} and len(found) == 7


def test_a_value_does_not_depend_on_the_others(genome: Fasta, toy_model: StripedHyena2) -> None:
    methods = get_methods(METHOD_NAMES, ["blocks.0"])
    alleles = [windows_of(genome, variant) for variant in VARIANTS]
    together = method_values(toy_model, alleles, methods)
    assert together == [method_values(toy_model, [one], methods)[0] for one in alleles]
    assert together == method_values(toy_model, alleles[::-1], methods)[::-1]


def test_marginal_runs_no_alternate(
    genome: Fasta, toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Counting(values_module.PositionModel):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(values_module, "PositionModel", Counting)
    alleles = [windows_of(genome, of(reference(1), b)) for b in BASES if b != reference(1)]
    found = method_values(toy_model, alleles, get_methods(["marginal", "entropy"]))
    # Three alternates, two strands, one reference window for each.
    assert made[0].num_bases == 2 * 64
    assert len({row["marg"] for row in found}) == 3 and len({row["ent_ref"] for row in found}) == 1


def test_a_fork_without_prediction() -> None:
    tokens = [np.frombuffer(text, np.uint8) for text in (b"ACGT", b"CCGT")]
    window = StrandWindow("+", 0, 4, *tokens, 0, (0, 1), (0, 1))
    bases = np.full((4, 4), np.log(0.25), dtype=np.float32)
    bases[0] = NAN
    outputs = WindowOutputs(window=window, bases_ref=bases, bases_alt=bases)
    marg, ent, jsd = get_methods(["marginal", "entropy", "jsd"])
    assert marg([outputs]) == {"marg": None} and ent([outputs]) == {"ent_ref": None}
    assert jsd([outputs]) == {"jsd": 0.0, "jsd_max": 0.0}
    # The strand that has a value gives it alone.
    later = StrandWindow("-", 0, 4, tokens[0], tokens[1], 2, (2, 3), (2, 3))
    assert ent([outputs, WindowOutputs(window=later, bases_ref=bases)])["ent_ref"] == pytest.approx(np.log(4))  # fmt: skip


@pytest.mark.parametrize(
    "ref_allele, alt_allele", [((9, 10), (9, 10)), ((9, 9), (9, 12)), ((9, 13), (9, 10))]
)
def test_shift_is_of_the_third_to_the_96th_base_behind_the_allele(
    ref_allele: tuple[int, int], alt_allele: tuple[int, int]
) -> None:
    size = 140
    tokens = np.zeros(size, np.uint8)
    window = StrandWindow("+", 0, size, tokens, tokens, 9, ref_allele, alt_allele)
    ref, alt = np.random.default_rng(0).normal(size=(2, size)).astype(np.float32)
    ref[0] = alt[0] = NAN
    expected = [
        abs(float(alt[alt_allele[1] + behind]) - float(ref[ref_allele[1] + behind]))
        for behind in range(2, 96)
    ]
    (shift,) = get_methods(["shift"])
    found = shift([WindowOutputs(window=window, log_probs_ref=ref, log_probs_alt=alt)])
    assert found["shift"] == pytest.approx(sum(expected) / 94, rel=1e-6)
    # Read to one length alone, and at the end of a contig, there are fewer.
    cut = WindowOutputs(window=window, log_probs_ref=ref[:30], log_probs_alt=alt[:30])
    fewer = min(30 - ref_allele[1], 30 - alt_allele[1]) - 2
    assert shift([cut])["shift"] == pytest.approx(sum(expected[:fewer]) / fewer, rel=1e-6)
    nothing = WindowOutputs(window=window, log_probs_ref=ref[:11], log_probs_alt=alt[:11])
    assert shift([nothing])["shift"] is None


def test_names() -> None:
    methods = get_methods([*METHOD_NAMES, "delta"], ["blocks.4", "blocks.3.mlp.l3"])
    assert [m.name for m in methods] == list(METHOD_NAMES)
    columns = [column for m in methods for column in m.columns]
    assert len({column.name for column in columns}) == len(columns)
    for column in columns:
        assert re.fullmatch(r"EVO_[0-9A-Za-z_.]+", f"EVO_{column.info_suffix}"), column.name
        assert not set(column.description) & set('"\\\n') and len(column.description) > 20
        assert column.unit in ("nats", "nats per base", "")
    for arguments, message in [
        ((["dll"],), "delta, marginal"),
        ((["embed"],), "needs a layer"),
        ((["delta"], ["norm"]), "for the method embed"),
    ]:
        with pytest.raises(UsageError, match=message):
            get_methods(*arguments)


def test_marginals_of_many_substitutions(genome: Fasta, toy_model: StripedHyena2) -> None:
    track = Track(toy_model, genome, window=64)
    snvs = [
        of(SEQUENCE[pos - 1], b, pos)
        for pos in (300, 1, 260, 500)
        for b in BASES
        if b != SEQUENCE[pos - 1]
    ]
    found = snv_marginals(track, snvs)
    for snv, value in zip(snvs, found, strict=True):
        (block,) = track.blocks([Interval(snv.contig, snv.start, snv.end)])
        by_strand = {s: v[0].astype(float) for s, v in block.bases.items()}
        expected = {
            s: v[BASES.index(snv.alt)] - v[BASES.index(snv.ref)] for s, v in by_strand.items()
        }
        for strand, number in (("+", value.fwd), ("-", value.rc)):
            assert (number is None) == np.isnan(expected[strand])
            assert number is None or number == pytest.approx(expected[strand])
        assert value.mean == pytest.approx(np.nanmean(list(expected.values())))
    assert found[3].fwd is None and found[-1].rc is None
    with pytest.raises(UsageError, match="no substitution"):
        snv_marginals(track, [VARIANTS[2]])
