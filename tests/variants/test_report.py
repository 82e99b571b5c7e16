"""The report: what it says, that it loads nothing, and that user strings stay text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from evo_data.demo_data import demo_file
from evo_data.variant import AlleleStatus
from evo_toolkit.cli.main import cli
from evo_toolkit.variants.report import STATUS_MEANINGS
from evo_toolkit.variants.report_figures import histograms, per_base

VCF, FASTA = demo_file("rbcL_psbA.vcf"), demo_file("NC_000932.fa")
EVIL = '"><script>alert(1)</script>&<img/src=x>'
_VOID = {"meta", "rect", "line", "br"}


class Page(HTMLParser):
    """Text, tags and attributes of a page; unbalanced tags are errors."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID or (tag in ("rect",) and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["score", *map(str, args)])


def offline(page: Page, raw: str) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(
        page.tags
    )
    assert not any(name.startswith("on") or name in ("src", "href", "xlink:href") for name, _ in page.attributes)  # fmt: skip
    assert "url(" not in raw and "@import" not in raw
    assert not re.search(r"https?://", raw)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """The demo's variants with consequences of VEP, hostile names, and alleles without a score."""
    path = tmp_path / f"in&<b>{'x' * 3}.vcf"
    lines = VCF.read_text().splitlines()
    head = [line for line in lines if line.startswith("##")]
    head.append('##INFO=<ID=CSQ,Number=.,Type=String,Description="x Format: Allele|Consequence|SYMBOL|Feature">')  # fmt: skip
    rows = [line.split("\t") for line in lines if not line.startswith("#")][:12]
    hostile = EVIL.replace(";", "")
    for index, row in enumerate(rows):
        row[2] = hostile
        alt = row[4].split(",")[0]
        allele = alt if len(alt) == len(row[3]) else alt[1:] or "-"
        term = ("missense_variant", "synonymous_variant", f"odd{hostile.replace('=', '')}")[
            index % 3
        ]
        row[7] = f"CSQ={allele}|{term}|G{hostile.replace('=', '')}|T1"
    rows.append([*rows[-1][:3], rows[-1][3], "<DEL>", ".", ".", "."])
    columns = next(line for line in lines if line.startswith("#CHROM"))
    path.write_text("\n".join([*head, columns, *("\t".join(row) for row in rows)]) + "\n")
    return path


def test_report(toy_model_dir: Path, annotated: Path, tmp_path: Path) -> None:
    report, table = tmp_path / "r.html", tmp_path / "o.parquet"
    result = run(annotated, FASTA, "-m", toy_model_dir, "-o", table, "--report", report, "-q")
    assert result.exit_code == 0, result.output
    raw = report.read_text()
    page = Page(raw)
    offline(page, raw)
    # As text it is all there, as given.
    assert EVIL.replace("=", "") in "".join(page.words) and "<b>" in page.text
    frame = pd.read_parquet(table)
    scored = frame[frame["status"] == "ok"]
    assert f"{len(scored)} of {len(frame)} alleles" in page.text
    assert "symbolic a symbolic allele" in page.text
    assert "MORE likely" in page.text and "not a probability" in page.text
    for name, values in scored.groupby("consequence", observed=True)["dll"]:
        assert f"{len(values):,}; median {np.median(values):.3g}" in page.text, name
    for kind, values in scored.groupby("kind", observed=True)["dll"]:
        assert f"{len(values):,}; median {values.median():.3g}" in page.text, kind
    order = scored.sort_values("dll")["dll"].tolist()
    told = [float(x) for x in re.findall(r"dll (-?\d+\.\d+)", page.text)]
    assert told[:20] == pytest.approx(order[:20], abs=6e-4)
    # None twice.
    assert len(told) == min(len(order), 20) + min(max(len(order) - 20, 0), 5)


def test_bars_are_the_changes_of_each_base(toy_model_dir: Path, tmp_path: Path) -> None:
    """Allele and flanks of both strands, drawn up to 50 bases: windows of 64 show all of it."""
    table, report = tmp_path / "o.parquet", tmp_path / "r.html"
    result = run("--variant", "NC_000932.1-55663-A-T", FASTA, "-m", toy_model_dir, "-o", table, "--report", report, "-q")  # fmt: skip
    assert result.exit_code == 0, result.output
    row = pd.read_parquet(table).iloc[0]
    titles = re.findall(r"<title>([^<]*): ([+-]\d+\.\d+)</title>", report.read_text())
    forward = [float(v) for t, v in titles if ", +" in t or "forward strand" in t]
    reverse = [float(v) for t, v in titles if ", -" in t or "reverse strand" in t]
    assert len(forward) == len(reverse) == 32
    assert sum(forward) == pytest.approx(row["dll_fwd"], abs=0.03)
    assert sum(reverse) == pytest.approx(row["dll_rc"], abs=0.03)
    own = next(float(v) for t, v in titles if "forward strand" in t)
    assert own == pytest.approx(row["llr"] * 2 - next(float(v) for t, v in titles if "reverse strand" in t), abs=0.01)  # fmt: skip
    # The bases in the drawing are the genome's, with the allele between them.
    bases = re.search(r'class="context">([ACGT]+)<b>\[([ACGT])/([ACGT])\]</b>([ACGT]+)<', report.read_text())  # fmt: skip
    assert bases is not None
    genome = "".join(FASTA.read_text().splitlines()[1:])
    found = bases[1] + bases[2] + bases[4]
    start = int(row["pos"]) - 1 - len(bases[1])
    assert genome[start : start + len(found)].upper() == found
    assert (bases[2], bases[3]) == (row["ref"], row["alt"])


@pytest.mark.parametrize("strand", ["fwd", "rc"])
def test_one_strand_shows_the_bases_of_the_other(
    toy_model_dir: Path, tmp_path: Path, strand: str
) -> None:
    report = tmp_path / "r.html"
    result = run("--variant", "NC_000932.1-55663-A-T", FASTA, "-m", toy_model_dir, "--strands", strand, "-o", tmp_path / "o.tsv", "--report", report, "-q")  # fmt: skip
    assert result.exit_code == 0, result.output
    bases = re.search(r'class="context">([ACGT]+)<b>\[A/T\]</b>([ACGT]+)<', report.read_text())
    assert bases is not None
    genome = "".join(FASTA.read_text().splitlines()[1:])
    assert genome[55662 - len(bases[1]) : 55663 + len(bases[2])] == f"{bases[1]}A{bases[2]}"


def test_nothing_scored_and_other_methods(toy_model_dir: Path, tmp_path: Path) -> None:
    vcf, report = tmp_path / "v.vcf", tmp_path / "r.html"
    vcf.write_text("##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nNC_000932.1\t5\t.\tA\t<CNV>\t.\t.\t.\n")  # fmt: skip
    common = (FASTA, "-m", toy_model_dir, "--report", report, "-q", "--force")
    assert run(vcf, *common, "-o", tmp_path / "a.vcf").exit_code == 3
    assert "No allele has a score" in Page(report.read_text()).text
    assert run(VCF, *common, "-M", "marginal", "-o", tmp_path / "b.vcf").exit_code == 0
    assert "No allele has a score" in Page(report.read_text()).text
    assert run(VCF, *common, "-M", "delta", "-M", "jsd", "-o", tmp_path / "c.vcf").exit_code == 0
    assert "jsd_max" in Page(report.read_text()).text


def test_a_report_is_neither_input_nor_overwritten(toy_model_dir: Path, tmp_path: Path) -> None:
    there = tmp_path / "r.html"
    there.write_text("precious")
    common = (VCF, FASTA, "-m", toy_model_dir, "-o", tmp_path / "o.vcf")
    result = run(*common, "--report", there)
    assert result.exit_code == 1 and "--force" in result.stderr
    assert run(*common, "--report", VCF, "--force").exit_code == 2
    assert there.read_text() == "precious" and not (tmp_path / "o.vcf").exists()


def test_every_status_has_words() -> None:
    assert set(STATUS_MEANINGS) == set(AlleleStatus)


def test_drawings_of_odd_values() -> None:
    for values in ([0.0], [1.0, 1.0], [-1e9, 5.0, 1e-9], list(np.linspace(-3, 3, 1000))):
        Page(histograms([("<a>", np.array(values)), ("none", np.array([]))], "nats"))
    for before, behind in (([], []), ([("A", None)], [("C", 0.0)]), ([("N", -2.0)], [])):
        Page(per_base(before, ("A>C", None, 0.0), behind))
