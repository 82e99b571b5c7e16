"""`--haplotype`: who carries what together, and joint scores by another route."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pytest
from click.testing import CliRunner, Result

import evo_toolkit as evo
from evo_data.alphabet import reverse_complement
from evo_data.haplotypes import Call, calls_of
from evo_data.vcf import VariantReader
from evo_toolkit.cli.main import cli
from evo_toolkit.model.striped_hyena import StripedHyena2

BASES = "".join(random.Random(11).choices("ACGT", k=900))
WINDOW = 128
META = (
    "##fileformat=VCFv4.3\n##contig=<ID=c>\n"
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n##FORMAT=<ID=PS,Number=1,Type=Integer,Description="x">\n'
)


def snv(pos: int) -> tuple[int, str, str]:
    return pos, BASES[pos - 1], "ACGT"[("ACGT".index(BASES[pos - 1]) + 1) % 4]


def write(folder: Path, rows: list[tuple[tuple[int, str, str], list[str]]], samples: int) -> Path:
    (folder / "g.fa").write_text(f">c\n{BASES}\n")
    names = "\t".join(f"s{i}" for i in range(samples))
    body = "".join(
        f"c\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.\tGT:PS\t" + "\t".join(calls) + "\n"
        for (pos, ref, alt), calls in rows
    )
    path = folder / "v.vcf"
    path.write_text(f"{META}#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t{names}\n{body}")
    return path


def run(folder: Path, model: Path, *arguments: object, out: str = "h.tsv") -> Result:
    return CliRunner().invoke(
        cli,
        ["score", str(folder / "v.vcf"), str(folder / "g.fa"), "-m", str(model), "--window", str(WINDOW),
         "--haplotype", str(folder / out), "-o", str(folder / "o.vcf"), "--force", *map(str, arguments)],
    )  # fmt: skip


def table(path: Path) -> pd.DataFrame:
    notes = sum(line.startswith("##") for line in path.read_text().splitlines())
    return pd.read_csv(path, sep="\t", skiprows=notes, na_values=".", dtype={"flags": str})


def combinations(frame: pd.DataFrame) -> dict[tuple[int, ...], str]:
    """Positions of the variants of each row, and its carriers."""
    return {
        tuple(int(key.split("-")[1]) for key in row["variants"].split(",")): row["carriers"]
        for _, row in frame.iterrows()
    }


def test_who_carries_what_together(toy_model_dir: Path, tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            (snv(300), ["0|1:7", "0|1", "0/1", "1|1", "1"]),
            (snv(305), ["0|1:7", "1|0", "0|1", "0|1", "1"]),
            (snv(310), ["1|0:7", "0|1", "0|1", "0|0", "0"]),
            (snv(312), ["0|1:9", "0/0", "0|1", "./.", "."]),
            (snv(314), ["1/1", "0|.", "0|1:4", "0|1", "1"]),
            # Beyond the reach of 65 bases.
            (snv(380), ["0|1:7", "0|1", "0|1", "0|1", "1"]),
        ],
        5,
    )
    result = run(tmp_path, toy_model_dir)
    assert result.exit_code == 0, result.output
    found = combinations(table(tmp_path / "h.tsv"))
    assert found == {
        (300, 305, 314): "s0:2:7,s3:2,s4:1",  # in one phase set, with what is homozygous
        (310, 314): "s0:1:7",
        (312, 314): "s0:2:9",  # another phase set; its first chromosome has 314 alone
        (300, 310): "s1:2",  # 305 lies on the other chromosome
        (305, 310, 312): "s2:2",  # 300 is not phased, 314 in another phase set
    }
    assert "1 heterozygous and not phased" in result.stderr
    assert "5 haplotypes" in result.stderr


def spliced(edits: list[tuple[int, str, str]]) -> str:
    text = BASES
    for pos, ref, alt in sorted(edits, reverse=True):
        assert text[pos - 1 : pos - 1 + len(ref)] == ref
        text = text[: pos - 1] + alt + text[pos - 1 + len(ref) :]
    return text


def test_joint_and_single_scores_by_whole_sequences(
    toy_model: StripedHyena2, toy_model_dir: Path, tmp_path: Path
) -> None:
    """The changed contig is written down, windows are cut by hand, each read whole."""
    insertion = (420, BASES[419], BASES[419] + "GATTACA")
    deletion = (430, BASES[429:435], BASES[429])
    edits = [snv(410), insertion, deletion]
    write(tmp_path, [(edit, ["0|1"]) for edit in edits], 1)
    result = run(tmp_path, toy_model_dir, "--precision", "exact")
    assert result.exit_code == 0, result.output
    (row,) = table(tmp_path / "h.tsv").itertuples(index=False)

    def score(changed: str, strand: str) -> float:
        # The first changed base in the middle, in reading direction; the last one on the other strand.
        first, last = 409, 435
        growth = len(changed) - len(BASES)
        texts = []
        for text, end in ((BASES, last), (changed, last + growth)):
            if strand == "+":
                texts.append(text[first - WINDOW // 2 : first + WINDOW // 2])
            else:
                stretch = text[end - WINDOW // 2 : end + WINDOW // 2]
                texts.append(reverse_complement(stretch.encode()).decode())
        ref, alt = evo.log_likelihood(toy_model, texts)
        return float(alt - ref)

    whole = {strand: score(spliced(edits), strand) for strand in "+-"}
    assert row.joint_fwd == pytest.approx(whole["+"], abs=1e-4)
    assert row.joint_rc == pytest.approx(whole["-"], abs=1e-4)
    assert row.joint == pytest.approx(sum(whole.values()) / 2, abs=1e-4)
    each = [np.mean([score(spliced([edit]), strand) for strand in "+-"]) for edit in edits]
    assert [float(x) for x in row.each.split(",")] == pytest.approx(each, abs=1e-4)
    assert row.sum == pytest.approx(sum(each), abs=3e-4)
    assert row.interaction == pytest.approx(row.joint - row.sum, abs=1e-6)
    assert abs(row.interaction) > 1e-3
    assert (row.start, row.end, row.num_variants, row.carriers) == (410, 435, 3, "s0:2")


def test_overlapping_variants_keep_the_first(toy_model_dir: Path, tmp_path: Path) -> None:
    deletion = (400, BASES[399:410], BASES[399])
    write(tmp_path, [(deletion, ["1|1"]), (snv(405), ["1|1"]), (snv(420), ["1|1"])], 1)
    result = run(tmp_path, toy_model_dir)
    found = combinations(table(tmp_path / "h.tsv"))
    assert found == {(400, 420): "s0:1+2"}
    assert "2 overlaps another" in result.stderr


@pytest.mark.parametrize("mode", ["exact", "shared", "full"])
def test_near_the_ends_and_on_a_circle(
    toy_model: StripedHyena2, toy_model_dir: Path, tmp_path: Path, mode: str
) -> None:
    write(tmp_path, [(snv(p), ["1|1"]) for p in (2, 5, 450, 460, 897, 899)], 1)
    result = run(tmp_path, toy_model_dir, "--window-mode", mode)
    assert result.exit_code == 0, result.output
    line = table(tmp_path / "h.tsv")
    assert list(combinations(line)) == [(2, 5), (450, 460), (897, 899)]
    assert line["flags"].tolist()[0] == line["flags"].tolist()[2] == "window_shifted"
    result = run(
        tmp_path, toy_model_dir, "--window-mode", mode, "--circular", "c", out="circle.tsv"
    )
    circle = table(tmp_path / "circle.tsv")
    assert circle["flags"].isna().all()
    # The same as in the middle of the turned contig.
    turned = BASES[450:] + BASES[:450]
    (tmp_path / "g.fa").write_text(f">c\n{turned}\n")
    (tmp_path / "g.fa.fai").unlink()
    text = (tmp_path / "v.vcf").read_text()
    kept = [x for x in text.splitlines() if x.startswith("#")]
    moved = {2: 452, 5: 455, 897: 447, 899: 449}
    rows = [x.split("\t") for x in text.splitlines() if not x.startswith("#")]
    rows = [[r[0], str(moved[int(r[1])]), *r[2:]] for r in rows if int(r[1]) in moved]
    rows.sort(key=lambda r: int(r[1]))
    (tmp_path / "v.vcf").write_text("\n".join([*kept, *("\t".join(r) for r in rows)]) + "\n")
    result = run(
        tmp_path, toy_model_dir, "--window-mode", mode, "--max-allele", 5, out="turned.tsv"
    )
    assert result.exit_code == 0, result.output
    linear = table(tmp_path / "turned.tsv")
    # The grid of shared windows lies elsewhere in the turned contig.
    near = {"abs": 0.05} if mode == "shared" else {"abs": 1e-5}
    assert linear["joint"].tolist() == pytest.approx(
        [circle["joint"][2], circle["joint"][0]], **near
    )


def test_samples_are_chosen_and_the_file_is_indexed(toy_model_dir: Path, tmp_path: Path) -> None:
    write(tmp_path, [(snv(300), ["0|1", "1|0"]), (snv(310), ["0|1", "0|1"]), (snv(320), ["0|0", "1|0"])], 2)  # fmt: skip
    result = run(tmp_path, toy_model_dir, "-s", "s1", out="h.tsv.gz")
    assert result.exit_code == 0, result.output
    with pysam.TabixFile(str(tmp_path / "h.tsv.gz")) as file:
        rows = [row.split("\t") for row in file.fetch("c", 315, 316)]
    assert [(row[1], row[2], row[6]) for row in rows] == [("300", "320", "s1:1")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--shard", "1/2"), "--shard"), (("-M", "jsd"), "-M delta")],
)
def test_what_haplotypes_need(
    toy_model_dir: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    write(tmp_path, [(snv(300), ["0|1"])], 1)
    result = run(tmp_path, toy_model_dir, *arguments)
    assert result.exit_code == 2 and says in result.stderr and result.stderr.count("Error") == 1
    text = (tmp_path / "v.vcf").read_text()
    bare = [
        "\t".join(x.split("\t")[:8]) if not x.startswith("##") else x for x in text.splitlines()
    ]
    (tmp_path / "v.vcf").write_text("\n".join(bare) + "\n")
    result = run(tmp_path, toy_model_dir)
    assert result.exit_code == 2 and "no samples" in result.stderr


def test_calls(tmp_path: Path) -> None:
    write(tmp_path, [((300, BASES[299], "A,C,G,T".replace(f"{BASES[299]}", "N")), ["0|2:5", "1/1/1", "1|0|2", "|0|1:3", "3", "./1"])], 6)  # fmt: skip
    with VariantReader(tmp_path / "v.vcf") as reader:
        (record,) = reader
    assert list(calls_of(record)) == [
        (0, Call(1, frozenset({1}), "5")),
        (1, Call(0, frozenset(), None, 3)),
        (2, Call(0, frozenset({0}), "", 3)),
        (2, Call(1, frozenset({2}), "", 3)),
        (3, Call(0, frozenset({1}), "3")),
        (4, Call(2, frozenset(), None, 1)),
        (5, None),
    ]
