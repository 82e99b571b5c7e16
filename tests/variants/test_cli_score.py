"""`evo-toolkit score` as a user runs it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pysam
import pytest
from click.testing import CliRunner, Result

from evo_data.demo_data import demo_file
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import OutOfDomainError, OutOfDomainWarning
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.api import score_variants
from evo_toolkit.variants.scores import TABLE_COLUMNS

VCF, FASTA = demo_file("rbcL_psbA.vcf"), demo_file("NC_000932.fa")


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["score", *map(str, args)])


@pytest.fixture
def model(toy_model_dir: Path) -> Path:
    return toy_model_dir


def keys_removed(line: bytes) -> bytes:
    columns = line.rstrip(b"\n").split(b"\t")
    kept = [item for item in columns[7].split(b";") if not item.startswith(b"EVO_")]
    columns[7] = b";".join(kept) or b"."
    return b"\t".join(columns) + b"\n"


def test_vcf_passes_through_byte_for_byte_with_keys_added(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.vcf"
    result = run(VCF, FASTA, "-m", model, "-o", out)
    assert result.exit_code == 0, result.output
    lines = out.read_bytes().splitlines(keepends=True)
    ours = (b"##INFO=<ID=EVO_", b"##evo_toolkit")
    kept = [
        keys_removed(x) if not x.startswith(b"#") else x for x in lines if not x.startswith(ours)
    ]
    assert b"".join(kept) == VCF.read_bytes()
    assert "scored 101 alleles of 101 in 40 records" in result.stderr
    assert "bits per base" in result.stderr
    assert "estimated time" in result.stderr
    with pysam.VariantFile(str(out)) as variants:
        assert "MORE likely" in variants.header.info["EVO_DLL"].description
        for record in variants:
            assert len(record.info["EVO_DLL"]) == len(record.alts) == len(record.info["EVO_ST"])


def test_every_format_holds_the_same_scores(
    model: Path, tmp_path: Path, toy_model: StripedHyena2
) -> None:
    frame = score_variants(toy_model, VCF, FASTA)
    assert list(frame.columns) == list(TABLE_COLUMNS) and len(frame) == 101
    for name in ("a.vcf", "a.vcf.gz", "a.bcf", "a.tsv", "a.parquet"):
        out = tmp_path / name
        assert run(VCF, FASTA, "-m", model, "-o", out, "-q").exit_code == 0
        if "cf" in name:
            with pysam.VariantFile(str(out)) as variants:
                found = [x for record in variants for x in record.info["EVO_DLL"]]
        else:
            table = (
                pd.read_parquet(out)
                if name == "a.parquet"
                else pd.read_csv(
                    out,
                    sep="\t",
                    skiprows=sum(line.startswith("##") for line in out.read_text().splitlines()),
                )
            )
            found = table["dll"].tolist()
        assert found == pytest.approx(frame["dll"].tolist(), rel=1e-5)
    assert (tmp_path / "a.vcf.gz.tbi").is_file()
    assert frame.attrs["evo_toolkit"]["model"] == "toy"


def test_stdin_to_stdout(model: Path) -> None:
    command = [sys.executable, "-m", "evo_toolkit", "score", "-", str(FASTA), "-m", str(model)]
    result = subprocess.run(
        command, input=gzip.compress(VCF.read_bytes()), capture_output=True, check=True
    )
    assert result.stdout.count(b"EVO_ST=ok") == 40
    assert b"no estimate" in result.stderr


def test_a_stream_of_another_genome_is_refused_like_a_file(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.fa"
    other.write_text(">chr7\nACGTACGT\n")
    command = [sys.executable, "-m", "evo_toolkit", "score", "-", str(other), "-m", str(model)]
    lines = [line for line in VCF.read_bytes().splitlines(True) if not line.startswith(b"##contig")]
    result = subprocess.run(command, input=b"".join(lines), capture_output=True, check=False)
    assert result.returncode == 1 and result.stdout == b""
    assert b"NC_000932.1" in result.stderr and b"chr7" in result.stderr


def test_a_pipe_is_read_once(model: Path) -> None:
    script = f"{sys.executable} -m evo_toolkit score <(cat {VCF}) {FASTA} -m {model}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert result.stdout.count(b"EVO_ST=ok") == 40


def test_no_model_is_a_usage_error_with_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVO_TOOLKIT_MODEL", raising=False)
    result = run(VCF, FASTA)
    assert result.exit_code == 2
    assert (
        "evo-mini" in result.stderr and "evo2_7b" in result.stderr and "not human" in result.stderr
    )
    assert result.stderr.count("\n") == 1


def test_outputs_are_not_overwritten_and_inputs_never(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tsv"
    out.write_text("precious")
    result = run(VCF, FASTA, "-m", model, "-o", out)
    assert result.exit_code == 1 and "--force" in result.stderr and out.read_text() == "precious"
    assert run(VCF, FASTA, "-m", model, "-o", out, "--force", "-q").exit_code == 0
    copy = tmp_path / "in.vcf"
    copy.write_bytes(VCF.read_bytes())
    result = run(copy, FASTA, "-m", model, "-o", copy, "--force")
    assert result.exit_code == 2 and copy.read_bytes() == VCF.read_bytes()


def test_scoring_a_scored_file_asks_for_another_prefix(model: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "1.vcf", tmp_path / "2.vcf"
    assert run(VCF, FASTA, "-m", model, "-o", once, "-q").exit_code == 0
    result = run(once, FASTA, "-m", model, "-o", twice)
    assert result.exit_code == 1 and "--info-prefix" in result.stderr and not twice.exists()
    assert run(once, FASTA, "-m", model, "-o", twice, "-q", "--info-prefix", "TOY").exit_code == 0
    with pysam.VariantFile(str(twice)) as variants:
        record = next(variants)
        assert record.info["TOY_DLL"] == record.info["EVO_DLL"]


def test_another_genome_is_refused_with_both_name_lists(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.fa"
    other.write_text(">chr7\nACGTACGT\n>chr8\nACGT\n")
    result = run(VCF, other, "-m", model, "-o", tmp_path / "x.vcf")
    assert result.exit_code == 1
    assert "NC_000932.1" in result.stderr and "chr7, chr8" in result.stderr
    assert not (tmp_path / "x.vcf").exists()


def test_empty_and_unscorable_inputs(model: Path, tmp_path: Path) -> None:
    header = "##fileformat=VCFv4.3\n##contig=<ID=NC_000932.1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    empty, star, out = tmp_path / "e.vcf", tmp_path / "s.vcf", tmp_path / "o.vcf"
    empty.write_text(header)
    assert run(empty, FASTA, "-m", model, "-o", out).exit_code == 0 and out.is_file()
    star.write_text(header + "NC_000932.1\t5\t.\tA\t*,<DEL>\t.\t.\t.\n")
    result = run(star, FASTA, "-m", model, "-o", out, "--force")
    assert result.exit_code == 3
    assert "EVO_ST=star,symbolic" in out.read_text()
    assert "1 star, 1 symbolic" in result.stderr


def test_filters_and_genotypes(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "f.vcf", tmp_path / "o.vcf"
    ref = FASTA.read_text().splitlines()[1][:3]
    rows = [
        f"NC_000932.1\t{i + 1}\t.\t{b}\t<DEL>,{'A' if b != 'A' else 'C'}\t.\t{f}\t.\tGT\t0/1\n"
        for i, (b, f) in enumerate(zip(ref, ("PASS", "q10;s50", "."), strict=True))
    ]
    source.write_text(
        "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS\n"
        + "".join(rows)
    )
    result = run(source, FASTA, "-m", model, "-o", out, "-f", "PASS,.", "-G")
    assert result.exit_code == 0, result.stderr
    body = [line.split("\t") for line in out.read_text().splitlines() if not line.startswith("##")]
    assert [row[1] for row in body] == ["POS", "1", "3"]
    assert {len(row) for row in body} == {8}
    assert "left out by the filter: 1 record" in result.stderr


def test_wrong_assembly_is_hinted_at(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "w.vcf"
    sequence = "".join(FASTA.read_text().splitlines()[1:4])
    rows = []
    for i in range(10, 60):
        ref = sequence[i] if i % 10 else next(b for b in "ACGT" if b not in (sequence[i],))
        alt = next(b for b in "ACGT" if b not in (ref, sequence[i]))
        rows.append(f"NC_000932.1\t{i + 1}\t.\t{ref}\t{alt}\t.\t.\t.\n")
    source.write_text(
        "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(rows)
    )
    out = tmp_path / "o.vcf"
    result = run(source, FASTA, "-m", model, "-o", out)
    assert result.exit_code == 1 and not out.exists()
    assert "at 5 of the first 50 records (10.0%, limit 5.0%)" in result.stderr
    assert "wrong build?" in result.stderr and result.stderr.count("\n") == 1
    result = run(source, FASTA, "-m", model, "-o", out, "--max-ref-mismatch", "0.1")
    assert result.exit_code == 0
    assert "REF differs from the genome at 5 of 50 alleles" in result.stderr


def test_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    result = run(VCF, FASTA, "-m", model, "-o", tmp_path / "o.vcf", "--dry-run")
    assert (
        result.exit_code == 0
        and "101 alternate alleles" in result.stderr
        and "estimated time" in result.stderr
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def vertebrate_averse(toy_model_dir: Path, tmp_path: Path) -> Path:
    """The toy model with evo-mini's restriction."""
    import shutil

    folder = tmp_path / "averse"
    shutil.copytree(toy_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(forbidden_genomes=["vertebrate"], domains=["bacteria"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def human_like(tmp_path: Path) -> tuple[Path, Path]:
    """A genome of the name and length of human chr21 (GRCh38), all N but for its end, and a variant."""
    length = 46_709_983
    genome = tmp_path / "h.fa"
    with genome.open("wb") as file:
        file.write(b">chr21\n")
        file.write(b"N" * (length - 400) + b"ACGT" * 100 + b"\n")
    variants = tmp_path / "h.vcf"
    variants.write_text(
        f"##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n21\t{length - 199}\t.\tA\tG\t.\t.\t.\n"
    )
    return variants, genome


def test_genomes_outside_the_domain_are_refused_or_marked(
    vertebrate_averse: Path, human_like: tuple[Path, Path], tmp_path: Path
) -> None:
    variants, genome = human_like
    result = run(variants, genome, "-m", vertebrate_averse, "-o", tmp_path / "o.vcf")
    assert (
        result.exit_code == 2
        and "GRCh38" in result.stderr
        and "--allow-out-of-domain" in result.stderr
    )
    assert not (tmp_path / "o.vcf").exists()
    for name in ("o.vcf", "o.tsv", "o.parquet"):
        out = tmp_path / name
        result = run(variants, genome, "-m", vertebrate_averse, "-o", out, "--allow-out-of-domain")
        assert result.exit_code == 0, result.stderr
        assert result.stderr.count("out of domain") >= 2  # at the start and at the end
        if name == "o.parquet":
            assert pd.read_parquet(out)["flags"].tolist() == ["out_of_domain"]
        else:
            assert "out_of_domain" in out.read_text().splitlines()[-1]
            assert "##evo_toolkitNote=" in out.read_text()
    from evo_toolkit.checkpoint.load import load_model

    model = load_model(vertebrate_averse, device="cpu")
    with pytest.raises(OutOfDomainError):
        score_variants(model, variants, genome)
    with pytest.warns(OutOfDomainWarning):
        frame = score_variants(model, variants, genome, allow_out_of_domain=True)
    assert frame["flags"].tolist() == ["out_of_domain"]
    assert frame["chrom"].tolist() == ["21"]  # the alias 21 for chr21, reported as given
