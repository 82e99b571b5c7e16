"""Normal forms against `bcftools norm`, HGVS against brute force, kinds of alleles by hand."""

import random
from pathlib import Path

import pysam
import pysam.bcftools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_data.errors import EvoDataError
from evo_data.variant import (
    AlleleStatus,
    Edit,
    Fetch,
    Variant,
    check_reference,
    classify_allele,
    edit_of,
    hgvs_g,
    left_align,
    normalise,
    right_align,
)


def _fetch(genome: str) -> Fetch:
    """A strict reader: a request outside of the genome is a failure of the caller."""

    def fetch(start: int, end: int) -> bytes:
        assert 0 <= start <= end <= len(genome)
        return genome[start:end].encode()

    return fetch


def _repetitive_genome(rng: random.Random, length: int) -> str:
    pieces: list[str] = []
    while sum(map(len, pieces)) < length:
        unit = "".join(rng.choices("ACGT", k=rng.choice([1, 1, 2, 3, 5, 9])))
        pieces.append(unit * rng.choice([1, 1, 2, 3, 8, 60, 200]))
    return "".join(pieces)[:length]


def _random_variant(rng: random.Random, contig: str, genome: str) -> Variant:
    start = rng.choice([0, rng.randrange(len(genome)), len(genome) - 1])
    ref = genome[start : start + rng.choice([1, 1, 2, 3, 4, 7, 30])]
    if rng.random() < 0.5:
        # Nothing but a deletion or an insertion, at a random place within the allele.
        cut = rng.randrange(len(ref))
        kept = ref[:cut] + ref[cut + rng.randrange(len(ref)) :]
        repeated = ref[:cut] + ref[cut:] * rng.choice([1, 2, 3]) + ref[cut:]
        alt = rng.choice([kept, repeated])
    else:
        alt = "".join(rng.choices("ACGT", k=rng.choice([1, 1, 2, 3, 5])))
    return Variant(contig, start + 1, ref, alt or ref[0])


# --- normalisation ------------------------------------------------------------------------------


def test_normalise_agrees_with_bcftools(tmp_path: Path) -> None:
    rng = random.Random(7)
    genomes = {f"c{size}": _repetitive_genome(rng, size) for size in (1, 2, 5, 40, 600, 5000)}
    fasta, vcf = tmp_path / "genome.fa", tmp_path / "variants.vcf"
    fasta.write_text("".join(f">{name}\n{genome}\n" for name, genome in genomes.items()))
    variants = [
        _random_variant(rng, name, genome) for name, genome in genomes.items() for _ in range(800)
    ]
    variants = [variant for variant in variants if variant.ref != variant.alt]
    lines = ["##fileformat=VCFv4.2"]
    lines += [f"##contig=<ID={name},length={len(genome)}>" for name, genome in genomes.items()]
    lines += ["#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    lines += [
        f"{v.contig}\t{v.pos}\t{index}\t{v.ref}\t{v.alt}\t.\t.\t."
        for index, v in enumerate(variants)
    ]
    vcf.write_text("\n".join(lines) + "\n")
    normal = pysam.bcftools.norm("-f", str(fasta), str(vcf))

    num_moved = 0
    records = [line.split("\t") for line in normal.splitlines() if not line.startswith("#")]
    assert len(records) == len(variants) > 3000
    for contig, pos, index, ref, alt, *_ in records:
        variant = variants[int(index)]
        expected = Variant(contig, int(pos), ref, alt)
        assert normalise(variant, _fetch(genomes[contig])) == expected, variant
        num_moved += abs(variant.pos - expected.pos) > 30
    assert num_moved > 50


@pytest.mark.parametrize(
    ("pos", "ref", "alt", "expected"),
    [
        # genome: GGGCACACACTT
        (8, "CAC", "C", (3, "GCA", "G")),  # from the last repeat to before the first
        (3, "G", "GCA", (3, "G", "GCA")),
        (9, "AC", "ACAC", (3, "G", "GCA")),
        (4, "CAC", "CTC", (5, "A", "T")),
        (2, "GG", "G", (1, "GG", "G")),  # nothing stands before: the base after is kept
        (1, "G", "TTG", (1, "G", "TTG")),
        (12, "T", "TT", (10, "C", "CT")),
        (4, "CAC", "GTGA", (4, "CAC", "GTGA")),
        (4, "cac", "ctc", (5, "A", "T")),
        (4, "CAC", "CAC", (4, "C", "C")),
    ],
)
def test_normal_forms_by_hand(pos: int, ref: str, alt: str, expected: tuple[int, str, str]) -> None:
    normal = normalise(Variant("c", pos, ref, alt), _fetch("GGGCACACACTT"))
    assert (normal.pos, normal.ref, normal.alt) == expected


def test_a_whole_contig_but_one_base_can_be_deleted() -> None:
    normal = normalise(Variant("c", 1, "ACGT", "T"), _fetch("ACGT"))
    assert (normal.pos, normal.ref, normal.alt) == (1, "ACGT", "T")
    assert edit_of(normal) == Edit(0, 3, b"")


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_all_spellings_of_a_variant_give_the_same_edit(data: st.DataObject) -> None:
    unit = data.draw(st.text("ACGT", min_size=1, max_size=4))
    genome = (
        data.draw(st.text("ACGT", max_size=6))
        + unit * data.draw(st.integers(1, 12))
        + data.draw(st.text("AC", max_size=6))
    )
    start = data.draw(st.integers(0, len(genome)))
    end = data.draw(st.integers(start, min(len(genome), start + 6)))
    alt = data.draw(st.text("ACGT", max_size=5) | st.just(unit))
    mutated = genome[:start] + alt + genome[end:]
    if mutated == genome or not mutated:
        return
    growth = len(mutated) - len(genome)

    edits = set()
    for first in range(len(genome)):
        if genome[:first] != mutated[:first]:
            break
        for last in range(first + 1, len(genome) + 1):
            if genome[last:] == mutated[last + growth :] and last + growth > first:
                spelling = Variant(
                    "c", first + 1, genome[first:last], mutated[first : last + growth]
                )
                normal = normalise(spelling, _fetch(genome))
                assert normalise(normal, _fetch(genome)) == normal
                edits.add(edit_of(normal))
    assert len(edits) == 1
    edit = edits.pop()
    assert genome[: edit.start] + edit.alt.decode() + genome[edit.end :] == mutated
    assert edit.growth == growth


@given(st.text("AC", min_size=1, max_size=40), st.data())
@settings(max_examples=300, deadline=None)
def test_alignment_reaches_the_first_and_last_equivalent_place(
    genome: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(genome)))
    end = data.draw(st.integers(start, len(genome)))
    unit = data.draw(st.text("AC", min_size=1, max_size=4)) if start == end else ""
    mutated = genome[:start] + unit + genome[end:]
    size = end - start
    places = [
        place
        for place in range(len(genome) - size + 1)
        for inserted in [mutated[place : place + len(unit)]]
        if genome[:place] + inserted + genome[place + size :] == mutated
    ]
    edit = Edit(start, end, unit.encode())
    leftmost = left_align(edit, _fetch(genome))
    rightmost = right_align(edit, _fetch(genome), len(genome))
    assert (leftmost.start, rightmost.start) == (min(places), max(places))
    for moved in (leftmost, rightmost):
        assert genome[: moved.start] + moved.alt.decode() + genome[moved.end :] == mutated


def test_alignment_crosses_long_runs_in_few_reads() -> None:
    genome = "C" + "A" * 3_000_000 + "G"
    reads = []

    def fetch(start: int, end: int) -> bytes:
        reads.append((start, end))
        return genome[start:end].encode()

    edit = Edit(2_000_000, 2_000_001, b"")
    assert left_align(edit, fetch) == Edit(1, 2, b"")
    assert right_align(edit, fetch, len(genome)) == Edit(3_000_000, 3_000_001, b"")
    assert len(reads) < 40


# --- kinds, names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "alt", "kind", "indel_len"),
    [
        ("A", "T", "snv", 0),
        ("CAT", "CGT", "snv", 0),
        ("CAT", "CGG", "mnv", 0),
        ("A", "AT", "ins", 1),
        ("CA", "CTTA", "ins", 2),
        ("AT", "A", "del", -1),
        ("AT", "G", "delins", -1),
        ("A", "GC", "delins", 1),
        ("A", "A", "snv", 0),
    ],
)
def test_kinds(ref: str, alt: str, kind: str, indel_len: int) -> None:
    variant = Variant("1", 10, ref, alt)
    assert (variant.kind, variant.indel_len) == (kind, indel_len)


def test_coordinates_and_key() -> None:
    variant = Variant("chr2", 10, "ac", "t")
    assert (variant.start, variant.end) == (9, 11)
    # As gnomAD writes it: without chr, the mitochondrion as M; other names stay as they are.
    assert variant.key == "2-10-AC-T"
    assert Variant("chrMT", 3, "A", "G").key == Variant("MT", 3, "A", "G").key == "M-3-A-G"
    assert Variant("chromosome_1", 3, "A", "G").key == "chromosome_1-3-A-G"
    assert variant == Variant("chr2", 10, "AC", "T")


@pytest.mark.parametrize(
    ("pos", "ref", "alt"),
    [(0, "A", "C"), (-1, "A", "C"), (1, "", "C"), (1, "A", ""), (1, "A", "<DEL>"), (1, "R", "A")],
)
def test_what_is_no_variant(pos: int, ref: str, alt: str) -> None:
    with pytest.raises(EvoDataError) as caught:
        Variant("1", pos, ref, alt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pos", "ref", "alt", "plain", "shifted"),
    [
        # genome: GGGCACACACTTG
        (4, "C", "T", "g.4C>T", "g.4C>T"),
        (3, "GCA", "GTA", "g.4C>T", "g.4C>T"),
        (3, "GCA", "G", "g.4_5del", "g.9_10del"),  # the rightmost CA, read as AC
        (1, "GG", "G", "g.1del", "g.3del"),
        (3, "G", "GCA", "g.3_4insCA", "g.9_10dup"),
        (11, "T", "TT", "g.10_11insT", "g.12dup"),
        (1, "G", "GGGG", "g.1delinsGGGG", "g.1_3dup"),
        (10, "C", "CTTT", "g.10_11insTTT", "g.12_13insTTT"),
        (4, "C", "CGG", "g.4_5insGG", "g.4_5insGG"),
        (4, "CA", "TG", "g.4_5delinsTG", "g.4_5delinsTG"),
        (4, "CA", "G", "g.4_5delinsG", "g.4_5delinsG"),
        (4, "C", "TG", "g.4delinsTG", "g.4delinsTG"),
        (1, "G", "AG", "g.1delinsAG", "g.1delinsAG"),  # HGVS has no place before base 1
        (13, "G", "GA", "g.13_14insA", "g.13delinsGA"),  # nor behind the last one
        (4, "C", "C", "g.4=", "g.4="),
    ],
)
def test_hgvs_by_hand(pos: int, ref: str, alt: str, plain: str, shifted: str) -> None:
    genome = "GGGCACACACTTG"
    variant = Variant("c", pos, ref, alt)
    assert genome[variant.start : variant.end] == ref
    assert variant.hgvs_g == f"c:{plain}"
    assert hgvs_g(variant, _fetch(genome), len(genome)) == f"c:{shifted}"


def test_hgvs_needs_both_or_neither() -> None:
    with pytest.raises(EvoDataError, match="together"):
        hgvs_g(Variant("c", 1, "A", "C"), _fetch("A"))


# --- alleles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "alt", "status"),
    [
        ("A", "T", "ok"),
        ("a", "t", "ok"),
        ("N", "A", "ok"),
        ("A", "ACGTN", "ok"),
        ("A", "*", "star"),
        ("A", ".", "missing_alt"),
        ("A", None, "missing_alt"),
        ("A", "<DEL>", "symbolic"),
        ("A", "<NON_REF>", "symbolic"),
        ("A", "<*>", "symbolic"),
        ("A", "<DUP:TANDEM>", "symbolic"),
        ("A", "<INS>BLAH>", "malformed"),
        ("A", "<>", "malformed"),
        ("A", "<DEL", "malformed"),
        ("G", "G]17:198982]", "breakend"),
        ("G", "]13:123456]T", "breakend"),
        ("G", "G[<ctg1>:7[", "breakend"),
        ("G", "[chr2:321682[N", "breakend"),
        ("G", ".[13:123457[", "breakend"),
        ("G", "]13:123456].", "breakend"),
        ("G", ".A", "breakend"),
        ("G", "GA.", "breakend"),
        ("G", "[1:100[", "malformed"),
        ("G", "G[1:100]", "malformed"),
        ("G", "G[1[", "malformed"),
        ("G", "..", "malformed"),
        ("A", "R", "non_acgtn"),
        ("A", "ACGU", "non_acgtn"),
        ("R", "A", "non_acgtn"),
        ("R", "<DEL>", "symbolic"),
        ("A", "", "malformed"),
        ("A", "A T", "malformed"),
        ("A", "-", "malformed"),
        ("A", "A*", "malformed"),
        ("A", "DEL", "malformed"),
        ("A", "0", "malformed"),
        ("A", "A\r", "malformed"),
        ("A", "T\n", "malformed"),
        ("A", "Å", "malformed"),
        ("", "A", "malformed"),
        (".", "A", "malformed"),
        ("C,A", "T", "malformed"),
        ("<DEL>", "<DEL>", "malformed"),
        ("A" * 11, "A", "too_long"),
        ("A", "A" * 11, "too_long"),
        ("A" * 10, "A", "ok"),
    ],
)
def test_classes_of_alleles(ref: str, alt: str | None, status: str) -> None:
    assert classify_allele(ref, alt, max_allele=10) == status


@given(st.text(max_size=6), st.text(max_size=6))
def test_only_bases_are_ok_and_make_a_variant(ref: str, alt: str) -> None:
    status = classify_allele(ref, alt, max_allele=100)
    plain = bool(ref and alt) and set((ref + alt).upper()) <= set("ACGTN") and (ref + alt).isascii()
    assert (status == AlleleStatus.OK) == plain
    if plain:
        Variant("c", 1, ref, alt)


@pytest.mark.parametrize(
    ("pos", "ref", "alt", "status"),
    [
        # genome: ACGTACGT
        (2, "C", "T", "ok"),
        (2, "CGT", "C", "ok"),
        (2, "T", "C", "swapped"),
        (2, "CA", "CGT", "swapped"),
        (2, "T", "G", "ref_mismatch"),
        (8, "T", "TA", "ok"),
        (8, "TA", "T", "out_of_range"),
        (9, "A", "C", "out_of_range"),
        (8, "A", "TT", "ref_mismatch"),
        (2, "N", "C", "swapped"),
    ],
)
def test_reference_alleles(pos: int, ref: str, alt: str, status: str) -> None:
    genome = "ACGTACGT"
    variant = Variant("c", pos, ref, alt)
    assert check_reference(variant, _fetch(genome), len(genome)) == status
