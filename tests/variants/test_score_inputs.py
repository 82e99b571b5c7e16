"""What `evo-toolkit score` takes as input, as a user runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from evo_data.demo_data import demo_file
from evo_toolkit.cli.main import cli

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
