"""However a scoring run is cut, interrupted or spread over devices, its output is the same file."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from evo_data.contigs import ContigAliases
from evo_data.demo_data import demo_file
from evo_data.fasta import Fasta
from evo_data.variant import AlleleStatus, Variant
from evo_data.vcf import VariantReader, VcfRecord
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants import chunks as chunks_module
from evo_toolkit.variants import reuse as reuse_module
from evo_toolkit.variants import workers as workers_module
from evo_toolkit.variants.ahead import read_ahead
from evo_toolkit.variants.chunks import Chunk, ChunkScores, cut
from evo_toolkit.variants.dry_run import Forecast, forecast
from evo_toolkit.variants.resume import ChunkStore, ResumeError, differences
from evo_toolkit.variants.run import Places, ScoringRun, Workload
from evo_toolkit.variants.score import ReferenceBits
from evo_toolkit.variants.scores import AlleleScore
from evo_toolkit.variants.skipped import REASONS
from evo_toolkit.variants.summary import Summary
from evo_toolkit.variants.window_runner import TokenCount
from evo_toolkit.variants.workers import (
    ChunkScorer,
    DeviceProcesses,
    WorkerSetting,
    device_list,
    score_chunks,
)

VCF, FASTA = demo_file("rbcL_psbA.vcf"), demo_file("NC_000932.fa")
CUT = 12
"""Windows of a chunk in these tests: the input below has several chunks."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "cut", lambda records, _: cut(records, CUT))


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some records of the chloroplast, and some alleles that have no score."""
    lines = VCF.read_text().splitlines(keepends=True)
    header = [line for line in lines if line.startswith("#")]
    body = [line for line in lines if not line.startswith("#")][:14]
    contig, pos, *_ = body[3].split("\t")
    body.insert(4, f"{contig}\t{pos}\tnone\tN\t*,<DEL>,.\t.\t.\t.\n")
    body.append(f"elsewhere\t5\t.\tA\tG\t.\tPASS\t.{chr(10)}")
    path = tmp_path_factory.mktemp("input") / "some.vcf"
    path.write_text("".join(header + body))
    return path


def score(variants: Path, output: Path, model: Path, *options: object) -> Result:
    arguments = ["score", variants, FASTA, "-m", model, "-o", output, "--no-version", *options]
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def merge(output: Path, *shards: object) -> Result:
    arguments = ["score", "merge", *shards, "-o", output, "--no-version"]
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def whole(
    variants: Path, toy_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The output of an uninterrupted run of one process, by its suffix."""
    folder = tmp_path_factory.mktemp("whole")

    def made(suffix: str) -> Path:
        path = folder / f"whole.{suffix}"
        if not path.exists():
            result = score(variants, path, toy_model_dir, "--skipped", f"{path}.skipped")
            assert result.exit_code == 0, result.output
        return path

    return made


class TestChunks:
    def record(self, pos: int, alts: tuple[str, ...]) -> VcfRecord:
        line = f"c\t{pos}\t.\tA\t{','.join(alts)}\t.\t.\t."
        return VcfRecord(line.encode(), b"\n", pos, "c", pos, ".", "A", alts, (), b".")

    def test_cuts_depend_on_the_records_and_keep_their_order(self) -> None:
        records = [self.record(i, ("C", "G", "*")[: 1 + i % 3]) for i in range(1, 40)]
        found = list(cut(records, 7))
        assert [r for chunk in found for r in chunk.records] == records
        assert [chunk.number for chunk in found] == list(range(len(found)))
        for chunk in found:
            windows = sum(1 + sum(a != "*" for a in r.alts) for r in chunk.records)
            assert windows <= 7
        # The next record would not have fitted.
        for chunk, after in itertools.pairwise(found):
            windows = sum(1 + sum(a != "*" for a in r.alts) for r in chunk.records)
            assert windows + 1 + sum(a != "*" for a in after.records[0].alts) > 7

    def test_a_record_larger_than_a_chunk_stands_alone(self) -> None:
        many = self.record(2, tuple("A" * n + "C" for n in range(1, 20)))
        found = list(cut([self.record(1, ("C",)), many, self.record(3, ("C",))], 7))
        assert [len(chunk.records) for chunk in found] == [1, 1, 1]

    def test_unscored_records_do_not_pile_up(self) -> None:
        found = list(cut((self.record(i, ("<NON_REF>",)) for i in range(1, 5000)), 7))
        assert [len(chunk.records) for chunk in found] == [4096, 903]

    def test_scores_come_back_to_the_last_bit(self) -> None:
        full = AlleleScore(
            AlleleStatus.OK, "G", ("a", "b"), Variant("c", 5, "A", "G"), "c-5-A-G", "c:g.5A>G", "snv", 0,
            0.1 + 0.2, -1e-300, 1 / 3, 5e-324, -0.0, 2.5, 1e308, -7.0, 0.0, 64, 3, 67, 1,
            {"entropy": 1 / 7, "jsd": None},
        )  # fmt: skip
        counts = torch.zeros(256, dtype=torch.int64).numpy()
        counts[[65, 84]] = 3, 4
        given = ChunkScores(
            3, "d", ((full,), (AlleleScore(AlleleStatus.STAR, "*"), full)), TokenCount(5, 6, 7),
            ReferenceBits(1 / 9, 7, counts), ((4, 32), (2, 64)), ("memory ran out",),
        )  # fmt: skip
        back = ChunkScores.decoded(given.encoded())
        assert back.scores == given.scores and repr(back.scores) == repr(given.scores)
        assert (back.count, back.shapes, back.notes) == (given.count, given.shapes, given.notes)
        assert back.bits.nats == 1 / 9 and (back.bits.counts == counts).all()
        assert given.encoded() == given.encoded()

    @pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: b"x", lambda d: d[:30] + b"\0" + d[31:]])  # fmt: skip
    def test_damage_is_found(self, damage: Callable[[bytes], bytes]) -> None:
        data = ChunkScores(0, "d", ((AlleleScore(AlleleStatus.STAR, "*"),),)).encoded()
        with pytest.raises(ValueError, match="no scores of a chunk"):
            ChunkScores.decoded(damage(data))

    def test_every_status_has_a_reason(self) -> None:
        assert set(REASONS) == set(AlleleStatus) - {AlleleStatus.OK}


class OutOfOrder:
    """Workers that finish their chunks last first."""

    capacity = 3

    def __init__(self) -> None:
        self.held: list[Chunk] = []
        self.most = 0

    def submit(self, chunk: Chunk) -> None:
        self.held.append(chunk)
        self.most = max(self.most, len(self.held))

    def next(self) -> ChunkScores:
        chunk = self.held.pop()
        alleles = tuple((AlleleScore(AlleleStatus.STAR, str(r.pos)),) for r in chunk.records)
        return ChunkScores(chunk.number, chunk.digest(), alleles)


def test_chunks_come_out_in_order_whatever_the_workers_do() -> None:
    make = TestChunks().record
    source = (Chunk(i, (make(2 * i + 1, ("*",)), make(2 * i + 2, ("*",)))) for i in range(50))
    taken = 0

    def counted() -> Iterator[Chunk]:
        nonlocal taken
        for chunk in source:
            taken += 1
            yield chunk

    workers = OutOfOrder()
    yielded = 0
    for scored in score_chunks(counted(), workers):  # type: ignore[arg-type]
        yielded += 1
        assert scored.record.pos == yielded == int(scored.alleles[0].alt)
        assert taken <= 50 and 2 * taken - yielded <= 2 * 8 * 3 + 2  # what waits is bounded
    assert yielded == 100 and workers.most == 3


def bcf_parts(path: Path) -> tuple[set[bytes], bytes]:
    """Header lines with the numbers of their keys, and the records."""
    data = gzip.decompress(path.read_bytes())
    end = 9 + int.from_bytes(data[5:9], "little")
    return set(data[9:end].rstrip(b"\0").splitlines()), data[end:]


class TestReadingAhead:
    def chunks(self, number: int, taken: list[int]) -> Iterator[Chunk]:
        for i in range(number):
            taken.append(i)
            yield Chunk(i, ())
        raise OSError("the disk is gone")

    def test_order_and_errors_are_those_of_the_source(self) -> None:
        ahead = read_ahead(self.chunks(20, []))
        assert [next(ahead).number for _ in range(20)] == list(range(20))
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)

    def test_it_reads_a_little_ahead_and_ends_with_its_reader(self) -> None:
        taken: list[int] = []
        ahead = read_ahead(self.chunks(1000, taken))
        assert next(ahead).number == 0
        deadline = time.monotonic() + 10
        while len(taken) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(taken) == 4  # one taken, two waiting, one in hand
        ahead.close()  # type: ignore[attr-defined]
        assert not [thread for thread in threading.enumerate() if thread.name == "reader"]
        assert len(taken) <= 5


@pytest.mark.parametrize("suffix", ["vcf", "vcf.gz", "bcf", "tsv", "tsv.gz", "parquet"])
def test_shards_merge_to_the_file_of_one_run(
    whole: Callable[[str], Path], variants: Path, toy_model_dir: Path, tmp_path: Path, suffix: str
) -> None:
    shards = []
    for k in (3, 1, 2):
        shards.append(tmp_path / f"{k}.{suffix}")
        options = ("--shard", f"{k}/3", "--skipped", tmp_path / f"{k}.skipped")
        result = score(variants, shards[-1], toy_model_dir, *options)
        assert result.exit_code == 0, result.output
    output = tmp_path / f"joined.{suffix}"
    result = merge(output, *shards, "--skipped", tmp_path / "joined.skipped")
    assert result.exit_code == 0, result.output
    if suffix == "bcf":
        # Generic header lines may stand elsewhere, since htslib joins them.
        assert bcf_parts(output) == bcf_parts(whole(suffix))
    else:
        assert output.read_bytes() == whole(suffix).read_bytes()
    for index in (".tbi", ".csi"):
        made = Path(f"{whole(suffix)}{index}")
        assert Path(f"{output}{index}").exists() == made.exists()
    single = Path(f"{whole(suffix)}.skipped").read_bytes()
    assert (tmp_path / "joined.skipped").read_bytes() == single and single.count(b"\n") == 5
    joined = json.loads(Path(f"{output}.manifest.json").read_text())
    alone = json.loads(Path(f"{whole(suffix)}.manifest.json").read_text())
    assert joined["counts"] == alone["counts"] and joined["shard"] is None


def test_the_manifest_names_everything_that_decides_the_scores(
    variants: Path, toy_model_dir: Path, tmp_path: Path
) -> None:
    regions, output = tmp_path / "r.bed", tmp_path / "o.vcf.gz"
    regions.write_text("NC_000932.1\t0\t100000\n")
    result = score(variants, output, toy_model_dir, "-R", regions, "--window", "48")
    assert result.exit_code == 0, result.output
    found = json.loads(Path(f"{output}.manifest.json").read_text())

    def digest(path: Path, algorithm: str = "sha256") -> str:
        return hashlib.new(algorithm, path.read_bytes()).hexdigest()

    assert found["genome"]["md5"] == digest(FASTA, "md5")
    assert found["variants"]["sha256"] == digest(variants)
    assert found["model"]["sha256"] == digest(toy_model_dir / "model.safetensors")
    assert found["output"] == {"file": str(output), "sha256": digest(output), "format": "vcf.gz"}
    assert found["options"]["--regions-file"] == {"file": str(regions), "sha256": digest(regions)}
    assert found["options"]["--window"] == 48 and found["run"]["window"] == 48
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["device"] == "cpu" and found["command"] is None
    assert found["counts"]["by_status"] == {"missing_alt": 1, "ok": 34, "star": 1, "symbolic": 1}
    assert found["tokens"]["tokens"] > 0 and 0 < found["reference_bits_per_base"] < 10


def test_what_has_no_score_is_listed_with_its_reason(whole: Callable[[str], Path]) -> None:
    lines = Path(f"{whole('tsv')}.skipped").read_text().splitlines()
    assert lines[0] == "#chrom\tpos\tid\tref\talt\tstatus\treason"
    rows = [line.split("\t") for line in lines[1:]]
    assert [(row[2], row[4], row[5]) for row in rows] == [
        ("none", "*", "star"),
        ("none", "<DEL>", "symbolic"),
        ("none", ".", "missing_alt"),
        (".", "G", "contig_unknown"),
    ]
    assert all(len(row) == 7 and row[6] == REASONS[AlleleStatus(row[5])] for row in rows)


def test_files_beside_the_output_are_not_overwritten(
    variants: Path, toy_model_dir: Path, tmp_path: Path
) -> None:
    output, listed = tmp_path / "o.tsv", tmp_path / "listed"
    for path in (listed, tmp_path / "o.tsv.manifest.json"):
        path.write_text("precious")
        result = score(variants, output, toy_model_dir, "--skipped", listed)
        assert (
            result.exit_code == 1 and "--force" in result.stderr and path.read_text() == "precious"
        )
        path.unlink()
    for clash in (variants, output):
        result = score(variants, output, toy_model_dir, "--skipped", clash, "--force")
        assert result.exit_code == 2 and "would be written over" in result.stderr
    assert not list(tmp_path.iterdir())


def test_merge_says_what_does_not_belong_together(
    variants: Path, toy_model_dir: Path, tmp_path: Path
) -> None:
    one, two, other = (tmp_path / f"{n}.tsv" for n in ("one", "two", "other"))
    for path, options in (
        (one, ("--shard", "1/2")),
        (two, ("--shard", "2/2")),
        (other, ("--shard", "2/2", "--strands", "fwd")),
    ):
        assert score(variants, path, toy_model_dir, *options).exit_code == 0
    output = tmp_path / "o.tsv"
    for shards, said in (
        ((one,), "2/2 are not given"),
        ((one, two, two), "2/2 is given twice"),
        ((one, other), "--strands was both, is fwd"),
        ((one, VCF), "has no manifest"),
    ):
        result = merge(output, *shards)
        assert result.exit_code == 1 and said in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1
    result = merge(tmp_path / "o.vcf", one, two)
    assert result.exit_code == 2 and "tsv" in result.stderr
    two.write_text(two.read_text().replace("\tok\t", "\tOK\t", 1))
    result = merge(output, one, two)
    assert result.exit_code == 1 and "changed or damaged" in result.stderr
    assert not output.exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3", "1/3/5"])
def test_a_shard_that_cannot_be(
    variants: Path, toy_model_dir: Path, tmp_path: Path, text: str
) -> None:
    result = score(variants, tmp_path / "o.tsv", toy_model_dir, "--shard", text)
    assert result.exit_code == 2 and "K/N" in result.stderr


class _Killed(Exception):  # noqa: N818
    """Ends a run in the middle."""


def break_after(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let a run end when it would score its chunk of that number; the numbers it has scored."""
    scored: list[int] = []
    original = ChunkScorer.score

    def breaking(self: ChunkScorer, chunk: Chunk) -> ChunkScores:
        if len(scored) == number:
            raise _Killed
        scored.append(chunk.number)
        return original(self, chunk)

    monkeypatch.setattr(ChunkScorer, "score", breaking)
    return scored


def test_the_same_command_goes_on(
    whole: Callable[[str], Path],
    variants: Path,
    toy_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "o.tsv"
    with monkeypatch.context() as patched:
        break_after(patched, 2)
        result = score(variants, output, toy_model_dir)
        assert isinstance(result.exception, _Killed)
        assert "2 finished chunks are kept" in result.stderr
    assert not output.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"o.tsv.partial"}
    scored = break_after(monkeypatch, -1)
    result = score(variants, output, toy_model_dir)
    assert result.exit_code == 0 and "2 finished chunks" in result.stderr
    assert scored and scored[0] == 2  # 0 and 1 were there
    assert output.read_bytes() == whole("tsv").read_bytes()
    first, second = (
        json.loads(Path(f"{p}.manifest.json").read_text()) for p in (whole("tsv"), output)
    )
    assert first["tokens"] == second["tokens"]
    assert first["reference_bits_per_base"] == second["reference_bits_per_base"]
    assert {p.name for p in tmp_path.iterdir()} == {"o.tsv", "o.tsv.manifest.json"}


def test_another_run_does_not_go_on_and_says_what_has_changed(
    whole: Callable[[str], Path],
    variants: Path,
    toy_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, source = tmp_path / "o.tsv", tmp_path / "in.vcf"
    shutil.copy(variants, source)
    with monkeypatch.context() as patched:
        break_after(patched, 2)
        score(source, output, toy_model_dir)
    kept = sorted(p.name for p in (tmp_path / "o.tsv.partial").iterdir())

    def refused(*options: object, said: str) -> None:
        result = score(source, output, toy_model_dir, *options)
        assert result.exit_code == 1 and said in result.stderr, result.output
        assert "--restart" in result.stderr and result.stderr.count("Error") == 1
        assert kept == sorted(p.name for p in (tmp_path / "o.tsv.partial").iterdir())

    refused("--window", 48, said="--window was not given, is 48")
    refused("--strands", "rc", said="--strands was both, is rc")
    refused("-r", "NC_000932.1", said="--regions was not given, is NC_000932.1")
    refused("--shard", "1/2", said="shard was not given, is 1/2")
    text = source.read_text()
    source.write_text(text.replace("PASS", "pass", 1))
    refused(said=f"the content of variants {source} has changed")
    source.write_text(text)
    # The same content under another name is the same input.
    source = source.rename(tmp_path / "renamed.vcf")
    result = score(source, output, toy_model_dir)
    assert result.exit_code == 0 and output.read_bytes() == whole("tsv").read_bytes()
    # Throwing away is possible, too.
    output.unlink()
    with monkeypatch.context() as patched:
        break_after(patched, 2)
        score(source, output, toy_model_dir, "--force")
    result = score(source, output, toy_model_dir, "--strands", "rc", "--restart", "--force")
    assert result.exit_code == 0 and "going on" not in result.stderr


def test_it_goes_on_in_the_chunks_and_shapes_of_the_first_run(
    whole: Callable[[str], Path],
    variants: Path,
    toy_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "o.tsv"
    monkeypatch.setattr(chunks_module, "cut", cut)
    with monkeypatch.context() as patched:
        patched.setattr(workers_module, "windows_per_chunk", lambda _: CUT)
        break_after(patched, 2)
        score(variants, output, toy_model_dir)
    # As if memory were shorter now, and chunks therefore smaller.
    monkeypatch.setattr(reuse_module, "default_rows", lambda *_: 3)
    monkeypatch.setattr(workers_module, "windows_per_chunk", lambda _: 5)
    scored = break_after(monkeypatch, -1)
    result = score(variants, output, toy_model_dir)
    assert result.exit_code == 0, result.output
    assert scored[0] == 2
    assert output.read_bytes() == whole("tsv").read_bytes()
    assert b"128x32" in output.read_bytes()


def test_a_stream_goes_on_if_its_records_are_the_same(
    whole: Callable[[str], Path], variants: Path, toy_model_dir: Path, tmp_path: Path
) -> None:
    output, text = tmp_path / "o.tsv", variants.read_text()
    numbers = iter(range(9))

    def fed(content: str) -> Result:
        # A new one each time: what was interrupted may still hold the old one open.
        fifo = tmp_path / f"pipe{next(numbers)}"
        os.mkfifo(fifo)
        writer = get_context("fork").Process(target=fifo.write_text, args=(content,))
        writer.start()
        try:
            return score(fifo, output, toy_model_dir)
        finally:
            writer.join(10)
            writer.kill()

    with pytest.MonkeyPatch.context() as patched:
        break_after(patched, 2)
        assert isinstance(fed(text).exception, _Killed)
    lines = text.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    other = "".join([*lines[:first], *lines[first + 1 :]])
    result = fed(other)
    assert result.exit_code == 1 and "the input is another one" in result.stderr
    assert fed(text).exit_code == 0
    assert output.read_bytes() == whole("tsv").read_bytes()


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    output = tmp_path / "o.tsv"
    with (
        ChunkStore(output, {"a": 1}) as store,
        pytest.raises(ResumeError, match="another run is writing"),
    ):
        store.begin(((1, 64),), 5)
        ChunkStore(output, {"a": 1})
    with ChunkStore(output, {"a": 1}) as again:
        assert again.shapes == ((1, 64),) and again.num_windows == 5


def test_a_damaged_chunk_is_scored_again(
    whole: Callable[[str], Path],
    variants: Path,
    toy_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "o.tsv"
    with monkeypatch.context() as patched:
        break_after(patched, 3)
        score(variants, output, toy_model_dir)
    (tmp_path / "o.tsv.partial" / "chunk-00000001.json.gz").write_bytes(b"?")
    scored = break_after(monkeypatch, -1)
    assert score(variants, output, toy_model_dir).exit_code == 0
    assert scored[:2] == [1, 3] and output.read_bytes() == whole("tsv").read_bytes()


def test_differences_name_every_item_once() -> None:
    before = {"a": 1, "f": {"file": "x", "sha256": "1"}, "o": {"--w": 5, "--x": None}, "gone": 2}
    now = {"a": 1, "f": {"file": "y", "sha256": "1"}, "o": {"--w": 6, "--x": True}, "new": [3]}
    assert differences(before, before) == []
    assert differences(before, now) == [
        "--w was 5, is 6",
        "--x was not given, is given",
        "gone was 2, is not given",
        "new was not given, is 3",
    ]
    assert differences({"f": {"file": "x", "s": 1}}, {"f": {"file": "y", "s": 2}}) == [
        "f was x, is y"
    ]


@pytest.fixture
def setting(variants: Path, toy_model_dir: Path) -> WorkerSetting:
    genome = Fasta(FASTA)
    contigs = ContigAliases(genome.lengths)
    return WorkerSetting(
        model=str(toy_model_dir), precision="default", allow_inaccurate=False, genome=genome,
        contigs=contigs, workload=Workload(Places([0] * 32 + [20]), 60, 1),
    )  # fmt: skip


def test_processes_score_the_same_and_go_on_without_one_that_dies(
    setting: WorkerSetting, variants: Path
) -> None:
    with VariantReader(variants) as reader:
        records = list(reader)
    alone = ChunkScorer.opened(setting, "cpu")
    expected = [scored.alleles for scored in alone.run.scorer.score(records)]
    workers = DeviceProcesses(setting, ["cpu", "cpu"])
    try:
        assert workers.info == alone.info
        assert workers.seconds is not None
        found = []
        for scored in score_chunks(cut(records, CUT), workers):
            found.append(scored.alleles)
            if len(found) == 1:
                workers._workers[0].process.kill()
        assert repr(found) == repr(expected)
        assert len(workers._workers) == 1
        # A mistake of the run, unlike the death of a process, ends it as it would here.
        with pytest.raises(ValueError, match="do not fit these windows"):
            workers.use_shapes(((1, 5), (1, 5), (1, 5)))
            list(score_chunks(cut(records, CUT), workers))
        last = workers._workers[0].process
        last.join(20)
        with pytest.raises(EvoError, match="none is left"):
            list(score_chunks(cut(records, CUT), workers))
    finally:
        workers.close()


@pytest.mark.parametrize(
    ("devices", "device", "said"),
    [
        ("0", "cpu", "neither all nor a number"),
        ("few", "auto", "neither all nor a number"),
        ("2", "cuda:0", "leave one of them out"),
        ("2", "cuda", "no NVIDIA GPU"),
    ],
)
def test_devices_that_are_not_there(
    devices: str, device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match=said):
        device_list(devices, device)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_list("3", "cpu") == ["cpu"] * 3
    assert device_list("all", "cpu") == ["cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_list("all", "auto") == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert device_list("2", "cuda") == ["cuda:0", "cuda:1"]
    with pytest.raises(UsageError, match="has 4 GPUs"):
        device_list("5", "auto")


class TestMemoryRunsOut:
    """The toy model claims that some forwards do not fit."""

    def limited(self, monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
        """Let forwards of more rows than these fail; the rows of every forward."""
        hidden, seen = StripedHyena2.hidden, []

        def forward(
            self: StripedHyena2, ids: torch.Tensor, *arguments: Any, **options: Any
        ) -> object:
            seen.append(len(ids))
            if len(ids) > most:
                raise torch.OutOfMemoryError
            return hidden(self, ids, *arguments, **options)

        monkeypatch.setattr(StripedHyena2, "hidden", forward)
        return seen

    @pytest.mark.parametrize("mode", ["exact", "full"])
    def test_the_chunk_is_scored_again_with_fewer_rows(
        self, setting: WorkerSetting, variants: Path, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        scorer = ChunkScorer.opened(replace(setting, options={"window_mode": mode}), "cpu")
        with VariantReader(variants) as reader:
            first, second, *_ = cut(reader, 40)
        before = scorer.score(first)
        assert before.notes == ()
        expected = scorer.score(second)
        self.limited(monkeypatch, 9)
        found = scorer.score(second)
        assert 4 < max(rows for rows, _ in found.shapes) <= 9
        assert [length for _, length in found.shapes] == [length for _, length in before.shapes]
        # Counted once, although read several times.
        assert found.count.tokens == expected.count.tokens
        assert found.bits.bases == expected.bits.bases
        for rows, others in zip(found.scores, expected.scores, strict=True):
            for allele, other in zip(rows, others, strict=True):
                assert allele.status == other.status
                assert allele.dll == pytest.approx(other.dll, abs=1e-5)
        (note,) = found.notes
        assert "memory ran out" in note and "records scored with both differ by at most" in note
        # What the outputs say is what the run began with.
        assert scorer.info.shapes == before.shapes
        assert scorer.score(second).notes == ()

    def test_one_row_that_does_not_fit_is_the_end(
        self, setting: WorkerSetting, variants: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scorer = ChunkScorer.opened(setting, "cpu")
        with VariantReader(variants) as reader:
            chunk, *_ = cut(reader, 40)
        seen = self.limited(monkeypatch, 0)
        with pytest.raises(torch.OutOfMemoryError):
            scorer.score(chunk)
        assert seen[-1] == 1


class TestDryRun:
    def test_the_tokens_are_those_of_the_run(
        self, whole: Callable[[str], Path], variants: Path, toy_model_dir: Path, tmp_path: Path
    ) -> None:
        run = ScoringRun(load_model(toy_model_dir), Fasta(FASTA), ContigAliases({"NC_000932.1": 154478}))  # fmt: skip
        with VariantReader(variants) as reader:
            found = forecast(run, reader, 16, seconds=0.01)
        with VariantReader(variants) as reader:
            run.scorer.runner.count = TokenCount()
            scored = list(run.scorer.score(reader))
        assert found.count == run.scorer.runner.count and found.tokens == found.count.tokens
        assert not found.is_extrapolated
        summary = Summary()
        for one in scored:
            summary.add(one)
        assert found.summary == summary
        assert found.rate is not None and found.rate > 0
        assert found.seconds(2) == pytest.approx(
            (found.count.tokens + found.count.padding) / found.rate / 2
        )

    def test_what_is_not_placed_is_taken_to_be_like_what_is(self) -> None:
        found = Forecast(Summary(), TokenCount(100, 60, 200), 4, 10, 8.0)
        assert found.is_extrapolated and found.tokens == 250 and found.seconds() == 50.0
        assert Forecast(Summary(), TokenCount(), 0, 0, None).seconds() is None

    def test_places_are_counted_by_the_windows_that_hold_them(self) -> None:
        rng = random.Random(1)
        placed = sorted((c, rng.randrange(1, 5000)) for c in "ab" for _ in range(300))
        places = Places()
        for contig, position in placed:
            places.add(contig, position)
        for step in (1, 2, 8, 64, 1024):
            assert places.number(step) == len({(c, p // step) for c, p in placed})
        assert places.number(96) == places.number(64)
        assert places.part(0.5).number() == pytest.approx(places.number() / 2, rel=0.01)

        class Asked:
            step = 64

            def estimate(self, num_references: int, num_alternates: int) -> float:
                assert (num_references, num_alternates) == (2 * places.number(64), 600)
                return 3.0

        assert Workload(places, 300, 2).seconds(Asked()) == 3.0  # type: ignore[arg-type]

    def test_nothing_is_written(self, variants: Path, toy_model_dir: Path, tmp_path: Path) -> None:
        output = tmp_path / "o.tsv"
        result = score(variants, output, toy_model_dir, "--dry-run", "--devices", "2")
        assert result.exit_code == 0 and not list(tmp_path.iterdir())
        assert "can be scored: 34 alleles of 38 in 16 records; not scored:" in result.stderr
        assert "tokens through the model" in result.stderr
        assert "estimated time on 2 devices" in result.stderr


def _score_dying(variants: Path, output: Path, model: Path, at: int) -> None:
    """Score, but die as by kill -9 at the `at`th step that touches the disk."""
    left = at

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return function(*args, **options)

        return wrapped

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rename"), (os, "mkdir"), (os, "rmdir")):  # fmt: skip
        setattr(owner, name, dying(getattr(owner, name)))
    result = score(variants, output, model)
    os._exit(result.exit_code)


@pytest.mark.parametrize(
    ("suffix", "stride"), [("vcf.gz", 7), pytest.param("tsv.gz", 1, marks=pytest.mark.slow)]
)
def test_killed_anywhere_the_same_command_gives_the_same_file(
    whole: Callable[[str], Path],
    variants: Path,
    toy_model_dir: Path,
    tmp_path: Path,
    suffix: str,
    stride: int,
) -> None:
    expected, index = whole(suffix).read_bytes(), Path(f"{whole(suffix)}.tbi").read_bytes()
    at, code = 0, 9
    while code == 9:
        output = tmp_path / str(at) / f"o.{suffix}"
        output.parent.mkdir()
        process = get_context("fork").Process(
            target=_score_dying, args=(variants, output, toy_model_dir, at)
        )
        process.start()
        process.join()
        code = process.exitcode
        if output.exists():
            assert output.read_bytes() == expected
        result = score(variants, output, toy_model_dir)
        finished = code == 0 or not Path(f"{output}.partial").exists()
        assert result.exit_code == 0 or (finished and "exists" in result.stderr), result.stderr
        assert output.read_bytes() == expected, at
        assert Path(f"{output}.tbi").read_bytes() == index, at
        # Killed after the last step that matters, it leaves chunks under a hidden name.
        left = {p.name for p in output.parent.iterdir() if ".partial." not in p.name}
        assert left == {output.name, f"{output.name}.tbi", f"{output.name}.manifest.json"}, at
        at += stride
    assert code == 0 and at > 28


@pytest.mark.slow
def test_kill_minus_nine_at_random_times(
    whole: Callable[[str], Path], variants: Path, toy_model_dir: Path, tmp_path: Path
) -> None:
    rng, output = random.Random(5), tmp_path / "o.vcf.gz"
    code = (
        "import sys, time; from evo_toolkit.variants import chunks, workers;"
        f"cut = chunks.cut; chunks.cut = lambda records, _: cut(records, {CUT});"
        "score = workers.ChunkScorer.score;"
        "workers.ChunkScorer.score = lambda *a: (time.sleep(0.2), score(*a))[1];"
        "from evo_toolkit.cli.main import main; sys.argv[0] = 'evo-toolkit'; main()"
    )
    command = [sys.executable, "-c", code, "score", variants, FASTA, "-m", toy_model_dir, "-o", output, "--no-version"]  # fmt: skip
    kills = 0
    while True:
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE)
        # The model's loading takes most of the time; the kills should fall behind it.
        folder = Path(f"{output}.partial")
        before = len(list(folder.glob("chunk-*")))
        while process.poll() is None and len(list(folder.glob("chunk-*"))) <= before:
            time.sleep(0.02)
        try:
            _, told = process.communicate(timeout=rng.uniform(0.0, 0.9))
            # Killed after its last step, it was done.
            assert process.returncode == 0 or b"exists" in told, told
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            assert not output.exists() or output.read_bytes() == whole("vcf.gz").read_bytes()
    assert kills > 1
    assert output.read_bytes() == whole("vcf.gz").read_bytes()
    left = sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".tmp"))
    assert left == ["o.vcf.gz", "o.vcf.gz.manifest.json", "o.vcf.gz.tbi"]
