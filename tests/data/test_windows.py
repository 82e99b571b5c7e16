"""Windows against slices of the genome and of the genome with the variant in it."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evo_data.errors import ContigError, EvoDataError
from evo_data.fasta import Fasta
from evo_data.variant import (
    Edit,
    Fetch,
    Variant,
    check_reference,
    classify_allele,
    edit_of,
    hgvs_g,
    normalise,
)
from evo_data.vcf import VariantReader
from evo_data.windows import StrandWindow, variant_windows

COMPLEMENT = str.maketrans("ACGTN", "TGCAN")


def _fetch(genome: str) -> Fetch:
    def fetch(start: int, end: int) -> bytes:
        assert 0 <= start <= end <= len(genome)
        return genome[start:end].encode()

    return fetch


def _windows(
    genome: str, edit: Edit, window: int, strands: str = "both"
) -> tuple[list[StrandWindow], frozenset[str]]:
    return variant_windows(_fetch(genome), len(genome), edit, window, strands)


def _text(tokens: np.ndarray) -> str:
    return tokens.tobytes().decode()


def _read(genome: str, strand: str) -> str:
    """The whole contig in reading direction."""
    return genome if strand == "+" else genome.translate(COMPLEMENT)[::-1]


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Edit, int]:
    """A genome with repeats, the normal form of an edit of it, and a window."""
    unit = draw(st.text("ACGT", min_size=1, max_size=3))
    genome = (
        draw(st.text("ACGT", min_size=10, max_size=60))
        + unit * draw(st.integers(0, 12))
        + draw(st.text("ACGT", min_size=10, max_size=60))
    )
    start = draw(st.integers(0, len(genome) - 1))
    ref = genome[start : start + draw(st.integers(1, 12))]
    alt = draw(st.text("ACGT", min_size=1, max_size=12) | st.just(ref[0] + unit) | st.just(ref[0]))
    assume(alt != ref)
    variant = normalise(Variant("c", start + 1, ref, alt), _fetch(genome))
    window = draw(st.integers(2, 50))
    assume(len(genome) - len(ref) >= 32)
    return genome, edit_of(variant), window


@given(cases())
@settings(max_examples=300, deadline=None)
def test_windows_are_slices_of_the_two_genomes(case: tuple[str, Edit, int]) -> None:
    genome, edit, window = case
    mutated = genome[: edit.start] + edit.alt.decode() + genome[edit.end :]
    windows, _ = _windows(genome, edit, window)
    assert [built.strand for built in windows] == ["+", "-"]
    for built in windows:
        before, after = _read(genome, built.strand), _read(mutated, built.strand)
        width = min(window, len(before), len(after))
        first = built.start if built.strand == "+" else len(genome) - built.end
        assert built.ref.shape == built.alt.shape == (width,)
        assert built.ref.dtype == built.alt.dtype == np.uint8
        assert built.end - built.start == width
        # Both are taken from the same place, counted from where the reader comes from.
        assert _text(built.ref) == before[first : first + width]
        assert _text(built.alt) == after[first : first + width]

        assert (built.ref[: built.fork] == built.alt[: built.fork]).all()
        assert built.fork == width or built.ref[built.fork] != built.alt[built.fork]
        assert built.fork >= built.ref_allele[0] == built.alt_allele[0]


@given(cases())
@settings(max_examples=300, deadline=None)
def test_the_allele_begins_in_the_middle_unless_a_contig_end_is_near(
    case: tuple[str, Edit, int],
) -> None:
    genome, edit, window = case
    mutated = genome[: edit.start] + edit.alt.decode() + genome[edit.end :]
    windows, flags = _windows(genome, edit, window)
    num_shifted = 0
    for built in windows:
        before, after = _read(genome, built.strand), _read(mutated, built.strand)
        shortest = min(len(before), len(after))
        width = min(window, shortest)
        first = built.start if built.strand == "+" else len(genome) - built.end
        # The edit's own place: how far both genomes can be read before an equivalent spelling
        # of the edit must begin is the first place that explains the rest.
        size, num_alt = edit.end - edit.start, len(edit.alt)
        place = min(
            at
            for at in range(len(before) - size + 1)
            if before[:at] == after[:at] and before[at + size :] == after[at + num_alt :]
        )
        wanted = place - window // 2
        possible = range(shortest - width + 1)
        assert first == min(possible, key=lambda start: abs(start - wanted))
        num_shifted += first != wanted and width == window
        inside = place - first
        assert built.ref_allele == (inside, min(inside + size, width))
        assert built.alt_allele == (inside, min(inside + num_alt, width))
        if first == wanted:
            assert built.ref_allele[0] == window // 2
    assert ("window_shifted" in flags) == (num_shifted > 0)
    assert ("window_clipped" in flags) == (min(len(genome), len(mutated)) < window)


@given(cases())
@settings(max_examples=300, deadline=None)
def test_the_reverse_complemented_genome_gives_the_mirror_image(
    case: tuple[str, Edit, int],
) -> None:
    genome, edit, window = case
    mirrored = _read(genome, "-")
    length = len(genome)
    # The same change, spelled on the other strand; its own normal form lies elsewhere in repeats.
    first, last = length - edit.end, length - edit.start
    anchor = 1 if first > 0 else 0
    ref = mirrored[first - anchor : last] or mirrored[first : last + 1]
    alt = (
        mirrored[first - anchor : first]
        + _read(edit.alt.decode(), "-")
        + ("" if mirrored[first - anchor : last] else mirrored[last : last + 1])
    )
    if not alt:
        ref, alt = ref + mirrored[last], mirrored[last]
    variant = Variant("c", first - anchor + 1, ref, alt)
    other = edit_of(normalise(variant, _fetch(mirrored)))

    plus, minus = _windows(genome, edit, window)[0]
    other_windows, other_flags = _windows(mirrored, other, window)
    for built, mirror in ((plus, other_windows[1]), (minus, other_windows[0])):
        assert built.strand != mirror.strand
        assert _text(built.ref) == _text(mirror.ref)
        assert _text(built.alt) == _text(mirror.alt)
        assert (built.start, built.end) == (length - mirror.end, length - mirror.start)
        assert built.fork == mirror.fork
        assert (built.ref_allele, built.alt_allele) == (mirror.ref_allele, mirror.alt_allele)
    assert other_flags == _windows(genome, edit, window)[1]


GENOME = "".join(random.Random(3).choices("ACGT", k=200))


@pytest.mark.parametrize("window", [64, 63])
def test_a_substitution_by_hand(window: int) -> None:
    alternate = "A" if GENOME[100] != "A" else "C"
    (plus, minus), flags = _windows(GENOME, Edit(100, 101, alternate.encode()), window)
    assert flags == frozenset()
    # As many bases before the substitution in reading direction, on either strand.
    assert (plus.start, plus.end) == (100 - window // 2, 100 - window // 2 + window)
    assert (minus.start, minus.end) == (101 + window // 2 - window, 101 + window // 2)
    assert plus.fork == minus.fork == window // 2
    assert plus.ref_allele == minus.alt_allele == (window // 2, window // 2 + 1)
    assert chr(plus.ref[window // 2]) == GENOME[100]
    assert chr(plus.alt[window // 2]) == alternate
    assert chr(minus.alt[window // 2]) == alternate.translate(COMPLEMENT)
    if window % 2:
        assert (plus.start, plus.end) == (minus.start, minus.end)


def test_the_example_of_the_documentation() -> None:
    genome = "TTGACCATGCTGATCGGCAAACTGTCGGATCCATGCATTA"
    variant = normalise(Variant("ctg", 20, "AA", "A"), _fetch(genome))
    assert variant.key == "ctg-18-CA-C"
    assert hgvs_g(variant, _fetch(genome), len(genome)) == "ctg:g.21del"
    edit = edit_of(variant)
    assert edit == Edit(18, 19, b"")
    (plus, minus), flags = _windows(genome, edit, 8)
    assert not flags
    assert (plus.start, plus.end, plus.fork) == (14, 22, 6)
    assert (_text(plus.ref), _text(plus.alt)) == ("CGGCAAAC", "CGGCAACT")
    assert (minus.start, minus.end, minus.fork) == (17, 25, 6)
    assert (_text(minus.ref), _text(minus.alt)) == ("ACAGTTTG", "ACAGTTGC")
    assert plus.ref_allele == minus.ref_allele == (4, 5)
    assert plus.alt_allele == minus.alt_allele == (4, 4)


def test_an_insertion_drops_the_far_end_and_a_deletion_fills_it() -> None:
    # Neither end lets the insertion move, so that 100 is its place on both strands.
    inserted = "CGGTTGA"
    assert (GENOME[99], GENOME[100]) == ("G", "G")
    (plus, minus), _ = _windows(GENOME, Edit(100, 100, inserted.encode()), 64)
    assert (plus.start, plus.end, minus.start, minus.end) == (68, 132, 68, 132)
    assert _text(plus.ref) == GENOME[68:132]
    assert _text(plus.alt) == GENOME[68:100] + inserted + GENOME[100:125]
    assert _text(minus.alt) == _read(GENOME[75:100] + inserted + GENOME[100:132], "-")

    (plus, minus), _ = _windows(GENOME, Edit(100, 103, b""), 64)
    mutated = GENOME[:100] + GENOME[103:]
    assert _text(plus.alt) == mutated[plus.start : plus.start + 64]
    assert _text(minus.alt) == _read(mutated[minus.end - 3 - 64 : minus.end - 3], "-")


def test_a_deletion_near_the_end_finds_its_fill_by_shifting() -> None:
    (plus, minus), flags = _windows(GENOME, Edit(180, 190, b""), 64)
    assert "window_shifted" in flags
    # The shorter genome has 190 bases, so 126 is the last place where a window can begin.
    assert (plus.start, plus.end) == (126, 190)
    assert _text(plus.alt) == GENOME[126:180] + GENOME[190:200]
    assert (minus.start, minus.end) == (136, 200)


def test_without_a_base_behind_a_deletion_that_strand_sees_nothing() -> None:
    (plus, minus), _ = _windows(GENOME, Edit(190, 200, b""), 64)
    assert (plus.fork, plus.ref_allele) == (64, (64, 64))
    assert _text(plus.ref) == _text(plus.alt) == GENOME[126:190]
    assert minus.fork < 64


def test_one_strand_alone_is_the_same_as_in_both() -> None:
    edit = Edit(100, 103, b"")
    both, _ = _windows(GENOME, edit, 64)
    for strand, expected in zip("+-", both, strict=True):
        (alone,), _ = _windows(GENOME, edit, 64, strand)
        assert alone.strand == strand
        assert _text(alone.ref) == _text(expected.ref)
        assert _text(alone.alt) == _text(expected.alt)


def test_any_spelling_of_an_edit_gives_the_same_windows() -> None:
    genome = GENOME[:90] + "CACACACACA" + GENOME[100:]
    (first, second), flags = _windows(genome, Edit(90, 92, b""), 64)
    for edit in (Edit(92, 94, b""), Edit(95, 97, b""), Edit(98, 100, b"")):
        (plus, minus), same_flags = _windows(genome, edit, 64)
        for built, expected in ((plus, first), (minus, second)):
            assert (built.start, built.ref_allele) == (expected.start, expected.ref_allele)
            assert _text(built.alt) == _text(expected.alt)
        assert same_flags == flags


def test_equal_alleles_have_no_fork() -> None:
    edit = edit_of(Variant("c", 101, GENOME[100], GENOME[100]))
    (plus, minus), _ = _windows(GENOME, edit, 64)
    assert plus.fork == minus.fork == 64
    assert _text(plus.ref) == _text(plus.alt)
    assert plus.ref_allele == minus.alt_allele == (32, 33)


def test_edits_larger_than_the_window() -> None:
    (plus, minus), _ = _windows(GENOME, Edit(90, 150, b"ACGTACGTAC"), 40)
    assert plus.ref.shape == minus.alt.shape == (40,)
    assert (plus.ref_allele, plus.alt_allele) == ((20, 40), (20, 30))
    assert _text(plus.alt) == GENOME[70:90] + "ACGTACGTAC" + GENOME[150:160]
    (plus, _), _ = _windows(GENOME, Edit(100, 101, b"ACGGT" * 20), 40)
    assert (plus.ref_allele, plus.alt_allele) == ((20, 21), (20, 40))
    assert _text(plus.alt) == GENOME[80:100] + "ACGGT" * 4


def test_a_short_contig_is_the_window_itself() -> None:
    contig = GENOME[:50]
    (plus, minus), flags = _windows(contig, Edit(10, 14, b""), 64)
    assert flags == {"window_clipped"}
    assert plus.ref.shape == minus.ref.shape == (46,)
    assert _text(plus.ref) == contig[:46]
    assert _text(minus.ref) == _read(contig[4:], "-")
    assert _text(plus.alt) == _read(_text(minus.alt), "-") == contig[:10] + contig[14:]


def test_too_short_a_contig_is_refused() -> None:
    assert _windows(GENOME[:32], Edit(5, 6, b"A"), 64)[0]
    with pytest.raises(ContigError, match="32"):
        _windows(GENOME[:31], Edit(5, 6, b"A"), 64)
    with pytest.raises(ContigError, match="32"):
        _windows(GENOME[:33], Edit(5, 7, b""), 64)


def test_an_n_in_the_reference_window_is_flagged() -> None:
    genome = GENOME[:120] + "N" + GENOME[121:]
    assert _windows(genome, Edit(100, 101, b"N"), 64)[1] == {"n_in_window"}
    assert _windows(genome, Edit(100, 101, b"N"), 20)[1] == frozenset()


@pytest.mark.parametrize(
    ("edit", "window", "strands"),
    [
        (Edit(5, 6, b"A"), 1, "both"),
        (Edit(5, 6, b"A"), 64, "forward"),
        (Edit(199, 201, b"A"), 64, "both"),
    ],
)
def test_wrong_requests(edit: Edit, window: int, strands: str) -> None:
    with pytest.raises(EvoDataError) as caught:
        _windows(GENOME, edit, window, strands)
    assert "\n" not in str(caught.value)


def test_every_variant_of_a_population_panel(shared_dir: Path, tmp_path: Path) -> None:
    """29,120 alleles of the 1000 Genomes project: all agree with the genome, and quickly."""
    folder = shared_dir / "data" / "variants" / "chr20_1mb_1kgp"
    (tmp_path / "z.fa").write_bytes((folder / "z.fa").read_bytes())
    begin = time.monotonic()
    num_windows = num_unequal = 0
    with Fasta(tmp_path / "z.fa") as genome, VariantReader(folder / "z.vcf.gz") as reader:
        length = genome.lengths["z"]

        def fetch(start: int, end: int) -> bytes:
            return genome.fetch("z", start, end)

        for record in reader:
            for alt in record.alts:
                if classify_allele(record.ref, alt, max_allele=1000) != "ok":
                    continue
                variant = Variant("z", record.pos, record.ref, alt)
                assert check_reference(variant, fetch, length) == "ok"
                edit = edit_of(normalise(variant, fetch))
                windows, _ = variant_windows(fetch, length, edit, 64)
                num_windows += len(windows)
                num_unequal += sum(built.fork < 64 for built in windows)
    assert num_windows == 2 * 29_120
    # An insertion or deletion within a repeat longer than half a window parts nowhere inside it.
    assert num_unequal > 0.99 * num_windows
    # About one second on one core; a minute would be slow on any machine.
    assert time.monotonic() - begin < 60
