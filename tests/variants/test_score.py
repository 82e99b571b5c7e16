"""The scoring engine: exactness, invariances, a status for every trap allele."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from evo_data.alphabet import reverse_complement
from evo_data.fasta import Fasta
from evo_data.variant import AlleleStatus
from evo_data.vcf import VariantReader, VcfRecord
from evo_toolkit.errors import UsageError
from evo_toolkit.inference.likelihood import token_log_probs
from evo_toolkit.inference.runner import LogProbRunner
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.reuse import ReusedPrefixes
from evo_toolkit.variants.score import VariantScorer
from evo_toolkit.variants.scores import AlleleScore, ScoredRecord
from evo_toolkit.variants.whole_windows import WholeWindows
from evo_toolkit.variants.window_runner import WindowRunner

HEADER = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
LENGTH = 2000


def bases(length: int = LENGTH, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=length))


def write_genome(folder: Path, sequence: str, name: str = "g.fa", contig: str = "c") -> Path:
    path = folder / name
    path.write_text(
        f">{contig}\n" + "\n".join(sequence[i : i + 60] for i in range(0, len(sequence), 60)) + "\n"
    )
    return path


def records(
    folder: Path, rows: Iterable[tuple[int, str, str]], contig: str = "c"
) -> list[VcfRecord]:
    path = folder / "v.vcf"
    path.write_text(
        HEADER + "".join(f"{contig}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.\n" for pos, ref, alt in rows)
    )
    with VariantReader(path) as reader:
        return list(reader)


class Setting:
    """A genome and a model to score against."""

    def __init__(self, folder: Path, model: StripedHyena2, sequence: str | None = None) -> None:
        self.folder, self.model, self.whole = folder, model, False
        self.sequence = bases() if sequence is None else sequence
        self.genome = Fasta(write_genome(folder, self.sequence))

    def score(
        self,
        rows: Iterable[tuple[int, str, str]],
        *,
        window: int = 64,
        strands: str = "both",
        batch: int | None = None,
    ) -> list[ScoredRecord]:
        runner: WindowRunner = ReusedPrefixes(self.model, window, rows=batch)
        if self.whole:
            runner = WholeWindows(LogProbRunner(self.model, window, batch))
        scorer = VariantScorer(runner, self.genome, {"c": "c"}, strands=strands)
        return list(scorer.score(records(self.folder, rows)))

    def alleles(self, rows: Iterable[tuple[int, str, str]], **options: object) -> list[AlleleScore]:
        return [a for scored in self.score(rows, **options) for a in scored.alleles]  # type: ignore[arg-type]

    def snv(self, pos: int, shift: int = 1) -> tuple[int, str, str]:
        ref = self.sequence[pos - 1]
        return pos, ref, "ACGT"[("ACGT".index(ref) + shift) % 4]


@pytest.fixture(params=["full", "exact"])
def setting(request: pytest.FixtureRequest, tmp_path: Path, toy_model: StripedHyena2) -> Setting:
    found = Setting(tmp_path, toy_model)
    found.whole = request.param == "full"
    return found


def test_score_equals_its_formula_computed_apart(setting: Setting) -> None:
    pos, ref, alt = setting.snv(1000)
    (found,) = setting.alleles([(pos, ref, alt)], window=100)
    start = pos - 1 - 50
    window = setting.sequence[start : start + 100]
    changed = window[:50] + alt + window[51:]
    deltas, ratios = [], []
    for strand in (0, 1):
        # Each strand is centred in its own reading direction: index 50 on either.
        shifted = setting.sequence[start + strand : start + strand + 100]
        changed = shifted[: 50 - strand] + alt + shifted[51 - strand :]
        pair = [shifted.encode(), changed.encode()]
        if strand:
            pair = [reverse_complement(p) for p in pair]
        tokens = torch.tensor([list(p) for p in pair])
        with torch.no_grad():
            log_probs = setting.model(tokens)[:, :-1].double().log_softmax(-1)
        per_token = log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
        deltas.append(float(per_token[1, 49:].sum() - per_token[0, 49:].sum()))
        ratios.append(float(per_token[1, 49] - per_token[0, 49]))
    assert found.dll_fwd == pytest.approx(deltas[0], abs=1e-4)
    assert found.dll_rc == pytest.approx(deltas[1], abs=1e-4)
    assert found.dll == pytest.approx(sum(deltas) / 2, abs=1e-4)
    assert found.dmean == pytest.approx(sum(deltas) / 2 / 99, abs=1e-6)
    assert found.llr == pytest.approx(sum(ratios) / 2, abs=1e-5)
    assert found.dll_allele == pytest.approx(found.llr)
    assert found.dll_allele is not None and found.dll_flank is not None
    assert found.dll_allele + found.dll_flank == pytest.approx(found.dll)
    assert found.ll_alt is not None and found.ll_ref is not None
    assert found.ll_alt - found.ll_ref == pytest.approx(found.dll, abs=1e-3)


def test_the_sign_is_that_of_the_alternate(tmp_path: Path, toy_model: StripedHyena2) -> None:
    """A model that always expects A finds an A more likely than anything else."""
    model = StripedHyena2(toy_model.config, policy=toy_model.policy, generator_seed=0).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.out_projection.weight.zero_()
            block.mlp.l3.weight.zero_()
        model.embedding.weight.zero_()
        model.embedding.weight[:, 0] = 1.0
        model.embedding.weight[ord("A"), 0] = 3.0
    setting = Setting(tmp_path, model, "C" * 500)
    (found,) = setting.alleles([(250, "C", "A")])
    # The norm makes every input sqrt(D) = 4 in channel 0: the logit of A is 12, any other 4, so
    # C>A gains 8 on "+" and G>T nothing on "-".
    assert found.llr == pytest.approx((8 + 0) / 2, rel=1e-4)
    (back,) = Setting(tmp_path, model, "A" * 500).alleles([(250, "A", "C")], strands="fwd")
    assert back.dll is not None and back.dll < 0


def test_reference_as_alternate_scores_exactly_zero(setting: Setting) -> None:
    rows = [
        (p, setting.sequence[p - 1 : p - 1 + n], setting.sequence[p - 1 : p - 1 + n])
        for p, n in ((500, 1), (700, 3))
    ]
    for found in setting.alleles(rows):
        assert (found.dll, found.dmean, found.llr, found.dll_allele) == (0.0, 0.0, 0.0, 0.0)


def test_all_spellings_of_a_variant_give_the_same_score(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    sequence = bases(600) + "CAAAAAAG" + bases(600, 1)
    setting = Setting(tmp_path, toy_model, sequence)
    at = 600  # 0-based index of the C
    spellings = [
        (at + 1, "CA", "C"),
        (at + 1, "CAAAAAAG", "CAAAAAG"),
        (at + 4, "AA", "A"),
        (at + 7, "AG", "G"),
        (at, sequence[at - 1] + "CAA", sequence[at - 1] + "CA"),
    ]
    found = setting.alleles(spellings)
    assert {f.dll for f in found} == {found[0].dll}
    assert {f.key for f in found} == {f"c-{at + 1}-CA-C"}
    padded = setting.alleles(
        [(at + 1, "C", "T"), (at, sequence[at - 1] + "CA", sequence[at - 1] + "TA")]
    )
    assert padded[0].dll == padded[1].dll and padded[0].kind == "snv"


def test_padding_and_siblings_do_not_make_an_allele_too_long(setting: Setting) -> None:
    (plain,) = setting.alleles([setting.snv(500)])
    ref = setting.sequence[499:599]
    alt = setting.snv(500)[2] + ref[1:]
    padded, deletion = setting.alleles([(500, ref, f"{alt},{ref[0]}")])
    assert padded.dll == plain.dll
    assert deletion.status is AlleleStatus.TOO_LONG


def test_a_strand_that_cannot_tell_the_alleles_apart_is_left_out(setting: Setting) -> None:
    ref = setting.sequence[-9:]
    (found,) = setting.alleles([(LENGTH - 8, ref, ref[0])])
    assert found.status is AlleleStatus.OK and "one_strand" in found.flags
    assert found.dll_fwd is None and found.dll == found.dll_rc != 0.0


def test_batch_mates_order_and_neighbours_do_not_matter(setting: Setting) -> None:
    rows = [setting.snv(p, shift) for p in range(100, 1900, 37) for shift in (1, 2)]
    rows += [
        (p, setting.sequence[p - 1 : p + 3], setting.sequence[p - 1]) for p in range(300, 1500, 111)
    ]
    together = {(f.key): f.dll for f in setting.alleles(rows)}
    random.Random(1).shuffle(rows)
    assert {f.key: f.dll for f in setting.alleles(rows)} == together
    for row in rows[:5]:
        (alone,) = setting.alleles([row])
        assert alone.dll == together[alone.key]
    assert {f.key: f.dll for f in setting.alleles(rows[:40])} == {
        f.key: together[f.key] for f in setting.alleles(rows[:40])
    }


def test_a_lower_case_genome_equals_upper_case(tmp_path: Path, toy_model: StripedHyena2) -> None:
    sequence = bases()
    upper = Setting(tmp_path, toy_model, sequence)
    (tmp_path / "low").mkdir()
    lower = Setting(tmp_path / "low", toy_model, sequence.lower())
    rows = [upper.snv(p) for p in (40, 500, 1500)]
    low_rows = [(p, r.lower(), a.lower()) for p, r, a in rows]
    expected = [f.dll for f in upper.alleles(rows)]
    assert [f.dll for f in lower.alleles(rows)] == expected
    assert [f.dll for f in upper.alleles(low_rows)] == expected


def test_split_equals_joint_multiallelic(setting: Setting) -> None:
    ref = setting.sequence[799]
    others = [b for b in "ACGT" if b != ref]
    joint = setting.alleles([(800, ref, ",".join([*others, ref + "TT"]))])
    split = setting.alleles([(800, ref, alt) for alt in [*others, ref + "TT"]])
    assert [f.dll for f in joint] == [f.dll for f in split]


def test_both_strands_of_the_genome_give_the_same_score(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    sequence = bases()
    forward = Setting(tmp_path, toy_model, sequence)
    (tmp_path / "rc").mkdir()
    backward = Setting(tmp_path / "rc", toy_model, reverse_complement(sequence.encode()).decode())
    row = forward.snv(900)
    mirrored = (LENGTH - 900 + 1, *(reverse_complement(b.encode()).decode() for b in row[1:]))
    for window in (64, 65):
        (one,), (two,) = (
            forward.alleles([row], window=window),
            backward.alleles([mirrored], window=window),
        )
        assert (one.dll_fwd, one.dll_rc) == (two.dll_rc, two.dll_fwd)


@pytest.mark.parametrize("window", [64, 65, 100])
def test_indels_compare_windows_of_equal_length(setting: Setting, window: int) -> None:
    ref = setting.sequence[999:1003]
    deletion, insertion = setting.alleles(
        [(1000, ref, ref[0]), (1000, ref[0], ref[0] + "GGTTA")], window=window
    )
    for found, kind, change in ((deletion, "del", -3), (insertion, "ins", 5)):
        assert found.status is AlleleStatus.OK
        assert (found.kind, found.indel_len, found.window) == (kind, change, window)
        assert found.dmean == pytest.approx(found.dll / (window - 1))  # type: ignore[operator]


def test_every_trap_allele_gets_its_status_while_its_siblings_are_scored(setting: Setting) -> None:
    ref = setting.sequence[499]
    good = next(b for b in "ACGT" if b != ref)
    traps = {
        "<DEL>": AlleleStatus.SYMBOLIC, "<NON_REF>": AlleleStatus.SYMBOLIC, "*": AlleleStatus.STAR,
        f"{ref}[c:9[": AlleleStatus.BREAKEND, "]c:9]" + ref: AlleleStatus.BREAKEND,
        "." + ref: AlleleStatus.BREAKEND, "R": AlleleStatus.NON_ACGTN, "A1": AlleleStatus.MALFORMED,
        ref + "A" * 40: AlleleStatus.TOO_LONG,
    }  # fmt: skip
    (scored,) = setting.score([(500, ref, ",".join([good, *traps, good.lower()]))])
    first, *middle, last = scored.alleles
    assert first.status is AlleleStatus.OK and first.dll == last.dll
    assert [a.status for a in middle] == list(traps.values())
    assert all(a.dll is None for a in middle)
    # Only what has a sequence has a name; the last trap is merely too long.
    assert [a.key is None for a in middle] == [True] * 8 + [False]

    wrong = next(b for b in "ACGT" if b not in (ref, good))
    rows = [
        (500, wrong, good),
        (500, good, ref),
        (500, ref, "."),
        (LENGTH, setting.sequence[-1] + "A", "A"),
        (0, "A", "C"),
    ]
    found = [a.status for a in setting.alleles(rows)]
    assert found == [
        AlleleStatus.REF_MISMATCH, AlleleStatus.SWAPPED, AlleleStatus.MISSING_ALT,
        AlleleStatus.OUT_OF_RANGE, AlleleStatus.OUT_OF_RANGE,
    ]  # fmt: skip
    scorer = VariantScorer(ReusedPrefixes(setting.model, 64), setting.genome, {})
    (unknown,) = scorer.score(records(setting.folder, [setting.snv(500)]))
    assert unknown.alleles[0].status is AlleleStatus.CONTIG_UNKNOWN


def test_contig_ends_shift_the_window_and_short_contigs_clip_it(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    setting = Setting(tmp_path, toy_model, bases(200))
    start, middle, end = setting.alleles([setting.snv(1), setting.snv(100), setting.snv(200)])
    assert start.flags == end.flags == ("window_shifted",) and middle.flags == ()
    assert (start.window_start, start.window_end) == (0, 64)
    assert (end.window_start, end.window_end) == (136, 200)
    assert start.llr is not None  # the reverse strand predicts the first base
    clipped, *_ = setting.alleles([setting.snv(100)], window=512)
    assert clipped.flags == ("window_clipped",) and clipped.window == 200
    (tmp_path / "tiny").mkdir()
    (short,) = Setting(tmp_path / "tiny", toy_model, bases(20)).alleles(
        [(5, bases(20)[4], "A" if bases(20)[4] != "A" else "C")]
    )
    assert short.status is AlleleStatus.CONTIG_SHORT and short.dll is None


def test_a_deletion_near_the_end_still_compares_equal_lengths(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    setting = Setting(tmp_path, toy_model, bases(200))
    ref = setting.sequence[189:196]
    (found,) = setting.alleles([(190, ref, ref[0])])
    assert found.status is AlleleStatus.OK and found.window == 64


def test_one_strand_can_be_asked_for(setting: Setting) -> None:
    row = setting.snv(500)
    both, fwd, rc = (setting.alleles([row], strands=s)[0] for s in ("both", "fwd", "rc"))
    assert (both.dll_fwd, both.dll_rc) == (fwd.dll, rc.dll)
    assert fwd.dll_rc is None and rc.dll_fwd is None
    with pytest.raises(UsageError, match="use one of both, fwd, rc"):
        setting.alleles([row], strands="+")


def test_ns_are_counted_and_flagged(tmp_path: Path, toy_model: StripedHyena2) -> None:
    sequence = bases(300)
    sequence = sequence[:160] + "NNR" + sequence[163:]
    (found,) = Setting(tmp_path, toy_model, sequence).alleles(
        [(150, sequence[149], "A" if sequence[149] != "A" else "G")]
    )
    assert found.flags == ("n_in_window",) and found.n_in_window == 3


def test_reference_bits_are_the_mean_over_distinct_reference_windows(setting: Setting) -> None:
    runner = ReusedPrefixes(setting.model, 64)
    scorer = VariantScorer(runner, setting.genome, {"c": "c"}, strands="fwd")
    rows = [setting.snv(500), setting.snv(500, 2)]
    list(scorer.score(records(setting.folder, rows)))
    tokens = np.frombuffer(setting.sequence[467:531].encode(), dtype=np.uint8)
    (log_probs,) = token_log_probs(setting.model, [tokens])
    expected = -log_probs[1:].astype(np.float64).mean() / np.log(2)
    assert scorer.reference_bits.bits_per_base == pytest.approx(expected, rel=1e-6)
    _, counts = np.unique(tokens[1:], return_counts=True)
    shares = counts / 63
    composition = -(shares * np.log2(shares)).sum()
    assert scorer.reference_bits.composition_bits == pytest.approx(composition)


def test_damaged_weights_give_a_status_and_no_score(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    model = StripedHyena2(toy_model.config, policy=toy_model.policy, generator_seed=0).eval()
    with torch.no_grad():
        model.norm.scale[0] = float("nan")
    (found,) = Setting(tmp_path, model).alleles([Setting(tmp_path, model).snv(500)])
    assert found.status is AlleleStatus.NOT_FINITE
    assert found.dll is None and found.llr is None and found.key is not None


def test_records_without_a_score_do_not_pile_up_behind_one_with(setting: Setting) -> None:
    row = setting.snv(500)
    rows = records(setting.folder, [row, *[(600, "A", "<DEL>")] * 40_000])
    seen = 0

    def counted() -> Iterable[VcfRecord]:
        nonlocal seen
        for record in rows:
            seen += 1
            yield record

    scorer = VariantScorer(ReusedPrefixes(setting.model, 64), setting.genome, {"c": "c"})
    first = next(iter(scorer.score(counted())))
    assert first.alleles[0].status is AlleleStatus.OK
    assert seen < 17_000  # four buffers: one scored, one waiting, one in hand, one begun


def test_the_buffer_does_not_change_order_or_scores(setting: Setting) -> None:
    rows = [setting.snv(p) for p in range(50, 1950, 19)]
    many = setting.score(rows)
    few = setting.score(rows, batch=1)
    assert [s.record.pos for s in few] == [r[0] for r in rows] == [s.record.pos for s in many]
    for one, two in zip(few, many, strict=True):
        assert one.alleles[0].dll == pytest.approx(two.alleles[0].dll, abs=1e-4)
