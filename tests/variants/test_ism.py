"""In-silico mutagenesis: the scores of `score`, strands and columns, files and pictures."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from evo_data.alphabet import BASES, reverse_complement
from evo_data.fasta import Fasta
from evo_data.interval import Interval
from evo_data.vcf import VariantReader
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import UsageError
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants import ism, ism_plots
from evo_toolkit.variants.ism import IsmBlock, ism_delta, ism_marginal, joined
from evo_toolkit.variants.reuse import window_runner
from evo_toolkit.variants.score import VariantScorer
from evo_toolkit.variants.track import Track

SEQUENCE = "".join(random.Random(5).choices("ACGT", k=400))
REGION = Interval("c1", 190, 202)
HEADER = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def genome_of(folder: Path, sequence: str = SEQUENCE, name: str = "g.fa") -> Fasta:
    path = folder / name
    path.write_text(f">c1\n{sequence}\n")
    return Fasta(path)


def delta(model: StripedHyena2, genome: Fasta, region: Interval, **options: str) -> IsmBlock:
    return joined(list(ism_delta(window_runner(model, 64), genome, [region], **options)))


def marginal(model: StripedHyena2, genome: Fasta, region: Interval) -> IsmBlock:
    return joined(list(ism_marginal(Track(model, genome, window=64), [region])))


def test_delta_is_what_score_says(tmp_path: Path, toy_model: StripedHyena2) -> None:
    genome = genome_of(tmp_path)
    found = delta(toy_model, genome, REGION)
    rows = [
        f"c1\t{pos + 1}\t.\t{SEQUENCE[pos]}\t{alt}\t.\t.\t.\n"
        for pos in range(REGION.start, REGION.end)
        for alt in BASES
        if alt != SEQUENCE[pos]
    ]
    (tmp_path / "v.vcf").write_text(HEADER + "".join(rows))
    scorer = VariantScorer(window_runner(toy_model, 64, "full"), genome, {"c1": "c1"})
    with VariantReader(tmp_path / "v.vcf") as reader:
        scored = list(scorer.score(reader))
    assert len(scored) == 36
    for record in scored:
        (allele,) = record.alleles
        place = record.record.pos - 1 - REGION.start, BASES.index(allele.alt)
        assert found.scores[place] == pytest.approx(allele.dll, abs=1e-4)
        assert found.strands["+"][place] == pytest.approx(allele.dll_fwd, abs=1e-4)
        assert found.strands["-"][place] == pytest.approx(allele.dll_rc, abs=1e-4)
    own = found.scores[np.arange(12), found.reference]
    assert (own == 0).all() and (found.scores != 0).sum() == 36


def test_marginal_is_the_ratio_at_the_base(tmp_path: Path, toy_model: StripedHyena2) -> None:
    found = marginal(toy_model, genome_of(tmp_path), REGION)
    for offset in (0, 7):
        for strand, index in (("+", REGION.start + offset), ("-", 399 - REGION.start - offset)):
            text = SEQUENCE if strand == "+" else reverse_complement(SEQUENCE.encode()).decode()
            start = ((index - 64) // 32 + 1) * 32  # the first tile of 64 that holds it
            with torch.no_grad():
                logits = toy_model(torch.tensor([[ord(c) for c in text[start:index]]]))[0, -1]
            own = logits[ord(text[index])]
            # On "-" the model judges complements.
            order = BASES if strand == "+" else "TGCA"
            expected = [float(logits[ord(b)] - own) for b in order]
            assert found.strands[strand][offset].tolist() == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(
        found.scores, (found.strands["+"] + found.strands["-"]) / 2, atol=1e-6
    )
    assert (found.scores[np.arange(12), found.reference] == 0).all()


@pytest.mark.parametrize("score", [delta, marginal])
def test_the_other_strand_is_the_mirror_image(
    tmp_path: Path, toy_model: StripedHyena2, score: object
) -> None:
    assert callable(score)
    other = reverse_complement(SEQUENCE.encode()).decode()
    here = score(toy_model, genome_of(tmp_path), REGION)
    mirrored = Interval("c1", 400 - REGION.end, 400 - REGION.start)
    there = score(toy_model, genome_of(tmp_path, other, "r.fa"), mirrored)
    np.testing.assert_array_equal(here.scores, there.scores[::-1, ::-1])
    np.testing.assert_array_equal(here.strands["+"], there.strands["-"][::-1, ::-1])


@pytest.mark.parametrize("score", [delta, marginal])
def test_other_letters_have_no_scores(
    tmp_path: Path, toy_model: StripedHyena2, score: object
) -> None:
    assert callable(score)
    text = SEQUENCE[:195] + "Nr" + SEQUENCE[197:].lower()
    found = score(toy_model, genome_of(tmp_path, text), REGION)
    missing = np.isnan(found.scores)
    assert np.flatnonzero(missing.any(axis=1)).tolist() == [5, 6] and missing.sum() == 8
    assert found.sequence == (SEQUENCE[190:195] + "NN" + SEQUENCE[197:202]).encode()
    for how in ("mean", "min", "max"):
        assert np.flatnonzero(np.isnan(found.reduced(how))).tolist() == [5, 6]


def test_contig_ends_have_scores(tmp_path: Path, toy_model: StripedHyena2) -> None:
    genome = genome_of(tmp_path)
    for region in (Interval("c1", 0, 2), Interval("c1", 398, 400)):
        for found in (delta(toy_model, genome, region), marginal(toy_model, genome, region)):
            assert not np.isnan(found.scores).any()


def test_one_strand(tmp_path: Path, toy_model: StripedHyena2) -> None:
    genome = genome_of(tmp_path)
    both = delta(toy_model, genome, REGION)
    for strands, name in (("fwd", "+"), ("rc", "-")):
        one = delta(toy_model, genome, REGION, strands=strands)
        assert list(one.strands) == [name]
        np.testing.assert_array_equal(one.scores, both.strands[name])


def test_blocks_are_seamless(
    tmp_path: Path, toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    genome = genome_of(tmp_path)
    whole = delta(toy_model, genome, REGION)
    monkeypatch.setattr(ism, "_BLOCK", 5)
    done: list[int] = []
    blocks = list(ism_delta(window_runner(toy_model, 64), genome, [REGION], advance=done.append))
    assert [b.interval.length for b in blocks] == [5, 5, 2] and sum(done) == 12
    np.testing.assert_array_equal(joined(blocks).scores, whole.scores)
    assert joined(blocks).interval == REGION


NAN = float("nan")
BY_HAND = IsmBlock(
    Interval("c1", 9, 12),
    b"CNT",
    np.float32([[-1, 0, -2, 3], [NAN] * 4, [1, 2, 6, 0]]),
    {"+": np.float32([[-1, 0, -2, 3], [NAN] * 4, [1, 2, 6, 0]])},
)


def test_reductions_leave_the_reference_out() -> None:
    np.testing.assert_array_equal(BY_HAND.reference, [1, -1, 3])
    np.testing.assert_array_equal(BY_HAND.reduced("mean"), np.float32([0, NAN, 3]))
    np.testing.assert_array_equal(BY_HAND.reduced("min"), np.float32([-2, NAN, 1]))
    np.testing.assert_array_equal(BY_HAND.reduced("max"), np.float32([3, NAN, 6]))
    np.testing.assert_array_equal(BY_HAND.importance, np.float32([0, NAN, -3]))
    with pytest.raises(UsageError, match="median"):
        BY_HAND.reduced("median")


# Pictures.


def test_a_letter_stands_where_its_base_does() -> None:
    for base in BASES:
        letter = ism_plots._letter(base)
        for height in (2.5, -1.0):
            box = ism_plots._placed(letter, 7, height).get_extents()
            ends = sorted((0.0, height))
            assert [box.x0, box.x1] == pytest.approx([6.55, 7.45])
            assert [box.y0, box.y1] == pytest.approx(ends)


def test_the_colours_of_a_heatmap(tmp_path: Path) -> None:
    """Columns are bases, rows A to T; blue is less likely, red more, grey missing."""
    path = tmp_path / "h.png"
    ism_plots.draw_heatmap([BY_HAND], str(path), title="t", unit="u")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    grey = (pixels == [0xD0, 0xD0, 0xD0]).all(axis=2)
    grey &= (grey.sum(axis=0) > 40)[None, :]  # text has specks of the same grey
    rows, columns = np.nonzero(grey)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    height, width = (bottom - top + 1) / 4, right - left + 1

    def colour(base: int, letter: str) -> np.ndarray:
        row = top + (BASES.index(letter) + 0.3) * height
        return pixels[int(row), int(left + (base - 1 + 0.25) * width)]

    (r, g, b) = colour(2, "G")  # 6, the largest: the end of the scale
    assert r > 80 and max(g, b) < 60
    r, g, b = colour(0, "G")  # -2
    assert b > r + 30
    r, g, b = colour(0, "T")  # 3
    assert r > b + 30
    assert min(colour(0, "C")) > 240  # the reference, 0


def test_equal_scores_give_equal_pictures(tmp_path: Path) -> None:
    for draw in (ism_plots.draw_logo, ism_plots.draw_heatmap):
        for ending in ("svg", "png", "pdf"):
            one, two = (tmp_path / f"{draw.__name__}{i}.{ending}" for i in (1, 2))
            for path in (one, two):
                draw([BY_HAND], str(path), title="t", unit="u")
            assert one.read_bytes() == two.read_bytes() and one.stat().st_size > 1000


def test_rows_of_a_picture() -> None:
    scores = np.zeros((250, 4), np.float32)
    block = IsmBlock(Interval("c1", 30, 280), SEQUENCE[:250].encode(), scores, {"+": scores})
    rows = ism_plots._rows([block, BY_HAND])
    assert [(r.start, len(r.sequence)) for r in rows] == [(30, 100), (130, 100), (230, 50), (9, 3)]
    assert "".join(r.sequence for r in rows) == SEQUENCE[:250] + "CNT"


# The command.


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["ism", *map(str, args)])


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    return genome_of(tmp_path, SEQUENCE[:300] + "NN" + SEQUENCE[302:]).path


def test_all_formats_hold_the_same_numbers(
    genome: Path, toy_model_dir: Path, toy_model: StripedHyena2, tmp_path: Path
) -> None:
    big = pytest.importorskip("pyBigWig")
    common = (genome, "-m", toy_model_dir, "-r", "c1:296-304", "-r", "c1:20-21", "-M", "marginal", "-q")  # fmt: skip
    names = ("s.npz", "s.tsv", "s.tsv.gz", "s.parquet", "s.bw", "s.bedgraph")
    for name in names:
        result = run(*common, "-o", tmp_path / name, "--reduce", "min")
        assert result.exit_code == 0 and not result.output, result.output
    with Fasta(genome) as reference:
        track = Track(toy_model, reference)
        regions = [Interval("c1", 19, 21), Interval("c1", 295, 304)]
        expected = np.concatenate([block.scores for block in ism_marginal(track, regions)])
    arrays = np.load(tmp_path / "s.npz")
    np.testing.assert_array_equal(arrays["marg"], expected)
    assert arrays["pos"].tolist() == [20, 21, *range(296, 305)]
    assert "".join(arrays["ref"]) == SEQUENCE[19:21] + SEQUENCE[295:300] + "NN" + SEQUENCE[302:304]
    assert "".join(arrays["alleles"]) == BASES and set(arrays["chrom"]) == {"c1"}
    manifest = json.loads(str(arrays["manifest"]))
    assert manifest["method"] == "marginal" and manifest["window"] == 64

    table = pq.read_table(tmp_path / "s.parquet").to_pandas()
    assert list(table) == ["chrom", "pos", "ref", "alt", "marg", "marg_fwd", "marg_rc"]
    assert len(table) == 3 * 9 and (table["ref"] != table["alt"]).all()
    at = {pos: index for index, pos in enumerate(arrays["pos"].tolist())}
    for column in ("marg", "marg_fwd", "marg_rc"):
        wanted = [
            arrays[column][at[pos], BASES.index(alt)]
            for pos, alt in zip(table["pos"], table["alt"], strict=True)
        ]
        np.testing.assert_array_equal(table[column].to_numpy(np.float32), wanted)
    for name in ("s.tsv", "s.tsv.gz"):
        text = pd.read_csv(tmp_path / name, sep="\t", comment=None, skiprows=_notes(tmp_path, name))
        text = text.rename(columns={"#chrom": "chrom"})
        for column in table:
            kind = np.float32 if column.startswith("marg") else object
            np.testing.assert_array_equal(
                text[column].to_numpy(kind), table[column].to_numpy(kind), err_msg=column
            )
    lowest = table.groupby("pos")["marg"].min()
    with big.open(str(tmp_path / "s.bw")) as file:
        for pos, value in lowest.items():
            assert file.values("c1", pos - 1, pos) == [value]
        assert np.isnan(file.values("c1", 300, 302)).all()
    assert json.loads((tmp_path / "s.bw.json").read_text())["reduce"].startswith("min")
    lines = [r.split("\t") for r in (tmp_path / "s.bedgraph").read_text().splitlines() if r[0] != "#"]  # fmt: skip
    assert [int(r[2]) for r in lines] == lowest.index.tolist()
    assert not list(tmp_path.glob(".*"))


def _notes(folder: Path, name: str) -> int:
    """Lines above the header."""
    plain = (folder / name.removesuffix(".gz")).read_text().splitlines()
    return sum(line.startswith("##") for line in plain)


def test_delta_to_stdout_and_pictures(genome: Path, toy_model_dir: Path, tmp_path: Path) -> None:
    common = (genome, "-m", toy_model_dir, "-r", "c1:100-103")
    result = run(*common)
    assert result.exit_code == 0, result.output
    lines = [line.split("\t") for line in result.stdout.splitlines() if line[:2] != "##"]
    assert lines[0] == ["#chrom", "pos", "ref", "alt", "dll", "dll_fwd", "dll_rc"]
    assert len(lines) == 13 and lines[1][:3] == ["c1", "100", SEQUENCE[99]]
    assert float(lines[1][4]) == pytest.approx((float(lines[1][5]) + float(lines[1][6])) / 2, abs=1e-5)  # fmt: skip
    assert "4 bases, window 64, window mode exact; estimated time" in result.stderr
    assert "12 substitutions of 4 bases scored" in result.stderr
    pictures = ("--logo", tmp_path / "l.svg", "--heatmap", tmp_path / "h.png")
    result = run(*common, *pictures, "--window-mode", "full")
    assert result.exit_code == 0 and not result.stdout, result.output
    assert "toy, delta" in (tmp_path / "l.svg").read_text()
    assert Image.open(tmp_path / "h.png").size[0] > 300
    assert run(*common, *pictures).exit_code == 1  # they exist


def test_wrong_usage(genome: Path, toy_model_dir: Path, tmp_path: Path) -> None:
    common = (genome, "-m", toy_model_dir)
    long = genome_of(tmp_path, "ACGT" * 1000, "long.fa").path
    for arguments, message in [
        ((*common, "-M", "delta", "--stride", "4"), "--stride is for"),
        ((*common, "-M", "marginal", "--window-mode", "full"), "--window-mode is for"),
        ((*common, "--logo", tmp_path / "a.png", "--heatmap", tmp_path / "a.png"), "two outputs"),
        ((*common, "--logo", tmp_path / "a.jpg"), ".png, .svg, .pdf"),
        ((*common, "-o", tmp_path / "a.vcf"), ".npz"),
        ((*common, "-o", genome, "--force"), "also an input"),
        ((long, "-m", toy_model_dir, "--logo", tmp_path / "a.png"), "3,000 at most"),
        ((*common, "-r", "c2:1-5"), "no contig"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 2 and message in result.stderr, (arguments, result.output)
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("a.*"))


def test_nothing_to_score(genome: Path, toy_model_dir: Path, tmp_path: Path) -> None:
    for method in ("delta", "marginal"):
        out = tmp_path / f"{method}.npz"
        result = run(genome, "-m", toy_model_dir, "-r", "c1:301-302", "-M", method, "-o", out)
        assert result.exit_code == 3, result.output
        assert np.isnan(np.load(out)[ism.ISM_METHODS[method]]).all()


@pytest.mark.slow
def test_marginal_is_fast_enough_on_one_core(project_root: Path) -> None:
    """261 substitutions of one window of 2,048 on both strands, bundled model: 50 a second or more."""
    import time

    from evo_toolkit.checkpoint.load import load_model

    model = load_model("evo-mini", device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Fasta(project_root / "data/evo_data/demo/NC_000932.fa") as demo:
            region = Interval("NC_000932.1", 50_000, 50_087)
            track = Track(model, demo, window=2048)
            list(ism_marginal(track, [region]))
            start = time.perf_counter()
            list(ism_marginal(track, [region]))
            rate = 3 * region.length / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert rate >= 50, f"{rate:.0f} substitutions a second"
    print(f"{rate:.0f} substitutions a second")
