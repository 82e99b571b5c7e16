"""What `evo-toolkit score` takes as input, as a user runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from evo_data.demo_data import demo_file
from evo_toolkit.cli.main import cli
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.api import score_variants

VCF, FASTA = demo_file("rbcL_psbA.vcf"), demo_file("NC_000932.fa")
SEQUENCE = "".join(FASTA.read_text().splitlines()[1:])
HEADER = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["score", *map(str, args)])


@pytest.fixture
def model(toy_model_dir: Path) -> Path:
    return toy_model_dir


def table(path: Path) -> pd.DataFrame:
    lines = path.read_text().splitlines()
    skipped = sum(line.startswith("##") for line in lines)
    return pd.read_csv(path, sep="\t", skiprows=skipped, na_values=".")


def scored(tmp_path: Path, *args: object) -> pd.DataFrame:
    out = tmp_path / "scored.tsv"
    result = run(*args, "-o", out, "--force", "-q")
    assert result.exit_code in (0, 3), result.output
    return table(out)


def written(tmp_path: Path, *rows: str, header: str = HEADER) -> Path:
    path = tmp_path / "in.vcf"
    path.write_text(header + "".join(f"NC_000932.1\t{row}\n" for row in rows))
    return path


def test_text_table_and_vcf_give_the_same_scores(model: Path, tmp_path: Path) -> None:
    frame = scored(tmp_path, VCF, FASTA, "-m", model)
    rows = frame[["#chrom", "pos", "ref", "alt"]].rename(columns={"#chrom": "chrom"})
    rows.to_csv(tmp_path / "t.csv", index=False)
    assert scored(tmp_path, tmp_path / "t.csv", FASTA, "-m", model)["dll"].equals(frame["dll"])
    at = int((rows["ref"].str.len() + rows["alt"].str.len() == 2).argmax())
    first = rows.iloc[at]
    texts = [
        f"{first.chrom}-{first.pos}-{first.ref}-{first.alt}",
        f"{first.chrom}:g.{first.pos}{first.ref}>{first.alt}",
        f"{first.chrom}:{first.pos - 1}:{first.ref}:{first.alt}",
    ]
    options = [x for text in texts for x in ("--variant", text)]
    found = scored(tmp_path, FASTA, "-m", model, *options)
    assert found["dll"].tolist() == [frame["dll"][at]] * 3
    assert found["id"].tolist() == texts
    # A VCF comes out of a table too.
    out = tmp_path / "o.vcf"
    assert run(tmp_path / "t.csv", FASTA, "-m", model, "-o", out).exit_code == 0
    assert out.read_text().count("EVO_ST=ok") == len(rows)


def test_what_is_not_given_right_is_a_usage_error(model: Path) -> None:
    for args in ((FASTA,), (VCF, FASTA, "--variant", "x-1-A-C"), (VCF, FASTA, FASTA), ()):
        result = run(*args, "-m", model)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, args
    result = run(FASTA, "-m", model, "--variant", "rs699")
    assert result.exit_code == 1 and "rsID" in result.stderr


def test_regions_and_expressions(model: Path, tmp_path: Path) -> None:
    frame = scored(tmp_path, VCF, FASTA, "-m", model)
    low, high = frame["pos"].iloc[5], frame["pos"].iloc[40]
    inside = frame[frame["pos"].between(low, high)]
    found = scored(tmp_path, VCF, FASTA, "-m", model, "-r", f"NC_000932.1:{low}-{high}")
    assert found["pos"].tolist() == inside["pos"].tolist() and len(found) < len(frame)
    assert found["dll"].tolist() == inside["dll"].tolist()
    found = scored(tmp_path, VCF, FASTA, "-m", model, "-e", f"POS<{low} || POS>{high}")
    assert found["pos"].tolist() == inside["pos"].tolist()
    result = run(VCF, FASTA, "-m", model, "-i", "NOPE>1")
    assert result.exit_code == 1 and "NOPE" in result.stderr and result.stderr.count("\n") == 1


def test_check_ref(model: Path, tmp_path: Path) -> None:
    base, other = SEQUENCE[99], next(x for x in "ACGT" if x != SEQUENCE[99])
    third = next(x for x in "ACGT" if x not in (base, other))
    more = [f"{at + 1}\tok\t{SEQUENCE[at]}\tN\t.\t.\t." for at in (200, 201)]
    path = written(
        tmp_path, *more, f"100\tok\t{base}\t{other}\t.\t.\t.", f"100\tswapped\t{other}\t{base}\t.\t.\t.",
        f"100\tbad\t{other}\t{third},{base}\t.\t.\t.", "300000\toutside\tA\tC\t.\t.\t.",
    )  # fmt: skip
    frame = scored(tmp_path, path, FASTA, "-m", model)
    assert frame["status"].tolist() == ["ok"] * 3 + [
        "swapped",
        "ref_mismatch",
        "swapped",
        "out_of_range",
    ]
    assert frame["dll"].notna().tolist() == [True] * 3 + [False] * 4
    out = tmp_path / "x.vcf"
    result = run(path, FASTA, "-m", model, "-c", "x", "-o", out, "--max-ref-mismatch", "1")
    assert result.exit_code == 0
    assert "left out by --check-ref x: 3 records" in result.stderr
    assert re.findall(r"\t\d+\t(\w+)\t", out.read_text()) == ["ok"] * 3
    result = run(path, FASTA, "-m", model, "-c", "e", "-o", tmp_path / "e.vcf", "--max-ref-mismatch", "1")  # fmt: skip
    assert result.exit_code == 1 and "NC_000932.1:100: REF" in result.stderr
    assert not (tmp_path / "e.vcf").exists()


def test_symbolic_alleles_score_as_their_bases(model: Path, tmp_path: Path) -> None:
    text = SEQUENCE[499:510]
    path = written(
        tmp_path,
        f"500\t.\t{text[0]}\t<DEL>\t.\t.\tEND=510",
        f"500\t.\t{text}\t{text[0]}\t.\t.\t.",
        f"500\t.\t{text[0]}\t<DUP>\t.\t.\tSVLEN=10",
        f"500\t.\t{text[0]}\t{text}\t.\t.\t.",
        f"500\t.\t{text[0]}\t<NON_REF>\t.\t.\tEND=510",
        f"500\t.\t{text[0]}\t<DEL>\t.\t.\tEND=90000",
    )
    frame = scored(tmp_path, path, FASTA, "-m", model)
    assert frame["status"].tolist() == ["ok"] * 4 + ["symbolic", "too_long"]
    assert frame["dll"][0] == frame["dll"][1] != frame["dll"][2] == frame["dll"][3]
    assert frame["key"][0] == frame["key"][1]


def test_the_wrong_build_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    header = HEADER.replace("#CHROM", "##contig=<ID=NC_000932.1,length=154479>\n#CHROM")
    path = written(tmp_path, f"100\t.\t{SEQUENCE[99]}\tN\t.\t.\t.", header=header)
    result = run(path, FASTA, "-m", "evo-mini", "-o", tmp_path / "o.vcf")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "154,479" in result.stderr and "154,478" in result.stderr
    # The user's word is taken.
    result = run(path, FASTA, "-m", "evo-mini", "-o", tmp_path / "o.vcf", "--max-ref-mismatch", "0.05", "--dry-run")  # fmt: skip
    assert result.exit_code == 0 and "Warning: contig NC_000932.1 has 154,479" in result.stderr


def test_an_alias_file(model: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.vcf"
    renamed.write_text(VCF.read_text().replace("NC_000932.1", "plastid"))
    result = run(renamed, FASTA, "-m", model)
    assert result.exit_code == 1 and "plastid" in result.stderr
    aliases = tmp_path / "aliases.tsv"
    aliases.write_text("plastid\tNC_000932.1\n")
    frame = scored(tmp_path, renamed, FASTA, "-m", model, "--contig-aliases", aliases)
    assert frame["dll"].equals(scored(tmp_path, VCF, FASTA, "-m", model)["dll"])
    assert set(frame["#chrom"]) == {"plastid"}


def test_a_circle_has_no_ends(model: Path, tmp_path: Path) -> None:
    """The same variants on the same circle cut open elsewhere score the same."""
    circle, cut = SEQUENCE[:700], 350
    rows = []
    for name, text, offset in (("a.fa", circle, 0), ("b.fa", circle[cut:] + circle[:cut], cut)):
        (tmp_path / name).write_text(f">p\n{text}\n")
        rows.append(
            [f"p-{p + 1}-{text[p]}-{text[p]}{'ACGT'[p % 4]}" for p in [(x - offset) % 700 for x in (0, 1, 20, 340, 351, 690)]]
            + [f"p-{p + 1}-{text[p]}-{'ACGT'['CGTA'.index(text[p])]}" for p in [(x - offset) % 700 for x in (0, 5, 349, 350, 699)]]
        )  # fmt: skip
    # Not p % 4: the inserted base must not depend on where the circle is cut.
    rows = [[re.sub(r"-([ACGT])\1[ACGT]$", r"-\1\1C", x) for x in row] for row in rows]
    rows = [[re.sub(r"-([ACGT])-\1[ACGT]$", r"-\1-\1C", x) for x in row] for row in rows]
    frames = [
        scored(tmp_path, tmp_path / name, "-m", model, "--circular", "p", *[x for text in texts for x in ("--variant", text)])
        for name, texts in zip(("a.fa", "b.fa"), rows, strict=True)
    ]  # fmt: skip
    assert frames[0]["dll"].tolist() == frames[1]["dll"].tolist()
    assert frames[0]["flags"].isna().all() and frames[1]["flags"].isna().all()
    assert ((frames[0]["window_start"] - frames[1]["window_start"]) % 700 == cut).all()
    linear = scored(tmp_path, tmp_path / "a.fa", "-m", model, "--variant", rows[0][0])
    assert linear["flags"][0] == "window_shifted" and linear["dll"][0] != frames[0]["dll"][0]
    result = run(tmp_path / "a.fa", "-m", model, "--variant", rows[0][0], "--circular", "q")
    assert result.exit_code == 2 and "no such contig; it has p" in result.stderr


def test_the_same_from_python(toy_model: StripedHyena2, model: Path, tmp_path: Path) -> None:
    gff = demo_file("NC_000932.gff3")
    options = {"regions": "NC_000932.1:400-700", "gff": gff, "genetic_code": 11}
    frame = score_variants(toy_model, VCF, FASTA, circular=["NC_000932.1"], **options)
    assert 3 < len(frame) < 30 and frame["consequence"].notna().all()
    frame[["chrom", "pos", "ref", "alt"]].to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    again = score_variants(toy_model, tmp_path / "t.tsv", FASTA)
    assert again["dll"].tolist() == frame["dll"].tolist()
    texts = [f"{x.chrom}-{x.pos}-{x.ref}-{x.alt}" for x in frame.itertuples()]
    assert score_variants(toy_model, texts, FASTA)["dll"].tolist() == frame["dll"].tolist()
    with pytest.raises(ValueError, match="not in"):
        score_variants(toy_model, VCF, FASTA, circular=["q"])


TERMS = {
    "nonsense": "stop_gained", "upstream": None, "downstream": None, "intergenic": None,
}  # fmt: skip


def test_consequences(model: Path, tmp_path: Path) -> None:
    """The demo's variants carry the consequences that were worked out when they were made."""
    gff = demo_file("NC_000932.gff3")
    out = tmp_path / "o.vcf"
    result = run(VCF, FASTA, "-m", model, "--gff", gff, "--genetic-code", "11", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "transcripts; left out" in result.stderr, "rps12 is trans-spliced"
    assert "##INFO=<ID=BCSQ," in out.read_text()
    frame = scored(tmp_path, VCF, FASTA, "-m", model, "--gff", gff, "--genetic-code", "11")
    known = []
    for line in VCF.read_text().splitlines():
        if not line.startswith("#"):
            info = dict(x.partition("=")[::2] for x in line.split("\t")[7].split(";"))
            known += [(info.get("GENE"), TERMS.get(x, x)) for x in info["CONSEQUENCE"].split(",")]
    found = frame["consequence"].astype(object).where(frame["consequence"].notna(), None)
    for (gene, expected), term, name in zip(known, found, frame["gene"], strict=True):
        if expected is None:
            assert term is None or name != gene
        else:
            assert expected in term.split("&") and name == gene
    assert out.read_text().count("BCSQ=") == frame.groupby("pos")["gene"].any().sum() > 30
    # A file that has BCSQ keeps it.
    second = tmp_path / "p.vcf"
    result = run(out, FASTA, "-m", model, "--gff", gff, "--info-prefix", "X", "-o", second)
    assert result.exit_code == 0
    assert second.read_text().count("BCSQ=") == out.read_text().count("BCSQ=")
    assert scored(tmp_path, VCF, FASTA, "-m", model)["consequence"].isna().all()
    bad = tmp_path / "bad.gff"
    bad.write_text("nothing\n")
    result = run(VCF, FASTA, "-m", model, "--gff", bad)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
