"""Calibration: contexts, drawn means and quantiles by hand; tables of real runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from evo_data.alphabet import BASES, reverse_complement
from evo_data.fasta import Fasta
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.variants.calibration import (
    Calibration,
    apply_calibration,
    calibrate,
    context_index,
    context_text,
    contexts_of,
    drawn_means,
    fold,
    open_scored,
)

SEQUENCE = "".join(random.Random(11).choices("ACGT", k=600))
SEQUENCE = SEQUENCE[:300] + "N" + SEQUENCE[301:]
RUN = {"model": "m", "model_sha256": "s", "window": 64, "window_mode": "exact", "strands": "both"}


def made(
    counts: np.ndarray | None = None, sums: np.ndarray | None = None, **changes: object
) -> Calibration:
    zeros = np.zeros((1024, 4))
    given = {
        "run": RUN, "column": "dll", "folded": False, "strength": 10.0,
        "counts": (zeros if counts is None else counts).astype(np.int64),
        "sums": zeros if sums is None else sums, "quantiles": np.linspace(-1, 1, 2001),
    }  # fmt: skip
    return Calibration(**{**given, **changes})  # type: ignore[arg-type]


def test_contexts_by_number() -> None:
    assert context_index("AAAAA") == 0 and context_index("CAAAT") == 256 + 3
    texts = [context_text(i) for i in range(1024)]
    assert [context_index(t) for t in texts] == list(range(1024)) and len(set(texts)) == 1024
    for wrong in ("ACGT", "ACGTN"):
        with pytest.raises(ValueError):
            context_index(wrong)


def test_folding_is_the_reverse_complement() -> None:
    everything = np.array([(c, a) for c in range(1024) for a in range(4)])
    contexts, alts = fold(everything[:, 0], everything[:, 1])
    for (context, alt), one, two in zip(everything.tolist(), contexts, alts, strict=True):
        text, base = context_text(context), BASES[alt]
        if text[2] in "AG":
            text = reverse_complement(text.encode()).decode()
            base = reverse_complement(base.encode()).decode()
        assert (context_text(int(one)), BASES[int(two)]) == (text, base)


def test_contexts_of_places(tmp_path: Path) -> None:
    path = tmp_path / "g.fa"
    path.write_text(">1\nACGTTNACGTA\n")
    with Fasta(path) as genome:
        contigs = {"chr1": "1"}
        positions = [1, 2, 3, 4, 8, 9, 10]
        found = contexts_of(genome, contigs, ["chr1"] * 7 + ["x"], [*positions, 3])
    expected = [-1, -1, context_index("ACGTT"), -1, -1, context_index("ACGTA"), -1, -1]
    assert found.tolist() == expected


def test_means_of_few_are_drawn_towards_wider_ones() -> None:
    counts, sums = np.zeros((1024, 4), np.int64), np.zeros((1024, 4))
    # C to T: twice between AA and AA (sum 4), once between CA and AA (sum 10); T to A once, -3.
    for context, alt, count, total in [
        ("AACAA", "T", 2, 4.0), ("CACAA", "T", 1, 10.0), ("GGTGG", "A", 1, -3.0),
    ]:  # fmt: skip
        counts[context_index(context), BASES.index(alt)] = count
        sums[context_index(context), BASES.index(alt)] = total
    found = drawn_means(counts, sums, 10, folded=False)
    everything = (4 + 10 - 3) / 4
    c_to_t = (14 + 10 * everything) / 13
    between_a = (14 + 10 * c_to_t) / 13
    assert found[context_index("AACAA"), 3] == pytest.approx((4 + 10 * between_a) / 12)
    assert found[context_index("CACAA"), 3] == pytest.approx((10 + 10 * between_a) / 11)
    assert found[context_index("GACAT"), 3] == pytest.approx(between_a)  # never seen
    assert found[context_index("AAGCA"), 0] == pytest.approx(everything)
    plain = drawn_means(counts, sums, 0, folded=False)
    assert plain[context_index("AACAA"), 3] == 2 and plain[context_index("CACAA"), 3] == 10
    assert plain[context_index("TTTTT"), 0] == -3 and plain[context_index("TTTTT"), 1] == 11 / 4
    both = drawn_means(counts, sums, 10, folded=True)
    assert both[context_index("TTGTT"), 0] == both[context_index("AACAA"), 3]


def test_quantiles_by_hand() -> None:
    found = made().quantile(np.array([-5, -1, 0, 0.5, 1, 7, np.nan]))
    assert found[:-1].tolist() == pytest.approx([-1, -1, 0, 0.5, 1, 1]) and np.isnan(found[-1])
    # A quarter below, half equal to 2, a quarter above: 2 stands in the middle.
    values = np.quantile(np.array([0.0, 2, 2, 4]), np.linspace(0, 1, 2001), method="nearest")
    tied = made(quantiles=values)
    assert tied.quantile(np.array([2.0]))[0] == pytest.approx(0, abs=2e-3)
    steps = tied.quantile(np.linspace(-1, 5, 50))
    assert (np.diff(steps) >= 0).all() and steps[0] == -1 and steps[-1] == 1


def test_a_calibration_comes_back(tmp_path: Path) -> None:
    counts = np.zeros((1024, 4), np.int64)
    counts[5, 2], counts[1000, 1] = 3, 1
    one = made(counts, counts * 0.1, folded=True)
    one.save(tmp_path / "c.json")
    two = Calibration.load(tmp_path / "c.json")
    np.testing.assert_array_equal(one.counts, two.counts)
    np.testing.assert_array_equal(one.sums, two.sums)
    np.testing.assert_array_equal(one.quantiles, two.quantiles)
    assert (one.run, one.column, one.folded, one.strength) == (two.run, two.column, two.folded, two.strength)  # fmt: skip
    document = json.loads((tmp_path / "c.json").read_text())
    document["format_version"] = 2
    (tmp_path / "later.json").write_text(json.dumps(document))
    document["format_version"] = 1
    broken: list[dict[str, object]] = [
        {"context_alt_count_sum": [["AAAAA", "C", 1e400, 0.0]]},
        {"context_alt_count_sum": [["AAAAA", "C", -1, 0.0]]},
        {"context_alt_count_sum": [["AAAAA", "C", 1, float("nan")]]},
        {"context_alt_count_sum": [["AANAA", "C", 1, 0.0]]},
        {"quantiles": []}, {"quantiles": [1.0, 0.0]}, {"quantiles": [0.0, float("nan")]},
        {"strength": float("nan")},
    ]  # fmt: skip
    for text in ("", "{}", "[1]", '{"format_version": 1}', *(json.dumps(document | b) for b in broken)):  # fmt: skip
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(EvoError, match="no calibration"):
            Calibration.load(tmp_path / "bad.json")
    with pytest.raises(EvoError, match="format version 2"):
        Calibration.load(tmp_path / "later.json")


# Tables of real runs.


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, toy_model_dir: Path) -> Path:
    """A folder with a genome and its scores as TSV, bgzipped TSV and Parquet."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "g.fa").write_text(f">chr1\n{SEQUENCE}\n")
    lines = ["##fileformat=VCFv4.3", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for pos in [1, 2, *range(100, 140), 298, 299, 303, 599]:
        ref = SEQUENCE[pos - 1]
        others = ",".join(b for b in BASES if b != ref)
        lines.append(f"1\t{pos}\t.\t{ref}\t{others}\t.\t.\t.")
    ref = SEQUENCE[399:402]
    lines.append(f"1\t400\t.\t{ref}\t{ref[0]},*,{ref[:2]}{'C' if ref[2] != 'C' else 'G'}\t.\t.\t.")
    (folder / "v.vcf").write_text("\n".join(lines) + "\n")
    for name in ("s.tsv", "s.tsv.gz", "s.parquet"):
        result = run("score", folder / "v.vcf", folder / "g.fa", "-m", toy_model_dir, "-q", "-o", folder / name)  # fmt: skip
        assert result.exit_code == 0, result.output
    return folder


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, args)))


def test_all_kinds_of_tables_give_the_same(scored: Path) -> None:
    with Fasta(scored / "g.fa") as genome:
        found = [calibrate([scored / n], genome) for n in ("s.tsv", "s.tsv.gz", "s.parquet")]
        twice = calibrate([scored / "s.tsv", scored / "s.parquet"], genome, strength=0)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].counts, other.counts)
        np.testing.assert_allclose(found[0].sums, other.sums, atol=1e-9)
    assert dict(found[0].run) == dict(found[2].run) and found[0].run["strands"] == "both"
    # 40 places and one in 400-402, with three alternates or one; the ends and the N's neighbours are out.
    assert found[0].num_scores == 3 * (40 + 2 - 1) + 1 and found[0].folded
    np.testing.assert_array_equal(twice.counts, 2 * found[0].counts)


def test_calibrated_scores_of_the_neutral_ones_average_to_nothing(scored: Path) -> None:
    with Fasta(scored / "g.fa") as genome:
        calibration = calibrate([scored / "s.parquet"], genome, strength=0)
        table = pd.read_parquet(scored / "s.parquet")
        found = apply_calibration(table, calibration, genome)
    assert list(found)[-2:] == ["cdll", "quantile"]
    assert found["cdll"].notna().sum() == calibration.num_scores
    by_kind: dict[tuple[str, str], list[float]] = {}
    plain: dict[tuple[str, str], list[float]] = {}
    for row in found[found["cdll"].notna()].itertuples():
        at = int(row.norm_pos) - 1
        context, alt = SEQUENCE[at - 2 : at + 3], row.norm_alt
        if context[2] in "AG":
            context = reverse_complement(context.encode()).decode()
            alt = reverse_complement(alt.encode()).decode()
        by_kind.setdefault((context, alt), []).append(row.cdll)
        plain.setdefault((context, alt), []).append(row.dll)
    for kind, values in by_kind.items():
        assert np.mean(values) == pytest.approx(0, abs=1e-9), kind
        expected = np.array(plain[kind]) - np.mean(plain[kind])
        assert values == pytest.approx(expected.tolist(), abs=1e-9)
    assert len(by_kind) == int((calibration.counts > 0).sum())
    quantiles = found["quantile"].dropna()
    assert len(quantiles) == calibration.num_scores and quantiles.between(-1, 1).all()
    # Of those that calibrated it, half are below 0.
    assert abs(quantiles.mean()) < 0.02
    indels = found[found["kind"].isin(["del", "ins"])]
    assert len(indels) == 1 and indels["cdll"].isna().all()


def test_one_strand_is_kept_apart(scored: Path, toy_model_dir: Path) -> None:
    out = scored / "fwd.tsv"
    result = run("score", scored / "v.vcf", scored / "g.fa", "-m", toy_model_dir, "-q", "-o", out, "--strands", "fwd")  # fmt: skip
    assert result.exit_code == 0, result.output
    with Fasta(scored / "g.fa") as genome:
        found = calibrate([out], genome)
        assert not found.folded
        middles = {context_text(int(c))[2] for c in np.flatnonzero(found.counts.sum(axis=1))}
        assert middles == set(BASES)
        with pytest.raises(EvoError, match="strands both, the scores with fwd"):
            calibrate([scored / "s.tsv", out], genome)


def test_what_cannot_be_calibrated(scored: Path, tmp_path: Path) -> None:
    other = tmp_path / "g.fa"
    other.write_text(f">chr1\n{reverse_complement(SEQUENCE.encode()).decode()}\n")
    foreign = tmp_path / "foreign.tsv"
    foreign.write_text("#chrom\tpos\tref\talt\tscore\n1\t5\tA\tC\t1\n")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "foreign.parquet")
    notes = [r for r in (scored / "s.tsv").read_text().splitlines(True) if r.startswith("##")]
    (tmp_path / "bare.tsv").write_text("".join(notes) + "#chrom\tpos\n1\t5\n")
    header = next(r for r in (scored / "s.tsv").read_text().splitlines(True) if r[:2] == "#c")
    (tmp_path / "empty.tsv").write_text("".join(notes) + header)
    with Fasta(scored / "g.fa") as genome, Fasta(other) as wrong:
        with pytest.raises(EvoError, match="use the genome that was scored"):
            calibrate([scored / "s.tsv"], wrong)
        for name in ("foreign.tsv", "foreign.parquet"):
            with pytest.raises(EvoError, match="does not say which model"):
                calibrate([tmp_path / name], genome)
        with pytest.raises(EvoError, match="no column norm_pos"):
            calibrate([tmp_path / "bare.tsv"], genome)
        for name in ("s.tsv", "s.parquet"):
            with pytest.raises(EvoError, match="nonsense"):
                calibrate([scored / name], genome, column="nonsense")
        with pytest.raises(EvoError, match="no substitution"):
            calibrate([tmp_path / "empty.tsv"], genome)
        for strength in (-1.0, float("nan")):
            with pytest.raises(UsageError, match="0 or more"):
                calibrate([scored / "s.tsv"], genome, strength=strength)
    made(run={**RUN, "model_sha256": "s"}).require_same_run(RUN)
    with pytest.raises(EvoError, match="model_sha256 other"):
        made(run={**RUN, "model_sha256": "other"}).require_same_run(open_scored(scored / "s.tsv").run | {"model": "m"})  # fmt: skip


def test_the_command(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    result = run("data", "calibrate", scored / "g.fa", scored / "s.tsv", "-o", out)
    assert result.exit_code == 0, result.output
    assert "124 substitutions" in result.stderr and "of 1,536 kinds" in result.stderr
    assert Calibration.load(out).num_scores == 124
    again = run("data", "calibrate", scored / "g.fa", scored / "s.tsv", "-o", out)
    assert again.exit_code == 1 and "--force" in again.stderr
    for arguments, code in [
        (("-o", scored / "s.tsv", "--force"), 2),
        (("-o", tmp_path / "x.json", "--column", "nonsense"), 1),
    ]:
        result = run("data", "calibrate", scored / "g.fa", scored / "s.tsv", *arguments)
        assert result.exit_code == code and result.stderr.count("\n") == 1, result.output
    assert not (tmp_path / "x.json").exists()
