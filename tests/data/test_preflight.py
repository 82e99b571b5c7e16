"""Variants of another build are refused with the figures; those of this one are not."""

from __future__ import annotations

import random
from pathlib import Path

import pysam.bcftools
import pytest

from evo_data.builds import BUILDS, accession, build_named, build_of_lengths
from evo_data.contigs import ContigAliases
from evo_data.errors import ContigError
from evo_data.fasta import Fasta
from evo_data.preflight import check_build, check_refs, ref_differs
from evo_data.vcf import VariantReader

SEQUENCE = "".join(random.Random(3).choices("ACGT", k=600))


@pytest.fixture
def genome(tmp_path: Path) -> Fasta:
    path = tmp_path / "genome.fa"
    path.write_text(f">chr1\n{SEQUENCE}\n>chrM\n{SEQUENCE[:100]}\n>n\n{'N' * 50}\n")
    return Fasta(path)


def check(
    tmp_path: Path, genome: Fasta, rows: list[str], contigs: str = "", limit: float | None = None
) -> list[str]:
    path = tmp_path / "v.vcf"
    path.write_text(f"##fileformat=VCFv4.3\n{contigs}#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(rows))  # fmt: skip
    with VariantReader(path) as reader:
        records = list(reader)
        aliases = ContigAliases(genome.lengths, reader.header.contigs, any_length=limit is not None)
        names = dict.fromkeys(record.contig for record in records)
        return check_build(reader.header, records, names, genome, aliases, max_ref_mismatch=limit)


def row(pos: int, wrong: bool = False, contig: str = "chr1") -> str:
    ref = SEQUENCE[pos - 1]
    alt = "ACGT"[("ACGT".index(ref) + 1) % 4]
    if wrong:
        ref, alt = "ACGT"[("ACGT".index(ref) + 2) % 4], alt
    return f"{contig}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.\n"


def test_more_than_five_percent_is_refused_with_the_figures(tmp_path: Path, genome: Fasta) -> None:
    assert check(tmp_path, genome, [row(p, wrong=p <= 5) for p in range(1, 101)]) == []
    with pytest.raises(ContigError, match=r"6 of the first 100 records \(6.0%, limit 5.0%\)"):
        check(tmp_path, genome, [row(p, wrong=p <= 6) for p in range(1, 101)])
    rows = [row(p, wrong=p <= 6) for p in range(1, 101)]
    assert check(tmp_path, genome, rows, limit=0.06) == []
    with pytest.raises(ContigError, match=r"limit 0\.0%"):
        check(tmp_path, genome, [row(1, wrong=True), row(2)], limit=0.0)


def test_odd_records_of_a_short_list_are_not_a_wrong_build(tmp_path: Path, genome: Fasta) -> None:
    assert check(tmp_path, genome, [row(1, wrong=True), row(2, wrong=True), row(3)]) == []
    some = [row(p, wrong=p <= 9) for p in range(1, 20)]
    assert check(tmp_path, genome, some) == []
    with pytest.raises(ContigError, match=r"9 of the first 20 .* limit 5\.0%"):
        check(tmp_path, genome, [*some, row(20)])
    with pytest.raises(ContigError, match=r"10 of the first 19 .* limit 50\.0%"):
        check(tmp_path, genome, [row(p, wrong=p <= 10) for p in range(1, 20)])
    with pytest.raises(ContigError, match="3 of the first 3"):
        check(tmp_path, genome, [row(p, wrong=True) for p in (1, 2, 3)])


def test_what_the_mismatches_are_is_told(tmp_path: Path, genome: Fasta) -> None:
    a, b = SEQUENCE[9], SEQUENCE[10]
    other = next(x for x in "ACGT" if x not in (a, b))
    path = tmp_path / "v.vcf"
    rows = [
        f"chr1\t10\t.\t{other}\t{a}\t.\t.\t.\n",  # swapped
        "n\t10\t.\tA\tC\t.\t.\t.\n",
        "chr1\t600\t.\tACGTACGT\tA\t.\t.\t.\n",
        "chr1\t700\t.\tA\tC\t.\t.\t.\n",
        "chr1\t0\t.\tA\tC\t.\t.\t.\n",
        "chr1\t20\t.\tN\t<DEL>\t.\t.\tEND=30\n",  # says nothing
        "chr1\t20\t.\tR\tA\t.\t.\t.\n",
        "chr9\t20\t.\tG\tA\t.\t.\t.\n",
    ]
    path.write_text("##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(rows))  # fmt: skip
    with VariantReader(path) as reader:
        found = check_refs(reader, genome, ContigAliases(genome.lengths))
    assert (found.checked, found.mismatched) == (5, 5)
    assert (found.swapped, found.unknown, found.outside) == (1, 1, 3)
    assert "chr1:10 has REF" in found.example


def test_a_declared_length_must_be_the_genomes(tmp_path: Path, genome: Fasta) -> None:
    lengths = "##contig=<ID=1,length=249250621>\n##contig=<ID=chrM,length=99>\n"
    with pytest.raises(ContigError, match=r"249,250,621 .* 600 .* GRCh37 \(hg19\)"):
        check(tmp_path, genome, [row(5, contig="1")], lengths)
    # A contig without records is nobody's problem.
    fitting = lengths.replace("249250621", "600")
    assert check(tmp_path, genome, [row(5, contig="1")], fitting) == []
    with pytest.raises(ContigError, match="99 bases"):
        check(tmp_path, genome, [row(5, contig="chrM")], fitting)
    (warning,) = check(tmp_path, genome, [row(5, contig="chrM")], fitting, limit=0.05)
    assert "99 bases" in warning and "100" in warning


def test_builds() -> None:
    hg19 = {"chr17": 81_195_210, "chrM": 16_571, "chrUn_1": 5}
    assert build_of_lengths(hg19) == "GRCh37 (hg19)"
    assert build_of_lengths({"chr17": 5, "x": None}) is None
    # chr8 of CHM13 is as long as chr9 of nothing; NCBI36 and CHM13 differ everywhere but by name.
    assert all(len(set(known.values())) == len(known) for known in BUILDS.values())
    assert accession("NC_000017.11") == ("17", 83_257_441)
    assert accession("NC_000017.10") == ("17", 81_195_210)
    assert accession("NC_000024.10") == ("Y", 57_227_415) and accession("NC_000932.1") is None
    assert build_named("file:///ref/GRCh38_full_analysis_set.fa") == "GRCh38 (hg38)"
    assert build_named("ftp://x/hs37d5.fa.gz") == "GRCh37 (hg19)"
    assert build_named("about37") is None


def test_brca1_of_the_other_build(shared_dir: Path) -> None:
    folder = shared_dir / "data/variants/brca1"
    genomes = {b: Fasta(folder / f"GRCh{b}_chr17.Npadded.BRCA1.fa.gz") for b in ("37", "38")}
    for build in ("37", "38"):
        other = {"37": "38", "38": "37"}[build]
        with VariantReader(folder / f"BRCA1_SGE_Findlay2018.GRCh{build}.vcf.gz") as reader:
            records = list(reader)[:1000]
            for name, wrong in ((build, False), (other, True)):
                for any_length in (False, True):
                    aliases = ContigAliases(
                        genomes[name].lengths, reader.header.contigs, any_length=any_length,
                        synonyms=[frozenset({"17", "chr17"})] if any_length else [],
                    )  # fmt: skip
                    names = [records[0].contig]
                    arguments = (reader.header, records, names, genomes[name], aliases)
                    if wrong:
                        with pytest.raises(ContigError, match=rf"GRCh{build}.*GRCh{other}"):
                            check_build(*arguments)
                    else:
                        assert check_build(*arguments) == []


def test_ref_is_checked_as_bcftools_does(tmp_path: Path, genome: Fasta) -> None:
    """Oracle: the records that `bcftools norm -c x` leaves out."""
    rng = random.Random(9)
    rows = ["##fileformat=VCFv4.3\n##contig=<ID=chr1,length=600>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"]  # fmt: skip
    for number in range(300):
        pos, size = rng.randrange(1, 590), rng.choice([1, 1, 1, 2, 5])
        ref = SEQUENCE[pos - 1 : pos - 1 + size]
        if rng.random() < 0.4:
            ref = "".join(rng.choices("ACGTacgt", k=size))
        alt = rng.choice([base for base in "ACGT" if base != ref[0].upper()])
        rows.append(f"chr1\t{pos}\tr{number}\t{ref}\t{alt}\t.\t.\t.\n")
    path = tmp_path / "v.vcf"
    path.write_text("".join(rows))
    kept = pysam.bcftools.norm("-c", "x", "-f", str(genome.path), str(path))
    expected = {line.split("\t")[2] for line in kept.splitlines() if not line.startswith("#")}
    with VariantReader(path) as reader:
        found = {r.id for r in reader if not ref_differs(r, genome, "chr1")}
    assert found == expected and 150 < len(found) < 250
