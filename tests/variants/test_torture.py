"""Every odd, broken and hostile file at hand, through the command, in one process.

Exit code 0, 1 or 3, one clear line, never a traceback; and no allele whose POS, REF or ALT is
malformed gets a score.
"""

from __future__ import annotations

import gzip
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evo_toolkit.cli.main import cli

RESOLVED = re.compile("<(DEL|DUP|INV|INS)[:>]")
BASES = re.compile(r"[ACGTNacgtn]+")
LONGEST_CONTIG = 300_000
NUM_INVALID = 607
NUM_INVALID_REFUSED = 32
"""Files of hts-specs' `failed` folders that are refused; the others break rules that cost no score."""


def score(variants: Path, genome: Path, model: Path, output: Path) -> Result:
    arguments = [
        str(variants),
        str(genome),
        "-m",
        str(model),
        "-o",
        str(output),
        "--force",
        "-q",
        "--max-ref-mismatch",
        "1",
    ]
    result = CliRunner().invoke(cli, ["score", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 3), (variants, result.exit_code, result.stderr)
    if result.exit_code == 1:
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result


def text_lines(path: Path) -> list[str]:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError):
            return []
    return data.decode("utf-8", errors="replace").splitlines()


def matching_genome(path: Path, folder: Path) -> Path:
    """A genome that holds every plausible REF of the file where the file says it is.

    So that nothing but the toolkit's own care keeps a malformed allele from being scored.
    """
    contigs: dict[str, bytearray] = {}
    for line in text_lines(path):
        columns = line.split("\t")
        if (
            line.startswith("#")
            or len(columns) < 5
            or not re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", columns[1])
        ):
            continue
        name, start = columns[0].strip() or "empty", abs(int(float(columns[1]))) - 1
        if start < 0 or start + len(columns[3]) > LONGEST_CONTIG or re.search(r"[\s>]", name):
            continue
        contig = contigs.setdefault(name, bytearray())
        contig.extend(b"ACGGT" * ((max(0, start + len(columns[3]) + 300 - len(contig)) + 4) // 5))
        ref = re.sub(r"[^ACGTN]", "N", columns[3].upper()).encode()
        contig[start : start + len(ref)] = ref
    genome = folder / "genome.fa"
    with genome.open("wb") as file:
        for name, contig in (contigs or {"1": bytearray(b"ACGGT" * 2000)}).items():
            file.write(b">" + name.encode() + b"\n" + bytes(contig) + b"\n")
    return genome


def scored_alleles(output: Path) -> Iterator[tuple[str, str, str]]:
    """POS, REF and ALT of every allele with status ok."""
    for line in output.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.split("\t")
        statuses = re.search(r"EVO_ST=([^;]*)", columns[7])
        assert statuses is not None, line
        for alt, status in zip(columns[4].split(","), statuses[1].split(","), strict=True):
            if status == "ok":
                yield columns[1], columns[3], alt


@pytest.fixture
def run_all(toy_model_dir: Path, tmp_path: Path) -> object:
    def run(paths: list[Path]) -> dict[Path, int]:
        codes = {}
        for number, path in enumerate(paths):
            folder = tmp_path / str(number)
            folder.mkdir()
            output = folder / "out.vcf"
            codes[path] = score(
                path, matching_genome(path, folder), toy_model_dir, output
            ).exit_code
            if codes[path] == 1:
                assert not output.exists(), f"{path} left an output behind"
            else:
                for pos, ref, alt in scored_alleles(output):
                    assert pos.isdecimal() and int(pos) >= 1, (path, pos)
                    assert BASES.fullmatch(ref), (path, ref, alt)
                    assert BASES.fullmatch(alt) or RESOLVED.match(alt), (path, ref, alt)
            shutil.rmtree(folder)
        return codes

    return run


def vcf_files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and re.search(r"\.(vcf|bcf)(\.gz|\.bgz)?$", p.name)
    )


def test_valid_files_of_hts_specs_are_read(shared_dir: Path, run_all: object) -> None:
    paths = [
        p for p in vcf_files(shared_dir / "data/torture/vcf_hts-specs") if p.parent.name == "passed"
    ]
    assert len(paths) == 76
    codes = run_all(paths)  # type: ignore[operator]
    assert [p for p, code in codes.items() if code == 1] == []


def test_invalid_files_of_hts_specs(shared_dir: Path, run_all: object) -> None:
    paths = [
        p for p in vcf_files(shared_dir / "data/torture/vcf_hts-specs") if p.parent.name == "failed"
    ]
    assert len(paths) == NUM_INVALID
    codes = Counter(run_all(paths).values())  # type: ignore[operator]
    assert codes[1] == NUM_INVALID_REFUSED, codes


@pytest.mark.parametrize("name", ["vcf_bcftools", "vcf_bcftools_csq", "vcf_cyvcf2", "vcf_pysam"])
def test_files_of_other_tools(name: str, shared_dir: Path, run_all: object) -> None:
    paths = vcf_files(shared_dir / "data/torture" / name)
    assert paths
    run_all(paths)  # type: ignore[operator]


def test_odd_genomes(shared_dir: Path, toy_model_dir: Path, tmp_path: Path) -> None:
    """Everything that may be handed over as a FASTA: GenBank, FASTQ, protein, 2bit, zip, nothing."""
    source = shared_dir / "data/torture/fasta"
    paths = sorted(p for p in source.rglob("*") if p.is_file())
    assert len(paths) > 150
    codes: Counter[int] = Counter()
    for number, path in enumerate(paths):
        folder = tmp_path / str(number)
        folder.mkdir()
        genome = folder / path.name
        shutil.copy(path, genome)
        genome.chmod(0o644)
        variants = folder / "v.vcf"
        names = re.findall(rb"^>(\S+)", path.read_bytes()[:4000], re.MULTILINE)[:1] or [b"1"]
        variants.write_bytes(
            b"##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
            + names[0]
            + b"\t5\t.\tA\tC\t.\t.\t.\n"
        )
        codes[score(variants, genome, toy_model_dir, folder / "o.vcf").exit_code] += 1
        shutil.rmtree(folder)
    assert codes[1] > 100 and codes[0] + codes[3] > 10, codes
