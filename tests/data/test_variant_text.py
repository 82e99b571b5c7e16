"""Variants as text, in the usual spellings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evo_data.contigs import ContigAliases
from evo_data.errors import EvoDataError
from evo_data.fasta import Fasta
from evo_data.variant_text import parse_variant

#             123456789012345678901234
SEQUENCE17 = "ACGTACGTAAACCCGGGTTTACGT"


@pytest.fixture
def genome(tmp_path: Path) -> Fasta:
    path = tmp_path / "genome.fa"
    path.write_text(f">chr17\n{SEQUENCE17}\n>NC_000932.1\nTTGACCA\n>HLA-A*01:01\nACGT\n")
    return Fasta(path)


def parsed(text: str, genome: Fasta) -> tuple[str, int, str, str]:
    found = parse_variant(text, genome, ContigAliases(genome.lengths))
    return found.contig, found.pos, found.ref, found.alt


@pytest.mark.parametrize(
    "text",
    [
        "chr17-5-A-G", "17-5-A-G", "17:5:A>G", "chr17:5A>G", "17:5 A>G", "17 5 A G", "chr17_5_A_G",
        "chr17_5_A_G_b38", "17:5:A:G", "17:5:a:g", "17_5_A/G", "chr17:g.5A>G", "17:g.5A>G",
        " chr17\t5\tA\tG ", "17:g.5delAinsG", "17:g.5delinsG",
    ],
)  # fmt: skip
def test_spellings_of_one_substitution(text: str, genome: Fasta) -> None:
    assert parsed(text, genome) == ("chr17", 5, "A", "G")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17:g.9_11del", ("chr17", 8, "TAAA", "T")),
        ("17:g.9_11delAAA", ("chr17", 8, "TAAA", "T")),
        ("17:g.9_11delCCC", ("chr17", 8, "TCCC", "T")),  # REF is compared later
        ("17:g.1del", ("chr17", 1, "AC", "C")),
        ("17:g.24del", ("chr17", 23, "GT", "G")),
        ("17:g.9dup", ("chr17", 9, "A", "AA")),
        ("17:g.13_15dup", ("chr17", 15, "G", "GCCG")),
        ("17:g.9_10insTT", ("chr17", 9, "A", "ATT")),
        ("17:g.9_11delinsT", ("chr17", 9, "AAA", "T")),
        ("17:g.9_12inv", ("chr17", 9, "AAAC", "GTTT")),
        ("17:g.9=", ("chr17", 9, "A", "A")),
        ("17-8-TAAA-T", ("chr17", 8, "TAAA", "T")),
        # SPDI counts from 0.
        ("NC_000932.1:3:A:G", ("NC_000932.1", 4, "A", "G")),
        ("NC_000932.1:3:1:G", ("NC_000932.1", 4, "A", "G")),
        ("NC_000932.1:4:CC:", ("NC_000932.1", 4, "ACC", "A")),
        ("NC_000932.1:0:2:", ("NC_000932.1", 1, "TTG", "G")),
        ("NC_000932.1:3::GG", ("NC_000932.1", 3, "G", "GGG")),
        ("NC_000932.1-4-A-G", ("NC_000932.1", 4, "A", "G")),
        ("NC_000932.1:g.4A>G", ("NC_000932.1", 4, "A", "G")),
        ("HLA-A*01:01-2-C-T", ("HLA-A*01:01", 2, "C", "T")),
        ("chrUn-5-A-G", ("chrUn", 5, "A", "G")),
    ],
)
def test_other_kinds(text: str, expected: tuple[str, int, str, str], genome: Fasta) -> None:
    assert parsed(text, genome) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rs699", "rsID"),
        ("NM_007294.3:c.5A>G", "genomic"),
        ("p.Val600Glu", "genomic"),
        ("17:g.9_10ins", "inserted bases"),
        ("17:g.9_11insA", "neighbours"),
        ("17:g.9_10delAAA", "3 bases are written for 2 positions"),
        ("17:g.9dupC", "the genome has A"),
        ("17:g.9_12A>G", "a substitution has one position"),
        ("17:g.(5_6)_9del", "not understood"),
        ("17:g.30del", "only 24 bases"),
        ("17:g.6_5del", "lower one first"),
        ("chrUn:g.5del", "no contig 'chrUn'"),
        ("NC_000017.10:g.5A>G", "81,195,210"),
        ("NC_000932.1:4:A:G", "counted from 1 it would fit: write NC_000932.1-4-A-G"),
        ("NC_000932.1:6:10:", "only 7 bases"),
        ("NC_000932.1:0:7:", "whole contig"),
        ("17-0-A-G", "start at 1"),
        ("17:g.5A", "quote it, since > sends output to a file: '17:g.5A>A'"),
        ("17:5A", "quote it"),
        ("17-5-A", "not understood; write chr17-43045711-G-A"),
        ("17-5-A-<DEL>", "not understood"),
        ("", "not understood"),
    ],
)
def test_refused_in_one_line(text: str, message: str, genome: Fasta) -> None:
    with pytest.raises(EvoDataError, match=re.escape(message)) as error:
        parsed(text, genome)
    assert "\n" not in str(error.value)


def test_the_build_of_a_text_is_checked(genome: Fasta) -> None:
    genome.lengths = {"chr17": 83_257_441}  # as if it were GRCh38
    aliases = ContigAliases(genome.lengths)
    with pytest.raises(EvoDataError, match="GRCh37"):
        parse_variant("chr17_5_A_G_b37", genome, aliases)
    for text in ("chr17_5_A_G_b38", "NC_000017.11:g.5A>G"):
        assert parse_variant(text, genome, aliases).contig == "chr17"
    with pytest.raises(EvoDataError, match=r"chromosome 17 of 81,195,210 bases.*GRCh38"):
        parse_variant("NC_000017.10:g.5A>G", genome, aliases)
