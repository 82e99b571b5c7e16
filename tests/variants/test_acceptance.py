"""What variant scoring must hold to, each with its tests (`TESTS`), and the invariances in every window mode.

A test of the table that is renamed or removed fails here.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.api import score_variants

TESTS = {
    "REF as ALT scores exactly 0": (
        "test_score.py::test_reference_as_alternate_scores_exactly_zero",
        "test_reuse.py::test_a_window_equal_to_its_reference_scores_exactly_zero",
    ),
    "all spellings of a variant score the same": (
        "test_score.py::test_all_spellings_of_a_variant_give_the_same_score",
        "test_score.py::test_padding_and_siblings_do_not_make_an_allele_too_long",
        "test_acceptance.py::test_spelling_order_siblings_case_and_strand_change_no_score",
    ),
    "split records score as joint ones": (
        "test_score.py::test_split_equals_joint_multiallelic",
        "test_acceptance.py::test_spelling_order_siblings_case_and_strand_change_no_score",
    ),
    "a batch of mixed lengths scores as each alone": (
        "test_score.py::test_batch_mates_order_and_neighbours_do_not_matter",
        "test_reuse.py::test_scores_do_not_depend_on_what_else_is_scored_bit_for_bit",
    ),
    "order does not matter": (
        "test_score.py::test_the_buffer_does_not_change_order_or_scores",
        "test_acceptance.py::test_spelling_order_siblings_case_and_strand_change_no_score",
    ),
    "variant and genome on the other strand score the same": (
        "test_score.py::test_both_strands_of_the_genome_give_the_same_score",
        "test_acceptance.py::test_spelling_order_siblings_case_and_strand_change_no_score",
    ),
    "states reused score as windows read whole": (
        "test_reuse.py::test_scores_equal_those_of_whole_windows",
        "test_reuse.py::test_every_log_probability_equals_that_of_the_whole_window",
        "test_score_methods.py::test_every_method_equals_whole_windows",
    ),
    "killed and repeated, the file is the same": (
        "test_runs.py::test_killed_anywhere_the_same_command_gives_the_same_file",
        "test_runs.py::test_kill_minus_nine_at_random_times",
    ),
    "a lower-case genome scores as an upper-case one": (
        "test_score.py::test_a_lower_case_genome_equals_upper_case",
        "test_track.py::test_case_does_not_matter_and_other_bases_have_no_value",
        "test_acceptance.py::test_spelling_order_siblings_case_and_strand_change_no_score",
    ),
    "every trap allele has a status, its siblings a score": (
        "test_score.py::test_every_trap_allele_gets_its_status_while_its_siblings_are_scored",
        "test_torture.py::test_files_of_other_tools",
    ),
    "a track sums to the sequence's log-likelihood": (
        "test_track.py::test_the_sum_of_a_strand_is_the_log_likelihood_of_its_reading",
        "test_track.py::test_the_sum_of_the_track_is_what_log_likelihood_says",
    ),
}
"""What must hold, and the tests that would notice if it did not."""

FOLDER = Path(__file__).parent
WINDOW = 64
HEADER = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
COMPLEMENT = str.maketrans("ACGT", "TGCA")
BASES = "".join(random.Random(7).choices("ACGT", k=400))
BASES = BASES[:200] + "CAG" * 6 + BASES[218:]
LENGTH = len(BASES)
# Other rows and other splits of the same sums.
NATS = 1e-4
Call = tuple[int, str, Sequence[str]]


@pytest.mark.parametrize("named", sorted({name for names in TESTS.values() for name in names}))
def test_the_tests_of_the_table_are_there(named: str) -> None:
    file, _, name = named.partition("::")
    tree = ast.parse((FOLDER / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def calls() -> list[Call]:
    """SNVs with several alternates and near each other, an MNV, indels in a repeat and out of it."""
    found: list[Call] = [
        (p, BASES[p - 1], [b for b in "ACGT" if b != BASES[p - 1]][:n])
        for p, n in ((90, 3), (91, 1), (150, 2), (240, 1))
    ]
    found.append((120, BASES[119:121], [BASES[119:121].translate(COMPLEMENT)]))
    found.append((200, BASES[199], [BASES[199] + "CAG"]))
    found.append((300, BASES[299:302], [BASES[299]]))
    return sorted(found)


def scored(
    model: StripedHyena2, folder: Path, bases: str, given: Sequence[Call], mode: str
) -> pd.DataFrame:
    genome, vcf = folder / "g.fa", folder / "v.vcf"
    genome.write_text(f">c\n{bases}\n")
    Path(f"{genome}.fai").unlink(missing_ok=True)
    rows = [f"c\t{p}\t.\t{ref}\t{','.join(alts)}\t.\t.\t.\n" for p, ref, alts in given]
    vcf.write_text(HEADER + "".join(rows))
    frame = score_variants(
        model, vcf, genome, window=WINDOW, window_mode=mode,
        methods=["marginal"] if mode == "tiled" else ["delta"],
    )  # fmt: skip
    assert set(frame["status"]) == {"ok"}
    return frame


@pytest.mark.parametrize("mode", ["exact", "shared", "tiled", "full"])
def test_spelling_order_siblings_case_and_strand_change_no_score(
    toy_model: StripedHyena2, tmp_path: Path, mode: str
) -> None:
    value = "marg" if mode == "tiled" else "dll"

    def by_key(given: Sequence[Call], bases: str = BASES) -> dict[str, float]:
        frame = scored(toy_model, tmp_path, bases, given, mode)
        return dict(zip(frame["key"], frame[value], strict=True))

    given = calls()
    expected = by_key(given)
    assert len(expected) == 10 and len(set(expected.values())) == 10
    # Padded to the left, as VCF writers do, and the repeat's insertion at its other end.
    padded = [(p - 2, BASES[p - 3 : p - 1] + ref, [BASES[p - 3 : p - 1] + alt for alt in alts]) for p, ref, alts in given]  # fmt: skip
    padded = [(218, BASES[217], [BASES[217] + "CAG"]) if p == 198 else (p, r, a) for p, r, a in padded]  # fmt: skip
    assert by_key(padded) == expected
    split = [(p, ref, [alt]) for p, ref, alts in given for alt in alts]
    assert by_key(split) == expected
    assert by_key(random.Random(3).sample(split, len(split))) == expected
    alone = [by_key([call]) for call in split]
    assert {key: value for one in alone for key, value in one.items()} == expected
    assert by_key(given, BASES.lower()) == expected

    other = BASES[::-1].translate(COMPLEMENT)

    def turned(text: str) -> str:
        return text[::-1].translate(COMPLEMENT)

    # Anchored on the base before, which on the other strand is the one behind.
    mirrored = [
        (LENGTH - (p - 1 + len(ref)), turned(BASES[p - 1 : p + len(ref)]), [turned(alt + BASES[p - 1 + len(ref)])])
        for p, ref, (alt,) in split
    ]  # fmt: skip
    frame = scored(toy_model, tmp_path, other, mirrored, mode)
    for call, one, found in zip(split, alone, frame[value], strict=True):
        assert found == pytest.approx(*one.values(), abs=NATS), call
