"""The table of vertebrate assemblies, and what it recognises."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from evo_toolkit.model.assemblies import AssemblyMatch, load_assemblies, match_assembly

# Number of nuclear chromosomes and the bases in all of them, as published for these assemblies: a
# wrong digit anywhere in a table changes the sum.
PUBLISHED_TOTALS = {
    "GRCh38/hg38": (24, 3_088_269_832),
    "GRCh37/hg19": (24, 3_095_677_412),
    "T2T-CHM13v2.0/hs1": (24, 3_117_275_501),
    "GRCm38/mm10": (21, 2_725_521_370),
    "GRCm39/mm39": (21, 2_723_414_844),
    "GRCz11/danRer11": (25, 1_345_101_833),
}


def chromosomes(assembly: str) -> dict[str, int]:
    """Return length by name with `chr`, nuclear chromosomes only."""
    rows = [row for row in load_assemblies() if row.assembly == assembly and row.name != "M"]
    return {f"chr{row.name}": row.length for row in rows}


@pytest.mark.parametrize("assembly", sorted(PUBLISHED_TOTALS))
def test_totals_are_the_published_ones(assembly: str) -> None:
    lengths = chromosomes(assembly)
    assert (len(lengths), sum(lengths.values())) == PUBLISHED_TOTALS[assembly]


def test_table_is_well_formed() -> None:
    rows = load_assemblies()
    assert len({row.assembly for row in rows}) == 21
    for row in rows:
        assert not row.name.lower().startswith("chr"), row
        assert row.name != "MT", row
        assert row.length > 0, row
        assert row.refseq is None or row.refseq.startswith("NC_"), row
    keys = Counter((row.assembly, row.name, row.length) for row in rows)
    assert max(keys.values()) == 1
    accessions = Counter((row.assembly, row.refseq) for row in rows if row.refseq)
    assert max(accessions.values()) == 1
    species = {row.assembly: set[str]() for row in rows}
    for row in rows:
        species[row.assembly].add(row.species)
    assert all(len(names) == 1 for names in species.values())


def test_assemblies_of_the_common_model_organisms_are_there() -> None:
    present = {row.species for row in load_assemblies()}
    assert present == {
        "Homo sapiens",
        "Mus musculus",
        "Rattus norvegicus",
        "Macaca mulatta",
        "Pan troglodytes",
        "Canis lupus familiaris",
        "Bos taurus",
        "Sus scrofa",
        "Gallus gallus",
        "Xenopus tropicalis",
        "Danio rerio",
    }


def test_both_mitochondria_of_grch37_are_listed() -> None:
    found = {
        row.length for row in load_assemblies() if (row.assembly, row.name) == ("GRCh37/hg19", "M")
    }
    assert found == {16571, 16569}


@pytest.mark.parametrize("name", ["chr17", "17", "Chr17", "CHR17", "NC_000017.11"])
def test_one_chromosome_is_enough_under_any_of_its_names(name: str) -> None:
    assert match_assembly({name: 83_257_441, "scaffold_1": 5_000_000}) == AssemblyMatch(
        assembly="GRCh38/hg38", species="Homo sapiens", num_matched=1, contig=name
    )


def test_length_and_name_must_both_agree() -> None:
    assert match_assembly({"chr17": 83_257_442}) is None
    assert match_assembly({"chr18": 83_257_441}) is None
    assert match_assembly({"NC_000017.10": 83_257_441}) is None  # the accession of GRCh37
    assert match_assembly({}) is None


def test_the_assembly_with_most_contigs_wins() -> None:
    mixed = {"chr1": 249_250_621, "chr2": 242_193_529, "chr3": 198_295_559}  # one of 37, two of 38
    found = match_assembly(mixed)
    assert found is not None
    assert (found.assembly, found.num_matched, found.contig) == ("GRCh38/hg38", 2, "chr2")


@pytest.mark.parametrize("assembly", sorted({row.assembly for row in load_assemblies()}))
def test_every_assembly_is_told_from_all_others(assembly: str) -> None:
    lengths = chromosomes(assembly)
    found = match_assembly({name.removeprefix("chr"): n for name, n in lengths.items()})
    assert found is not None
    expected = sum(length >= 1_000_000 for length in lengths.values())
    assert (found.assembly, found.num_matched) == (assembly, expected)


def test_short_contigs_are_ignored_unless_asked_for() -> None:
    assert match_assembly({"MT": 16_569}) is None
    found = match_assembly({"MT": 16_571}, minimum_length=10_000)
    assert found is not None
    assert found.assembly == "GRCh37/hg19"
    at_limit = {"chr21": 46_709_983}
    assert match_assembly(at_limit, minimum_length=46_709_983) is not None
    assert match_assembly(at_limit, minimum_length=46_709_984) is None


def test_genomes_outside_the_table_do_not_match() -> None:
    bacterium = {"NC_000913.3": 4_641_652}
    yeast = {"chrIV": 1_531_933, "chrXII": 1_078_177}
    arabidopsis = {"Chr1": 30_427_671, "Chr2": 19_698_289, "ChrM": 366_924}
    for lengths in (bacterium, yeast, arabidopsis):
        assert match_assembly(lengths) is None


def test_real_chromosome_files_are_recognised(shared_dir: Path) -> None:
    found = {}
    for index in sorted((shared_dir / "data" / "variants" / "brca1").rglob("*.fai")):
        fields = [line.split("\t") for line in index.read_text().splitlines()]
        match = match_assembly({row[0]: int(row[1]) for row in fields})
        assert match is not None, index
        found[index.name] = match.assembly
    assert {"GRCh37/hg19", "GRCh38/hg38"} == set(found.values())


def test_importing_the_module_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, evo_toolkit.model.assemblies as a; a.match_assembly({'chr1': 248956422});"
        "print(sorted({'torch', 'numpy', 'pysam'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
