"""Which contig of the genome a name of the variant file stands for."""

import pytest

from evo_data.contigs import ContigAliases

HG19 = {"chr1": 249_250_621, "chrX": 155_270_560, "chrM": 16_571}
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
        (["MT", "M", "chrM", "chrMT"], B37, dict.fromkeys(["MT", "M", "chrM", "chrMT"], "MT")),
        (["MT"], HG19, {"MT": "chrM"}),
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


def test_the_same_name_wins_whatever_the_length() -> None:
    assert mapped(["chrM"], HG19, {"chrM": 16_569}) == {"chrM": "chrM"}


def test_an_ambiguous_alias_is_not_used_unless_the_length_decides() -> None:
    genome = {"1": 100, "chr1": 200}
    assert mapped(["CHR1"], genome) == {}
    assert mapped(["CHR1"], genome, {"CHR1": 200}) == {"CHR1": "chr1"}
    assert mapped(["1", "chr1"], genome) == {"1": "1", "chr1": "chr1"}
