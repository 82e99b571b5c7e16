"""Tracks: what stands at which base, independence of regions, files that say the same."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pysam
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from evo_data.alphabet import BASES, reverse_complement
from evo_data.errors import EvoDataError
from evo_data.fasta import Fasta
from evo_data.interval import Interval
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.inference import batching
from evo_toolkit.inference.likelihood import log_likelihood
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants import positions, track
from evo_toolkit.variants.positions import PositionModel
from evo_toolkit.variants.regions import read_regions
from evo_toolkit.variants.track import Track, TrackBlock, tiles
from evo_toolkit.variants.track_files import as_text, runs

SEQUENCE = "".join(random.Random(3).choices("ACGT", k=700))


def genome_of(folder: Path, *sequences: str, name: str = "g.fa") -> Fasta:
    path = folder / name
    path.write_text("".join(f">c{i}\n{text}\n" for i, text in enumerate(sequences, start=1)))
    return Fasta(path)


def joined(
    made: Track, regions: list[Interval] | None = None, quantity: str = "loglik"
) -> dict[str, np.ndarray]:
    """The values of all regions, strand by strand, and their mean."""
    if regions is None:
        regions = read_regions((), None, made.genome.lengths)
    blocks = list(made.blocks(regions))
    found = {s: np.concatenate([b.strands(quantity)[s] for b in blocks]) for s in made.strands}
    return {**found, "mean": np.concatenate([b.mean(quantity) for b in blocks])}


def test_the_sum_of_a_strand_is_the_log_likelihood_of_its_reading(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    found = joined(Track(toy_model, genome_of(tmp_path, SEQUENCE), whole=True))
    both = [SEQUENCE.encode(), reverse_complement(SEQUENCE.encode())]
    expected = log_likelihood(toy_model, both)
    for strand, total in zip("+-", expected, strict=True):
        assert np.nansum(found[strand], dtype=np.float64) == pytest.approx(total, rel=1e-12)
    # The mean has the other strand's value where a strand has none.
    ends = float(found["-"][0]) + float(found["+"][-1])
    assert np.isnan(found["+"][0]) and np.isnan(found["-"][-1])
    assert found["mean"].sum(dtype=np.float64) == pytest.approx((expected.sum() + ends) / 2)


def test_a_window_as_long_as_the_contig_is_the_whole_contig(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    genome = genome_of(tmp_path, SEQUENCE)
    whole, window = Track(toy_model, genome, whole=True), Track(toy_model, genome, window=700)
    np.testing.assert_array_equal(joined(whole)["mean"], joined(window)["mean"])


@pytest.mark.parametrize(("base", "strand"), [(300, "+"), (300, "-"), (5, "+"), (695, "-")])
def test_a_base_is_predicted_from_its_own_side(
    tmp_path: Path, toy_model: StripedHyena2, base: int, strand: str
) -> None:
    """Base i of "-" is the complement of base i, given the complements of the bases after it."""
    made = Track(toy_model, genome_of(tmp_path, SEQUENCE), window=64, stride=16)
    text = SEQUENCE if strand == "+" else reverse_complement(SEQUENCE.encode()).decode()
    at = base if strand == "+" else len(SEQUENCE) - 1 - base
    # The first tile that holds it: [0, 64), then one every 16 bases.
    start = 0 if at < 64 else ((at - 64) // 16 + 1) * 16
    ids = torch.tensor([[ord(c) for c in text[start : start + 64]]])
    with torch.no_grad():
        logits = toy_model(ids)[0, at - start - 1].double()
    log_probs = logits.log_softmax(-1)
    four = log_probs[[ord(b) for b in BASES]].softmax(0)
    (block,) = made.blocks([Interval("c1", base, base + 1)])
    assert block.loglik[strand][0] == pytest.approx(float(log_probs[ord(text[at])]), abs=1e-5)
    entropy = -float((four * four.log()).sum())
    assert block.entropy[strand][0] == pytest.approx(entropy, abs=1e-5)
    forward = BASES if strand == "+" else "TGCA"
    expected = [float(log_probs[ord(b)]) for b in forward]
    assert block.bases[strand][0].tolist() == pytest.approx(expected, abs=1e-5)


def test_values_do_not_depend_on_the_regions(tmp_path: Path, toy_model: StripedHyena2) -> None:
    genome = genome_of(tmp_path, SEQUENCE, SEQUENCE[100:250])
    made = Track(toy_model, genome, window=64, stride=24)
    everything = joined(made)
    for start, end in [(0, 1), (63, 65), (300, 400), (699, 700)]:
        part = joined(made, [Interval("c1", start, end)])
        for name, values in part.items():
            np.testing.assert_array_equal(values, everything[name][start:end], err_msg=name)
    second = joined(made, [Interval("c2", 10, 20)])
    np.testing.assert_array_equal(second["mean"], everything["mean"][710:720])


def test_blocks_are_seamless(
    tmp_path: Path, toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    genome = genome_of(tmp_path, SEQUENCE)
    expected = joined(Track(toy_model, genome, window=64))
    monkeypatch.setattr(track, "_BLOCK", 50)
    made = Track(toy_model, genome, window=64)
    found = joined(made)
    # A tile that two blocks need is kept for the second one.
    assert made.positions.num_bases == made.num_tokens([Interval("c1", 0, 700)])
    assert len(list(made.blocks([Interval("c1", 0, 700)]))) == 14
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_every_tile_runs_once(tmp_path: Path, toy_model: StripedHyena2) -> None:
    made = Track(toy_model, genome_of(tmp_path, SEQUENCE), window=64, strands="fwd")
    regions = [Interval("c1", start, start + 2) for start in range(100, 160, 4)]
    reported: list[int] = []
    list(made.blocks(regions, reported.append))
    # Bases 100 to 157 take their values from two tiles: [64, 128) and [96, 160).
    assert made.num_tokens(regions) == made.positions.num_bases == sum(reported) == 2 * 64


def test_the_other_strand_of_the_genome_is_the_mirror_image(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    other = reverse_complement(SEQUENCE.encode()).decode()
    here = Track(toy_model, genome_of(tmp_path, SEQUENCE), window=64, stride=20)
    there = Track(toy_model, genome_of(tmp_path, other, name="r.fa"), window=64, stride=20)
    for quantity in ("loglik", "entropy"):
        one, two = joined(here, quantity=quantity), joined(there, quantity=quantity)
        np.testing.assert_array_equal(one["+"], two["-"][::-1])
        np.testing.assert_array_equal(one["-"], two["+"][::-1])
        np.testing.assert_array_equal(one["mean"], two["mean"][::-1])


def test_case_does_not_matter_and_other_bases_have_no_value(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    upper = joined(Track(toy_model, genome_of(tmp_path, SEQUENCE), window=64))
    lower = joined(Track(toy_model, genome_of(tmp_path, SEQUENCE.lower(), name="l.fa"), window=64))
    np.testing.assert_array_equal(upper["mean"], lower["mean"])
    text = SEQUENCE[:300] + "NNNNR" + SEQUENCE[305:]
    made = Track(toy_model, genome_of(tmp_path, text, name="n.fa"), window=64)
    for quantity in ("loglik", "entropy"):
        found = joined(made, quantity=quantity)
        for name in ("+", "-", "mean"):
            missing = np.flatnonzero(np.isnan(found[name])).tolist()
            ends = {"+": [0], "-": [699], "mean": []}[name]
            assert missing == sorted([*ends, 300, 301, 302, 303, 304])


@given(
    length=st.integers(1, 300),
    window=st.integers(2, 80),
    stride=st.integers(1, 80),
    ends=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_tiles_hold_every_base_once(
    length: int, window: int, stride: int, ends: tuple[int, int]
) -> None:
    stride = min(stride, window)
    first, last = (min(value, length) for value in sorted(ends))
    found = tiles(length, window, stride, first, last)
    held = [x for t in found for x in range(max(t.keep, first), min(t.end, last))]
    assert held == list(range(first, last))
    for tile in found:
        assert 0 <= tile.start <= tile.keep < tile.end <= length
        assert tile.end - tile.start <= window
        assert max(tile.keep, first) < min(tile.end, last)  # none for nothing
        assert tile.start == 0 or tile.keep - tile.start >= window - stride


def test_a_row_longer_than_a_chunk_equals_one_pass(
    toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = np.frombuffer(SEQUENCE.encode(), np.uint8)
    (expected,) = PositionModel(toy_model, bases=True)([row])
    for module in (batching, positions):
        monkeypatch.setattr(module, "CHUNK", 96)
    (found,) = PositionModel(toy_model, bases=True)([row])
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=2e-5)
    assert found.bases is not None and expected.bases is not None
    np.testing.assert_allclose(found.bases, expected.bases, atol=2e-5)
    assert found.bases.shape == (700, 4) and np.isnan(found.bases[0]).all()


def test_too_little_memory_halves_the_rows(
    toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [np.frombuffer(SEQUENCE[i : i + 64].encode(), np.uint8) for i in range(9)]
    expected = PositionModel(toy_model)(rows)
    hidden = toy_model.hidden

    def small(ids: torch.Tensor, *args: object, **kwargs: object) -> object:
        if ids.shape[0] > 20:
            raise torch.OutOfMemoryError
        return hidden(ids, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(toy_model, "hidden", small)
    runner = PositionModel(toy_model)
    for found, wanted in zip(runner(rows), expected, strict=True):
        np.testing.assert_allclose(found.log_probs, wanted.log_probs, atol=2e-5)
    assert list(runner.shapes) == [(16, 64)]


def test_regions(tmp_path: Path) -> None:
    lengths = {"chr2": 100, "chr1": 50}
    bed = tmp_path / "r.bed"
    bed.write_text("#x\ntrack name=a\nchr1\t0\t10\tname\n1 10 20\n\nchr2\t5\t5\n")
    found = read_regions(["chr2:91-100", "chr2:1,0-20"], bed, lengths)
    assert found == [Interval("chr2", 9, 20), Interval("chr2", 90, 100), Interval("chr1", 0, 20)]
    inner = read_regions(["chr2:1-90", "chr2:5-20", "chr2:91-92"], None, lengths)
    assert inner == [Interval("chr2", 0, 92)]
    assert read_regions(["2"], None, lengths) == [Interval("chr2", 0, 100)]
    assert read_regions((), None, lengths) == [Interval("chr2", 0, 100), Interval("chr1", 0, 50)]
    for text, message in [
        ("chr2:0-5", "1-based"), ("chr9:1-5", "no contig"), ("chr1:1-51", "50 bases"), ("x", "contig"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=message):
            read_regions([text], None, lengths)
    for line, message in [("chr1\t0\t51", "not within"), ("chr1\tx\t5", "no BED"), ("q\t1\t2", "no contig")]:  # fmt: skip
        bed.write_text(f"chr1\t0\t1\n{line}\n")
        with pytest.raises((EvoError, EvoDataError), match=f"line 2.*{message}"):
            read_regions((), bed, lengths)


def test_regions_without_a_base(tmp_path: Path) -> None:
    bed = tmp_path / "r.bed"
    for text in ("", "#nothing\n", "chr1\t5\t5\n"):
        bed.write_text(text)
        with pytest.raises(EvoError, match=r"r.bed: no region with a base"):
            read_regions((), bed, {"chr1": 50})
    with pytest.raises(EvoError, match="empty: no region"):
        read_regions(["empty"], None, {"empty": 0, "chr1": 50})


def test_options_that_do_not_fit(tmp_path: Path, toy_model: StripedHyena2) -> None:
    genome = genome_of(tmp_path, SEQUENCE)
    for options in [{"stride": 65}, {"window": 1}, {"strands": "up"}, {"whole": True}]:
        with pytest.raises(UsageError):
            Track(toy_model, genome, **{"window": 64, **options})  # type: ignore[arg-type]


def test_text_keeps_every_bit() -> None:
    values = np.frombuffer(random.Random(0).randbytes(4000), np.float32)
    values = np.append(values[np.isfinite(values)], np.float32("nan")).astype(np.float32)
    texts = as_text(values)
    assert texts.pop() == "."
    np.testing.assert_array_equal(np.array(texts, dtype=np.float32), values[:-1])
    mask = np.array([True, False, True, True, False])
    assert runs(mask) == [(0, 1), (2, 4)] and runs(~mask) == [(1, 2), (4, 5)]


# The command.


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["track", *map(str, args)])


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    return genome_of(tmp_path, SEQUENCE[:300] + "NN", SEQUENCE[300:420]).path


def test_all_formats_hold_the_same_numbers(
    genome: Path, toy_model_dir: Path, toy_model: StripedHyena2, tmp_path: Path
) -> None:
    big = pytest.importorskip("pyBigWig")
    common = (genome, "-m", toy_model_dir, "-r", "c1:200-302", "-r", "c2", "-q")
    for name in ("t.bedgraph", "t.bdg.gz", "t.bw", "t.tsv", "t.tsv.gz", "t.parquet"):
        result = run(*common, "-o", tmp_path / name)
        assert result.exit_code == 0 and not result.output, result.output
    table = pq.read_table(tmp_path / "t.parquet").to_pandas()
    assert list(table)[:4] == ["chrom", "pos", "base", "loglik"]
    assert table["pos"].tolist() == [*range(200, 303), *range(1, 121)]
    assert "".join(table["base"]) == SEQUENCE[199:300] + "NN" + SEQUENCE[300:420]
    with Fasta(genome) as reference:
        made = Track(toy_model, reference)
        expected = joined(made, [Interval("c1", 199, 302), Interval("c2", 0, 120)])
    for column, name in [("loglik", "mean"), ("loglik_fwd", "+"), ("loglik_rc", "-")]:
        np.testing.assert_array_equal(table[column].to_numpy(np.float32), expected[name])
    assert table["loglik"].isna().sum() == 2

    for name in ("t.tsv", "t.tsv.gz"):
        text = pd.read_csv(
            tmp_path / name, sep="\t", na_values=".", skiprows=_notes(tmp_path / name)
        )
        text = text.rename(columns={"#chrom": "chrom"})
        assert list(text) == list(table)
        for column in ("chrom", "pos", "base"):
            assert text[column].tolist() == table[column].tolist()
        for column in list(table)[3:]:
            np.testing.assert_array_equal(
                text[column].to_numpy(np.float32), table[column].to_numpy(np.float32)
            )
    # Coordinates: base 200 is [199, 200) in bedGraph and bigWig.
    plain = (tmp_path / "t.bedgraph").read_text()
    with pysam.BGZFile(str(tmp_path / "t.bdg.gz")) as packed:
        assert _values(packed.read().decode()) == _values(plain)
    known = table.dropna(subset="loglik")
    rows = _values(plain)
    assert [row[:3] for row in rows] == [
        (c, p - 1, p) for c, p in zip(known["chrom"], known["pos"], strict=True)
    ]
    np.testing.assert_array_equal(np.float32([row[3] for row in rows]), np.float32(known["loglik"]))
    with big.open(str(tmp_path / "t.bw")) as file:
        assert file.chroms() == {"c1": 302, "c2": 120}
        found = [*file.values("c1", 199, 302), *file.values("c2", 0, 120)]
        np.testing.assert_array_equal(np.float32(found), table["loglik"].to_numpy(np.float32))
        assert np.isnan(file.values("c1", 0, 199)).all()
    for name in ("t.bdg.gz", "t.tsv.gz"):
        with pysam.TabixFile(str(tmp_path / name)) as index:
            # The 201st and 202nd base of c1 and no other.
            rows = [row.split("\t") for row in index.fetch("c1", 200, 202)]
            assert [row[1] for row in rows] == (["200", "201"] if "bdg" in name else ["201", "202"])
    manifest = json.loads((tmp_path / "t.bw.json").read_text())
    assert manifest["window"] == 64 and manifest["model"] == "toy" and manifest["unit"] == "nats"
    assert not list(tmp_path.glob(".*"))


def _notes(path: Path) -> int:
    with pysam.BGZFile(str(path)) if path.suffix == ".gz" else path.open("rb") as file:
        return sum(line.startswith(b"##") for line in file)


def _values(text: str) -> list[tuple[str, int, int, float]]:
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return [(c, int(a), int(b), float(v)) for c, a, b, v in rows]


def test_the_sum_of_the_track_is_what_log_likelihood_says(
    genome: Path, toy_model_dir: Path
) -> None:
    """Two commands, one number; c2 holds no N."""
    shown = run(
        genome, "-m", toy_model_dir, "-r", "c2", "--window", "whole", "--strands", "fwd"
    )  # fmt: skip
    total = sum(row[3] for row in _values(shown.stdout))
    result = CliRunner().invoke(cli, ["log-likelihood", str(genome), "-m", str(toy_model_dir)])
    listed = {r[0]: r for r in (line.split("\t") for line in result.stdout.splitlines())}
    assert total == pytest.approx(float(listed["c2"][2]), rel=1e-7)
    assert "120 bases, 1 without a value" in shown.stderr
    assert f"{total:.6g} nats" in shown.stderr


def test_what_and_strands(genome: Path, toy_model_dir: Path) -> None:
    common = (genome, "-m", toy_model_dir, "-r", "c2:50-60", "-q")
    entropy = [row[3] for row in _values(run(*common, "--what", "entropy").stdout)]
    assert len(entropy) == 11
    assert all(0 < value <= np.log(4) + 1e-6 for value in entropy)
    fwd, rc, both = (
        np.array([row[3] for row in _values(run(*common, "--strands", s).stdout)])
        for s in ("fwd", "rc", "both")
    )
    np.testing.assert_allclose(both, (fwd + rc) / 2, rtol=1e-6)
    assert not np.allclose(fwd, rc)


def test_errors_are_one_line_and_leave_nothing(
    genome: Path, toy_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (genome, "-m", toy_model_dir)
    existing = tmp_path / "there.tsv"
    existing.write_text("mine")
    for arguments, code in [
        (("-o", tmp_path / "x.bed"), 2),
        (("-o", existing), 1),
        (("-o", genome, "--force"), 2),
        (("-r", "c1:1-999"), 2),
        (("-R", tmp_path / "absent.bed"), 1),
        (("--window", "ten"), 2),
        (("--window", "whole", "--stride", "4"), 2),
        (("--window", "32", "--stride", "33"), 2),
    ]:
        result = run(*common, *arguments)
        assert result.exit_code == code, (arguments, result.output)
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("Error: ")
    assert existing.read_text() == "mine"
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    result = run(*common, "-o", tmp_path / "x.bw")
    assert result.exit_code == 2 and "evo-toolkit[bigwig]" in result.stderr
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "x."))]


def test_a_region_without_values(genome: Path, toy_model_dir: Path, tmp_path: Path) -> None:
    common = (genome, "-m", toy_model_dir, "-r", "c1:301-302")
    result = run(*common, "-o", tmp_path / "n.bedgraph")
    assert result.exit_code == 3 and "2 bases, 2 without a value" in result.stderr
    pytest.importorskip("pyBigWig")
    result = run(*common, "-o", tmp_path / "n.bw")
    assert result.exit_code == 1 and "no base has a value" in result.stderr
    assert not list(tmp_path.glob("n.bw*"))


def test_a_block_of_one_strand_is_its_own_mean() -> None:
    values = np.float32([1, float("nan")])
    block = TrackBlock(Interval("c", 0, 2), b"AC", {"-": values}, {"-": values}, {})
    np.testing.assert_array_equal(block.mean("loglik"), values)
