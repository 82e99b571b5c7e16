"""Which contig of the genome a name of the variant file stands for."""

from pathlib import Path

import pytest

from evo_data.contigs import ContigAliases, read_alias_file
from evo_data.errors import ContigError

HG19 = {"chr1": 249_250_621, "chrX": 155_270_560, "chrM": 16_571}
HG38 = {"chr1": 248_956_422, "chrX": 156_040_895, "chrM": 16_569}
YEAST = {"I": 230_218, "MT": 85_779}
B37 = {"1": 249_250_621, "X": 155_270_560, "MT": 16_569}


def mapped(
    names: list[str], genome: dict[str, int], declared: dict[str, int | None] | None = None
) -> dict[str, str]:
    aliases = ContigAliases(genome, declared)
    found = {name: aliases[name] for name in names if name in aliases}
    assert dict(aliases) == found and len(aliases) == len(found)
    return found


@pytest.mark.parametrize(
    ("names", "genome", "expected"),
    [
        (["chr1", "chrX"], HG19, {"chr1": "chr1", "chrX": "chrX"}),
        (["1", "X"], HG19, {"1": "chr1", "X": "chrX"}),
        (["chr1"], B37, {"chr1": "1"}),
        (["CHR1", "Chr1"], B37, {"CHR1": "1", "Chr1": "1"}),
        (["MT", "M", "chrM", "chrMT"], YEAST, dict.fromkeys(["MT", "M", "chrM", "chrMT"], "MT")),
        # hg19's chrM is not rCRS, which MT stands for, although no length is declared.
        (["MT", "M", "chrM", "chrMT"], B37, {"MT": "MT", "chrMT": "MT"}),
        (["MT", "M", "chrM", "chrMT"], HG19, {"M": "chrM", "chrM": "chrM"}),
        (["MT", "M"], HG38, {"MT": "chrM", "M": "chrM"}),
        (["NC_000001.10", "NC_000001.11"], B37, {"NC_000001.10": "1"}),
        (
            ["NC_000001.10", "NC_000001.11", "NC_012920.1"],
            HG38,
            {"NC_000001.11": "chr1", "NC_012920.1": "chrM"},
        ),
        (["1", "chr1"], {"NC_000001.11": 248_956_422}, {}),
        (["2", "scaffold_1", "", "chr"], HG19, {}),
        (["x"], HG19, {}),
    ],
)
def test_names(names: list[str], genome: dict[str, int], expected: dict[str, str]) -> None:
    assert mapped(names, genome) == expected


def test_an_alias_needs_the_declared_length() -> None:
    # GRCh37's mitochondrion is not hg19's, and the lengths say so.
    assert mapped(["MT", "1"], HG19, {"MT": 16_569, "1": 249_250_621}) == {"1": "chr1"}
    assert mapped(["MT"], HG19, {"MT": 16_571}) == {"MT": "chrM"}


def test_the_same_name_needs_the_declared_length_too() -> None:
    assert mapped(["chrM"], HG19, {"chrM": 16_569}) == {}
    assert ContigAliases(HG19, {"chrM": 16_569}, any_length=True)["chrM"] == "chrM"
    aliases = ContigAliases(HG19, {"chrM": 16_569, "1": 248_956_422, "X": 155_270_560, "2": 5})
    assert aliases.disagreement("chrM") == ("chrM", 16_569, 16_571)
    assert aliases.disagreement("1") == ("chr1", 248_956_422, 249_250_621)
    assert aliases.disagreement("X") is None
    assert aliases.disagreement("2") is None


def test_alias_files(tmp_path: Path) -> None:
    two = tmp_path / "two.txt"
    two.write_text("one NC_1.1\ntwo NC_2.1\n")
    genome = {"NC_1.1": 100, "NC_2.1": 200}
    aliases = ContigAliases(genome, {"two": 201}, synonyms=read_alias_file(two))
    assert aliases.get("one") == "NC_1.1" and aliases.get("two") is None
    assert aliases.disagreement("two") == ("NC_2.1", 201, 200)
    report = tmp_path / "report.txt"
    report.write_text(
        "# Assembly name: toy\n"
        "# Sequence-Name\tSequence-Role\tAssigned-Molecule\tAssigned-Molecule-Location/Type\tGenBank-Accn\t"
        "Relationship\tRefSeq-Accn\tAssembly-Unit\tSequence-Length\tUCSC-style-name\n"
        "I\tassembled-molecule\tI\tChromosome\tBK1.2\t=\tNC_1.1\tPrimary\t100\tchrI\n"
        "p\tassembled-molecule\tna\tPlasmid\tna\t=\tNC_2.1\tPrimary\t200\tna\n"
    )
    aliases = ContigAliases(genome, synonyms=read_alias_file(report))
    found = {name: aliases.get(name) for name in ("I", "BK1.2", "chrI", "p", "na", "Primary", "=")}
    assert found == {"I": "NC_1.1", "BK1.2": "NC_1.1", "chrI": "NC_1.1", "p": "NC_2.1", "na": None, "Primary": None, "=": None}  # fmt: skip
    two.write_text("one\n")
    with pytest.raises(ContigError, match=r"two\.txt:1"):
        read_alias_file(two)
    with pytest.raises(ContigError, match="cannot be read"):
        read_alias_file(tmp_path / "absent")


def test_an_ambiguous_alias_is_not_used_unless_the_length_decides() -> None:
    genome = {"1": 100, "chr1": 200}
    assert mapped(["CHR1"], genome) == {}
    assert mapped(["CHR1"], genome, {"CHR1": 200}) == {"CHR1": "chr1"}
    assert mapped(["1", "chr1"], genome) == {"1": "1", "chr1": "chr1"}
