"""Reused prefixes: the same scores as whole windows, with fewer tokens, whatever runs beside them."""

from __future__ import annotations

import random
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from evo_data.demo_data import demo_file
from evo_data.fasta import Fasta
from evo_data.vcf import VariantReader, VcfRecord
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import UsageError
from evo_toolkit.inference.runner import LogProbRunner
from evo_toolkit.model.state import AttentionState
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.read_plan import Prefix
from evo_toolkit.variants.reuse import ReusedPrefixes, _Waiting, window_runner
from evo_toolkit.variants.score import VariantScorer
from evo_toolkit.variants.scores import AlleleScore
from evo_toolkit.variants.whole_windows import WholeWindows
from evo_toolkit.variants.window_runner import LogProbPair, TokenCount, WindowGroup, WindowRunner

HEADER = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
WINDOW = 128
# Sums of float32 values over a window, read in pieces of other lengths.
NATS = 1e-4


@pytest.fixture(scope="module")
def evo_mini() -> StripedHyena2:
    return load_model("evo-mini", device="cpu", precision="exact")


@pytest.fixture(scope="module")
def fused_mini() -> StripedHyena2:
    """The same through the operators that a user gets."""
    return load_model("evo-mini", device="cpu")


def sequence(length: int = 1500, seed: int = 0) -> str:
    rng = random.Random(seed)
    bases = "".join(rng.choices("ACGT", k=length))
    # Repeats, in which an indel parts the alleles far from where it is written.
    return bases[:700] + "ACACACACACAC" + bases[712:900] + "T" * 12 + bases[912:]


def variants(bases: str) -> list[tuple[int, str, str]]:
    """SNVs alone and together, insertions and deletions, in repeats and at the contig's ends."""

    def other(pos: int, shift: int = 1) -> str:
        return "ACGT"[("ACGT".index(bases[pos - 1]) + shift) % 4]

    rows = [(p, bases[p - 1], other(p)) for p in (1, 30, 400, 401, 650, 1100, 1480, 1500)]
    rows += [(420, bases[419], ",".join(other(420, s) for s in (1, 2, 3)))]
    rows += [(500, bases[499:503], f"{bases[499]},{bases[499:503]}GG,{other(500)}{bases[500:503]}")]
    rows += [(700, bases[699], bases[699] + "AC"), (900, bases[899:902], bases[899])]
    rows += [(900, bases[899], bases[899] + "T"), (1200, bases[1199:1203], "ACGTACGT")]
    rows += [(1490, bases[1489:1492], bases[1489]), (1498, bases[1497], bases[1497] + "GAT")]
    return sorted(rows)


class Case:
    """A genome, variants of it, and scores under any runner."""

    def __init__(self, folder: Path, bases: str) -> None:
        self.bases = bases
        (folder / "g.fa").write_text(f">c\n{bases}\n")
        self.genome = Fasta(folder / "g.fa")
        self.path = folder / "v.vcf"

    def records(self, rows: Sequence[tuple[int, str, str]]) -> list[VcfRecord]:
        self.path.write_text(
            HEADER + "".join(f"c\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.\n" for pos, ref, alt in rows)
        )
        with VariantReader(self.path) as reader:
            return list(reader)

    def score(
        self, runner: WindowRunner, rows: Sequence[tuple[int, str, str]]
    ) -> dict[tuple[int, str, str], AlleleScore]:
        scorer = VariantScorer(runner, self.genome, {"c": "c"})
        return {
            (scored.record.pos, scored.record.ref, allele.alt): allele
            for scored in scorer.score(self.records(rows))
            for allele in scored.alleles
        }


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, sequence())


VALUES = ("dll", "dll_fwd", "dll_rc", "llr", "dll_allele", "ll_ref", "ll_alt")


@pytest.mark.parametrize("rows", [None, 3])
def test_scores_equal_those_of_whole_windows(
    case: Case, evo_mini: StripedHyena2, rows: int | None
) -> None:
    alleles = variants(case.bases)
    whole = case.score(WholeWindows(LogProbRunner(evo_mini, WINDOW)), alleles)
    reused = case.score(ReusedPrefixes(evo_mini, WINDOW, rows=rows), alleles)
    assert len(whole) == len(reused) == 20
    for key, expected in whole.items():
        found = reused[key]
        assert (found.status, found.flags) == (expected.status, expected.flags) and expected.dll
        for name in VALUES:
            value = getattr(expected, name)
            assert getattr(found, name) == (value if value is None else pytest.approx(value, abs=NATS)), (key, name)  # fmt: skip


@pytest.mark.parametrize("step", [1, 16])
def test_every_log_probability_equals_that_of_the_whole_window(
    evo_mini: StripedHyena2, step: int
) -> None:
    rng = np.random.default_rng(1)
    groups = []
    for fork in (1, WINDOW // 2 - 1, WINDOW // 2, WINDOW // 2 + 9, WINDOW // 2 + 40, WINDOW - 1):
        for length in (WINDOW, WINDOW - 3):
            if fork < length:
                groups.append(group(rng, length, [fork, fork]))
    groups.append(group(rng, WINDOW // 2, [10]))
    groups.append(WindowGroup(groups[0].ref, [(groups[0].ref, WINDOW)]))
    reused = ReusedPrefixes(evo_mini, WINDOW, step=step, rows=2)(groups)
    whole = WholeWindows(LogProbRunner(evo_mini, WINDOW))(groups)
    for found, expected in zip(reused, whole, strict=True):
        for one, other in zip(found, expected, strict=True):
            for x, y in zip(one[:2], other[:2], strict=True):
                np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-5)


def group(rng: np.random.Generator, length: int, forks: Sequence[int]) -> WindowGroup:
    bases = np.frombuffer(b"ACGT", dtype=np.uint8)
    ref = rng.choice(bases, length)
    alts = []
    for fork in forks:
        alt = ref.copy()
        alt[fork:] = rng.choice(bases, length - fork)
        alt[fork] = bases[(int(np.flatnonzero(bases == ref[fork])[0]) + 1) % 4]
        alts.append((alt, fork))
    return WindowGroup(ref, alts)


@pytest.mark.parametrize("mode", ["exact", "shared"])
def test_scores_do_not_depend_on_what_else_is_scored_bit_for_bit(
    case: Case, fused_mini: StripedHyena2, mode: str
) -> None:
    alleles = variants(case.bases)
    step = 1 if mode == "exact" else 8

    def runner() -> ReusedPrefixes:
        return ReusedPrefixes(fused_mini, WINDOW, step=step, rows=3)

    together = case.score(runner(), alleles)
    shuffled = random.Random(1).sample(alleles, len(alleles))
    assert case.score(runner(), shuffled) == together
    one_by_one = {}
    for pos, ref, alts in alleles[::3]:
        for alt in alts.split(","):
            one_by_one.update(case.score(runner(), [(pos, ref, alt)]))
    assert one_by_one == {key: together[key] for key in one_by_one}


def test_a_window_equal_to_its_reference_scores_exactly_zero(
    case: Case, toy_model: StripedHyena2
) -> None:
    for runner in (ReusedPrefixes(toy_model, WINDOW), ReusedPrefixes(toy_model, WINDOW, step=8)):
        (found,) = case.score(runner, [(500, case.bases[499], case.bases[499])]).values()
        assert (found.dll, found.llr, found.dll_allele) == (0.0, 0.0, 0.0)
        assert found.ll_ref == found.ll_alt


def test_alleles_that_hardly_matter_cancel_to_the_bit(evo_mini: StripedHyena2) -> None:
    """Reference and alternate take the same path, so what the variant cannot reach is equal."""
    rng = np.random.default_rng(2)
    one = group(rng, WINDOW, [WINDOW // 2])
    late = one.ref.copy()
    late[WINDOW - 2] = ord("A") if one.ref[WINDOW - 2] != ord("A") else ord("C")
    ((pair,),) = ReusedPrefixes(evo_mini, WINDOW)([WindowGroup(one.ref, [(late, WINDOW - 2)])])
    assert np.array_equal(pair.ref[1 : WINDOW - 2], pair.alt[1 : WINDOW - 2])
    assert pair.ref[WINDOW - 2] != pair.alt[WINDOW - 2]


def test_tokens_are_counted(toy_model: StripedHyena2) -> None:
    rng = np.random.default_rng(3)
    groups = [group(rng, 128, [64, 64, 64]) for _ in range(5)]
    runner = ReusedPrefixes(toy_model, 128, rows=4)
    runner(groups)
    # 5 prefixes in 2 forwards, 20 suffixes in 5.
    assert runner.count == TokenCount(5 * 64 + 20 * 64, 3 * 64, 20 * 128)
    whole = WholeWindows(LogProbRunner(toy_model, 128, rows=4))
    whole(groups[:4])
    assert whole.count == TokenCount(16 * 128, 0, 16 * 128)
    assert "1.60 times fewer" in runner.count.text()


def test_out_of_memory_restarts_the_call_with_fewer_rows(
    toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    groups = [group(rng, 128, [64, 70]) for _ in range(9)]
    expected = ReusedPrefixes(toy_model, 128, rows=2)(groups)
    hidden = StripedHyena2.hidden
    calls = 0

    def limited(self: StripedHyena2, ids: torch.Tensor, *args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if len(ids) > 2 and calls > 2:
            raise torch.OutOfMemoryError
        return hidden(self, ids, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(StripedHyena2, "hidden", limited)
    runner = ReusedPrefixes(toy_model, 128, rows=8)
    found = runner(groups)
    assert runner.shapes == ((2, 64), (2, 64), (2, 128))
    assert_same(found, expected)
    assert runner.count.tokens == 9 * 64 + 27 * 64
    monkeypatch.setattr(StripedHyena2, "hidden", lambda *_, **__: raise_out_of_memory())
    with pytest.raises(torch.OutOfMemoryError):
        runner.probe()


def raise_out_of_memory() -> None:
    raise torch.OutOfMemoryError


def assert_same(found: list[list[LogProbPair]], expected: list[list[LogProbPair]]) -> None:
    for one, other in zip(found, expected, strict=True):
        for pair, wanted in zip(one, other, strict=True):
            assert np.array_equal(pair.ref, wanted.ref, equal_nan=True)
            assert np.array_equal(pair.alt, wanted.alt, equal_nan=True)


def test_states_are_let_go_when_their_suffixes_have_been_read(
    toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    groups = [group(rng, 128, [64]) for _ in range(41)]
    # Keys of the attention layer of every state that was made, and how many lived at a time.
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    read = ReusedPrefixes._read_prefixes

    def watched(self: ReusedPrefixes, batch: Sequence[Prefix]) -> list[_Waiting]:
        waiting = read(self, batch)
        layer = waiting[0].fork[0][3]
        assert isinstance(layer, AttentionState)
        seen.append(weakref.ref(layer.k))
        alive.append(sum(one() is not None for one in seen))
        return waiting

    monkeypatch.setattr(ReusedPrefixes, "_read_prefixes", watched)
    ReusedPrefixes(toy_model, 128, rows=3)(groups)
    # Six suffixes of every three prefixes: none waits for the next ones; then with one left over.
    assert len(alive) == 14 and max(alive) == 1
    seen.clear()
    alive.clear()
    ReusedPrefixes(toy_model, 128, rows=4)([group(rng, 128, [64, 64]) for _ in range(41)])
    assert max(alive) == 1


def test_modes(toy_model: StripedHyena2) -> None:
    assert window_runner(toy_model, 256).mode == "exact"
    shared = window_runner(toy_model, 256, "shared")
    assert (shared.mode, shared.step) == ("shared", 8)
    assert window_runner(toy_model, 256, "full").mode == "full"
    with pytest.raises(UsageError, match="use one of exact, shared, tiled, full"):
        window_runner(toy_model, 256, "fast")


def test_released_rounding_reads_windows_whole(toy_model_dir: Path) -> None:
    model = load_model(toy_model_dir, device="cpu", precision="vortex")
    assert window_runner(model, 64).mode == "full"
    with pytest.raises(UsageError, match="--window-mode full"):
        window_runner(model, 64, "exact")


def test_shared_windows_take_fewer_tokens_and_stay_near(
    case: Case, evo_mini: StripedHyena2
) -> None:
    alleles = [
        (p, case.bases[p - 1], "ACGT".replace(case.bases[p - 1], "")[p % 3])
        for p in range(600, 632)
    ]
    exact, shared = window_runner(evo_mini, 256), window_runner(evo_mini, 256, "shared")
    one, other = case.score(exact, alleles), case.score(shared, alleles)
    assert shared.count.tokens < 0.75 * exact.count.tokens
    # A base more or less of context: near, and yet not the same.
    a = np.array([x.dll for x in one.values()])
    b = np.array([x.dll for x in other.values()])
    assert np.corrcoef(a, b)[0, 1] > 0.95
    assert (a != b).any()


def test_a_cut_suffix_ends_its_sums_there(case: Case, evo_mini: StripedHyena2) -> None:
    """By hand from the whole windows' log-probabilities."""
    alleles = variants(case.bases)
    cut, whole = (
        ReusedPrefixes(evo_mini, WINDOW, suffix=24, rows=2),
        window_runner(evo_mini, WINDOW),
    )
    found, expected = case.score(cut, alleles), case.score(whole, alleles)
    assert cut.shapes == ((2, 64), (2, 24), (2, 128))
    assert any(found[key].dll != pytest.approx(one.dll, abs=1e-3) for key, one in expected.items())
    rng = np.random.default_rng(6)
    for fork in (30, 64, 70, 64 + 13, 110, 127):
        one = group(rng, WINDOW, [fork])
        ((pair,),), ((other,),) = cut([one]), whole([one])
        # Near behind the middle, from the middle; else from the fork.
        stop = min(WINDOW, 64 + 24 if 64 <= fork <= 64 + 12 else fork + 24)
        assert len(pair.ref) == len(pair.alt) == stop
        np.testing.assert_allclose(pair.alt, other.alt[:stop], atol=2e-5, rtol=1e-5)
    (same,) = case.score(cut, [(500, case.bases[499], case.bases[499])]).values()
    assert (same.dll, same.llr) == (0.0, 0.0)


@pytest.mark.parametrize("suffix", [0, 100])
def test_a_suffix_needs_a_mode_that_has_one(toy_model: StripedHyena2, suffix: int) -> None:
    mode = "full" if suffix else "exact"
    with pytest.raises(UsageError, match="at least 1 base, with window mode exact or shared"):
        window_runner(toy_model, 64, mode, suffix)


class CountingWhole(WholeWindows):
    """Counts, and scores nothing."""

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        self.count.add(self.plan(groups))
        return unscored(groups)


class CountingReused(ReusedPrefixes):
    """Counts, and scores nothing."""

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        self.count.add(self.plan(groups))
        return unscored(groups)


def unscored(groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
    zeros = [np.zeros(len(group.ref), dtype=np.float32) for group in groups]
    return [[LogProbPair(z, z)] * len(g.alts) for z, g in zip(zeros, groups, strict=True)]


def test_tokens_of_a_saturated_gene(shared_dir: Path, toy_model: StripedHyena2) -> None:
    """BRCA1: 3,893 SNVs at 1,326 places, windows of 8,192, one strand."""
    folder = shared_dir / "variants" / "brca1"
    folder = shared_dir / "data" / "variants" / "brca1" if not folder.is_dir() else folder
    with VariantReader(folder / "BRCA1_SGE_Findlay2018.GRCh38.vcf.gz") as reader:
        records = list(reader)
    genome = Fasta(folder / "GRCh38_chr17.Npadded.BRCA1.fa.gz")
    runners = (
        CountingWhole(LogProbRunner(toy_model, 8192, 8)),
        CountingReused(toy_model, 8192, rows=16),
        CountingReused(toy_model, 8192, step=256, rows=16),
    )
    for runner in runners:
        contigs = {record.contig: next(iter(genome.lengths)) for record in records}
        scorer = VariantScorer(runner, genome, contigs, strands="fwd")
        assert sum(a.dll is not None for s in scorer.score(records) for a in s.alleles) == 3893
    whole, exact, shared = (runner.count for runner in runners)
    assert whole.tokens == 42_754_048
    assert whole.tokens / exact.tokens >= 1.59
    assert whole.tokens / shared.tokens >= 2.65
    # What only fills forwards up stays small beside that.
    assert exact.padding < 0.05 * exact.tokens
    assert shared.padding < 0.10 * shared.tokens


@pytest.mark.parametrize("window", [64, 100])
def test_shared_windows_equal_whole_ones_at_the_same_place(
    case: Case, evo_mini: StripedHyena2, window: int
) -> None:
    """Splits and chunks change nothing: the same windows, read whole, give the same scores."""
    alleles = variants(case.bases)
    shared = window_runner(evo_mini, window, "shared")
    whole = WholeWindows(LogProbRunner(evo_mini, window))
    whole.step = shared.step
    one, other = case.score(shared, alleles), case.score(whole, alleles)
    for key, expected in other.items():
        assert one[key].dll == pytest.approx(expected.dll, abs=NATS), key


def test_the_command_says_how_windows_were_read(toy_model_dir: Path, tmp_path: Path) -> None:
    inputs = [str(demo_file("rbcL_psbA.vcf")), str(demo_file("NC_000932.fa"))]
    out = tmp_path / "o.vcf"
    options = {
        "exact": [], "shared": ["--window-mode", "shared"], "full": ["--window-mode", "full"],
        "cut": ["--suffix", "20"],
    }  # fmt: skip
    said = {}
    for mode, more in options.items():
        done = CliRunner().invoke(
            cli, ["score", *inputs, "-m", str(toy_model_dir), "-o", str(out), "--force", *more]
        )
        assert done.exit_code == 0, done.output
        said[mode] = done.stderr
        assert f"WindowMode={mode if mode != 'cut' else 'exact'}," in out.read_text()
    assert "times fewer" in said["exact"] and "tokens through the model" in said["full"]
    assert "times fewer" not in said["full"]
    assert ",Suffix=20," in out.read_text()
    for wrong in ("half", "-3", "0"):
        done = CliRunner().invoke(
            cli, ["score", *inputs, "-m", str(toy_model_dir), "--suffix", wrong]
        )
        assert done.exit_code == 2 and "suffix" in done.stderr and "Traceback" not in done.output
