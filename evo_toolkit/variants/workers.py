"""Whatever scores chunks: this process, or one process for each device.

Every worker takes the next chunk when it has finished one, so that fast and slow devices, dense and
sparse regions even out. Where a chunk is scored does not change its scores.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol

import torch

from evo_data.contigs import ContigAliases
from evo_data.fasta import Fasta
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.inference.allocation import keep_freed_memory
from evo_toolkit.inference.context import sendable
from evo_toolkit.variants.chunks import Chunk, ChunkScores
from evo_toolkit.variants.run import ScoringRun, Workload
from evo_toolkit.variants.score import ReferenceBits
from evo_toolkit.variants.scores import RunInfo, ScoredRecord
from evo_toolkit.variants.window_runner import TokenCount

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from evo_toolkit.variants.resume import ChunkStore

_log = logging.getLogger("evo_toolkit")

Shapes = tuple[tuple[int, int], ...]

# A chunk that ends so many workers would end them all.
_MOST_DEATHS = 2
# Finished chunks that wait for one before them, for each that is being scored.
_AHEAD = 8
_RECORDS_COMPARED = 16
# Windows of a chunk, in calls of the runner: few enough to lose little, enough for little padding.
_CALLS_PER_CHUNK = 2


@dataclass(frozen=True, kw_only=True)
class WorkerSetting:
    """What a worker on another device or machine needs; plain values.

    Attributes:
        model: Name or path of the model.
        precision: As for `evo_toolkit.load_model`.
        allow_inaccurate: As there.
        genome: The reference.
        contigs: Its contig names.
        options: Keyword arguments of `ScoringRun`.
        workload: What the run has to read, for an estimate; None if not known.
    """

    model: str
    precision: str
    allow_inaccurate: bool
    genome: Fasta
    contigs: ContigAliases
    options: Mapping[str, Any] = field(default_factory=dict)
    workload: Workload | None = None


class ChunkScorer:
    """Scores chunks with one loaded model.

    Attributes:
        run: Model, genome and options.
    """

    def __init__(self, run: ScoringRun) -> None:
        self.run = run
        self._last: tuple[Chunk, ChunkScores] | None = None
        self._shapes = run.info.shapes

    @classmethod
    def opened(cls, setting: WorkerSetting, device: str) -> ChunkScorer:
        """Load the model onto a device."""
        from evo_toolkit.checkpoint.load import load_model

        model = load_model(
            setting.model, device=device, precision=setting.precision,
            allow_inaccurate=setting.allow_inaccurate,
        )  # fmt: skip
        return cls(ScoringRun(model, setting.genome, setting.contigs, **setting.options))

    @property
    def info(self) -> RunInfo:
        return replace(self.run.info, shapes=self._shapes)

    def estimate(self, setting: WorkerSetting) -> float | None:
        """Seconds that this device alone would need for the run; None if that cannot be said."""
        runner = self.run.scorer.runner
        return None if setting.workload is None else setting.workload.seconds(runner)

    def use_shapes(self, shapes: Shapes) -> None:
        """Take the shapes of another worker, or of an earlier run."""
        self.run.scorer.runner.use_shapes(shapes)
        self._shapes = shapes

    def score(self, chunk: Chunk) -> ChunkScores:
        """Score a chunk; where memory runs out, all of it again with half the rows.

        Raises:
            torch.OutOfMemoryError: when one row does not fit.
        """
        runner = self.run.scorer.runner
        before = runner.shapes
        found = None
        while found is None:
            shapes = runner.shapes
            self._count_anew()
            scores = []
            try:
                for scored in self.run.scorer.score(chunk.records):
                    scores.append(scored.alleles)
            except torch.OutOfMemoryError:
                if all(rows == 1 for rows, _ in shapes):
                    raise
                runner.halve()
            if runner.shapes == shapes:
                found = ChunkScores(
                    chunk.number, chunk.digest(), tuple(scores), runner.count,
                    self.run.scorer.reference_bits, shapes,
                )  # fmt: skip
        if found.shapes != before:
            found.notes = (self._compared(found.shapes),)
        self._last = chunk, found
        return found

    def _count_anew(self) -> None:
        self.run.scorer.reference_bits = ReferenceBits()
        self.run.scorer.runner.count = TokenCount()

    def _compared(self, shapes: Shapes) -> str:
        """Say that shapes had to change, and by how much the scores of the last chunk change."""
        listed = ", ".join(f"{rows} x {length}" for rows, length in shapes)
        note = f"memory ran out, and forwards of {listed} are used from here on"
        if self._last is None:
            return note
        self._count_anew()
        chunk, old = self._last
        records = chunk.records[:_RECORDS_COMPARED]
        largest = 0.0
        for scored, alleles in zip(self.run.scorer.score(records), old.scores, strict=False):
            for now, before in zip(scored.alleles, alleles, strict=True):
                if now.dll is not None and before.dll is not None:
                    largest = max(largest, abs(now.dll - before.dll))
        return (
            f"{note}; {len(records)} records scored with both differ by at most {largest:.2g} nats"
        )


class Workers(Protocol):
    """Takes chunks and gives their scores back, in any order.

    Attributes:
        info: What outputs must say about the run.
        seconds: Estimate of the run's time, or None.
        capacity: Chunks that it should hold so that no device waits.
    """

    info: RunInfo
    seconds: float | None
    capacity: int
    windows_per_chunk: int

    def use_shapes(self, shapes: Shapes) -> None:
        """Make every worker take these shapes."""

    def submit(self, chunk: Chunk) -> None:
        """Take a chunk."""

    def next(self) -> ChunkScores:
        """Wait for a chunk that is finished."""

    def close(self) -> None:
        """Let the devices go; what is not finished is dropped."""


class ThisProcess:
    """Scores chunks one after the other, here."""

    capacity = 1

    def __init__(self, scorer: ChunkScorer, setting: WorkerSetting) -> None:
        self.scorer = scorer
        self.info = scorer.info
        self.seconds = scorer.estimate(setting)
        self.windows_per_chunk = windows_per_chunk(scorer)
        self._waiting: deque[Chunk] = deque()

    def use_shapes(self, shapes: Shapes) -> None:
        self.scorer.use_shapes(shapes)
        self.info = self.scorer.info

    def submit(self, chunk: Chunk) -> None:
        self._waiting.append(chunk)

    def next(self) -> ChunkScores:
        return self.scorer.score(self._waiting.popleft())

    def close(self) -> None:
        self._waiting.clear()


def windows_per_chunk(scorer: ChunkScorer) -> int:
    """Windows of a chunk on one strand, for `evo_toolkit.variants.chunks.cut`."""
    strands = 2 if scorer.run.scorer.strands == "both" else 1
    return max(1, _CALLS_PER_CHUNK * scorer.run.scorer.runner.windows_per_call // strands)


def smallest_shapes(infos: Sequence[RunInfo]) -> Shapes:
    """The forwards that fit on every device: of each length as few rows as any of them has."""
    return tuple(
        (min(rows for rows, _ in same), same[0][1])
        for same in zip(*(info.shapes for info in infos), strict=True)
    )


def number_of(devices: str) -> int | None:
    """What --devices asks for; None is "all".

    Raises:
        UsageError: if it is neither that nor a number from 1 up.
    """
    if devices == "all":
        return None
    if not devices.isdecimal() or int(devices) < 1:
        raise UsageError(f"--devices {devices!r} is neither all nor a number from 1 up")
    return int(devices)


@dataclass
class _Process:
    """A worker process and what it is at."""

    device: str
    process: SpawnProcess
    connection: Connection
    chunk: Chunk | None = None


class DeviceProcesses:
    """One process for each device, all fed from one queue.

    A process that dies (killed, out of memory) gives its chunk back to the others.
    """

    def __init__(self, setting: WorkerSetting, devices: Collection[str]) -> None:
        """Start the processes and wait until each has loaded the model.

        Raises:
            EvoError: if one of them cannot.
        """
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Process] = []
        self._queue: deque[Chunk] = deque()
        self._deaths: dict[int, int] = {}
        self.capacity = 2 * len(devices)
        try:
            for device in devices:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, setting, device, len(devices)), daemon=True
                )
                process.start()
                theirs.close()
                self._workers.append(_Process(device, process, ours))
            ready = [self._started(worker) for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.info = ready[0][0]
        estimates = [seconds for _, seconds, _ in ready]
        self.seconds = None if None in estimates else max(estimates) / len(devices)
        self.windows_per_chunk = ready[0][2]
        self.use_shapes(smallest_shapes([info for info, _, _ in ready]))

    def _started(self, worker: _Process) -> tuple[RunInfo, Any, int]:
        answer = self._receive(worker)
        if answer is None:
            raise EvoError(
                f"the process for {worker.device} ended while it loaded the model (exit code {worker.process.exitcode}); is there memory for one more copy of it?"
            )
        return answer[0], answer[1], answer[2]

    def _receive(self, worker: _Process) -> Any:
        """What a worker sends; None if it has died. Raises what it raised."""
        try:
            kind, content = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(5)
            return None
        if kind == "error":
            error, trace = content
            error.add_note(trace)
            raise error
        return content

    def use_shapes(self, shapes: Shapes) -> None:
        self.info = replace(self.info, shapes=shapes)
        for worker in self._workers:
            worker.connection.send(("shapes", shapes))

    def submit(self, chunk: Chunk) -> None:
        self._queue.append(chunk)
        self._feed()

    def _feed(self) -> None:
        for worker in self._workers:
            if self._queue and worker.chunk is None:
                worker.chunk = self._queue.popleft()
                # A dead one is found by whoever waits for its answer.
                with suppress(BrokenPipeError, ConnectionResetError):
                    worker.connection.send(("chunk", worker.chunk))

    def next(self) -> ChunkScores:
        """Wait for a chunk.

        Raises:
            EvoError: if no worker is left, or a chunk has ended several.
        """
        while True:
            busy = {w.connection: w for w in self._workers if w.chunk is not None}
            assert busy, "no chunk was submitted"
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                data = self._receive(worker)
                if data is None:
                    self._bury(worker)
                    continue
                worker.chunk = None
                self._feed()
                return ChunkScores.decoded(data)

    def _bury(self, worker: _Process) -> None:
        """Give a dead worker's chunk to the others."""
        chunk, code = worker.chunk, worker.process.exitcode
        assert chunk is not None
        self._workers.remove(worker)
        deaths = self._deaths[chunk.number] = self._deaths.get(chunk.number, 0) + 1
        first = chunk.records[0]
        where = f"the process for {worker.device} ended (exit code {code}) at {first.contig}:{first.pos}"
        if not self._workers or deaths >= _MOST_DEATHS:
            raise EvoError(
                f"{where}, and {'none is left' if not self._workers else 'so did another there'}; was it killed, or is memory short?"
            )
        _log.warning("%s; %d go on without it", where, len(self._workers))
        self._queue.appendleft(chunk)
        self._feed()

    def close(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(10)
        self._workers.clear()


def _work(connection: Connection, setting: WorkerSetting, device: str, sharing: int) -> None:
    """A worker process: load, say so, score chunks until there are no more."""
    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // sharing))
    try:
        scorer = ChunkScorer.opened(setting, device)
        info = replace(scorer.info, device=torch.device(device).type)
        connection.send(("ready", (info, scorer.estimate(setting), windows_per_chunk(scorer))))
        while True:
            kind, content = connection.recv()
            if kind == "shapes":
                scorer.use_shapes(content)
            else:
                connection.send(("scores", scorer.score(content).encoded()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except BaseException as error:  # noqa: BLE001 (raised again by the parent)
        connection.send(("error", (sendable(error), traceback.format_exc())))


def device_list(devices: str, device: str) -> list[str]:
    """The device of each worker.

    Args:
        devices: "all", or how many.
        device: "auto", "cpu" or "cuda".

    Raises:
        UsageError: if there are not so many, or a single device is named.
    """
    if device.startswith("cuda:"):
        raise UsageError(
            f"--devices takes several, --device {device} names one; leave one of them out"
        )
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if device == "cuda" and not gpus:
        raise UsageError(
            "--device cuda: no NVIDIA GPU is usable here; use cpu, or run evo-toolkit doctor"
        )
    wanted = number_of(devices)
    if gpus:
        wanted = wanted or gpus
        if wanted > gpus:
            raise UsageError(f"--devices {wanted}: this machine has {gpus} GPUs")
        return [f"cuda:{index}" for index in range(wanted)]
    return ["cpu"] * (wanted or 1)


def score_chunks(
    chunks: Iterable[Chunk],
    workers: Workers,
    store: ChunkStore | None = None,
    *,
    found: Callable[[ChunkScores, bool], None] | None = None,
) -> Iterator[ScoredRecord]:
    """Yield the records of chunks with their scores, in order.

    Args:
        store: Where chunks are kept as they finish, and where earlier ones lie.
        found: Called with every chunk's scores in order, and whether they come from the store.
    """
    source = iter(chunks)
    waiting: deque[Chunk] = deque()
    done: dict[int, tuple[ChunkScores, bool]] = {}
    in_flight, exhausted = 0, False
    while True:
        while (
            not exhausted
            and in_flight < workers.capacity
            and len(waiting) < _AHEAD * workers.capacity
        ):
            chunk = next(source, None)
            if chunk is None:
                exhausted = True
                break
            waiting.append(chunk)
            kept = store.load(chunk) if store is not None else None
            if kept is not None:
                done[chunk.number] = kept, True
            else:
                workers.submit(chunk)
                in_flight += 1
        while waiting and waiting[0].number in done:
            chunk = waiting.popleft()
            scores, was_kept = done.pop(chunk.number)
            if found is not None:
                found(scores, was_kept)
            yield from scores.scored(chunk)
        if in_flight:
            scores = workers.next()
            in_flight -= 1
            if store is not None:
                store.save(scores)
            done[scores.number] = scores, False
        elif exhausted and not waiting:
            return
