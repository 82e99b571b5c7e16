"""How `evo-toolkit score` runs: on which devices, which part of the input, and going on after an end."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from evo_toolkit.checkpoint.opening import Opened
    from evo_toolkit.variants.chunks import ChunkScores
    from evo_toolkit.variants.dry_run import Forecast
    from evo_toolkit.variants.run import ScoringRun, Variants
    from evo_toolkit.variants.score import ReferenceBits
    from evo_toolkit.variants.scores import ScoredRecord
    from evo_toolkit.variants.window_runner import TokenCount
    from evo_toolkit.variants.workers import ThisProcess, Workers, WorkerSetting

NOT_OPTIONS = frozenset(
    {
        "inputs", "output", "model", "device", "devices", "executor", "shard", "restart",
        "skipped", "force", "dry_run", "quiet", "report", "haplotype",
    }
)  # fmt: skip
"""Parameters of the command that say where and how, not what; an interrupted run may change them."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `run_options` add, as given."""

    devices: str | None
    executor: str
    shard: str | None
    restart: bool
    skipped: str | None

    def part(self) -> tuple[int, int] | None:
        """Number and parts of `--shard`; None is all.

        Raises:
            UsageError: if it is not of the form K/N with 1 <= K <= N.
        """
        from evo_toolkit.errors import UsageError

        if self.shard is None:
            return None
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard {self.shard!r} is not K/N, such as 3/10, with K from 1 to N")
        return int(found[1]), int(found[2])


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about a run, handed over as one argument `running`."""

    @click.option(
        "--devices",
        metavar="all|N",
        help="Score on all GPUs, or on N of them (with --device cpu: in N processes), one process each. The scores do not depend on it.",
    )
    @click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where the processes of --devices run: here, or on a Ray cluster (RAY_ADDRESS; pip install 'evo-toolkit[ray]').",
    )
    @click.option(
        "--shard",
        metavar="K/N",
        help="Score only the Kth of N parts of the input, for job arrays; score merge joins the outputs.",
    )
    @click.option(
        "--restart",
        is_flag=True,
        help="Throw away what an interrupted run of this output left (OUTPUT.partial), instead of going on from there.",
    )
    @click.option(
        "--skipped",
        metavar="FILE",
        help="Also write the alleles without a score, with the reason of each (TSV).",
    )
    @wraps(command)
    def wrapped(
        *args: Any,
        devices: str | None,
        executor: str,
        shard: str | None,
        restart: bool,
        skipped: str | None,
        **others: Any,
    ) -> Any:
        running = RunOptions(
            devices=devices, executor=executor, shard=shard, restart=restart, skipped=skipped
        )
        return command(*args, running=running, **others)

    return wrapped


def option_values(context: click.Context) -> dict[str, object]:
    """What the user chose that decides the scores or how they are written, by the option's name."""
    names = {p.name: max(p.opts, key=len) for p in context.command.params}
    return {names[name]: value for name, value in context.params.items() if name not in NOT_OPTIONS}


def check_outputs(output: str, running: RunOptions, *, force: bool, inputs: Iterable[str]) -> bool:
    """Check what is written beside the output; whether what is there may be replaced.

    It may where that was asked for, or a run of the same output was interrupted as it finished.

    Raises:
        UsageError: if two outputs, or an output and an input, are the same file.
        EvoDataError: if a file exists that must not be replaced, or cannot be written.
    """
    from evo_data.files import check_output
    from evo_toolkit.errors import UsageError
    from evo_toolkit.variants.manifest import manifest_path
    from evo_toolkit.variants.resume import was_finishing

    replace = force
    beside = [running.skipped] if running.skipped else []
    if output != "-":
        replace = force or (was_finishing(output) and not running.restart)
        beside.append(str(manifest_path(output)))
    for path in beside:
        target = check_output(path, force=True)
        for other in (*inputs, output):
            if other != "-" and target == Path(other).resolve():
                raise UsageError(f"{path} would be written over {other}; give another name")
        check_output(path, force=replace)
    return replace


@dataclass
class Totals:
    """Sums over the chunks of a run.

    Attributes:
        num_kept: Chunks that an earlier, interrupted run had finished.
        notes: What the user should know of how chunks were scored.
    """

    count: TokenCount
    bits: ReferenceBits
    num_kept: int = 0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def empty(cls) -> Totals:
        from evo_toolkit.variants.score import ReferenceBits
        from evo_toolkit.variants.window_runner import TokenCount

        return cls(TokenCount(), ReferenceBits())

    def add(self, scores: ChunkScores, was_kept: bool) -> None:
        self.count.add(scores.count)
        self.bits.nats += scores.bits.nats
        self.bits.bases += scores.bits.bases
        self.bits.counts += scores.bits.counts
        self.num_kept += was_kept
        self.notes.extend(scores.notes)

    def described(self, found: Variants, running: RunOptions) -> dict[str, object]:
        """For the manifest."""
        return {
            "skipped": running.skipped,
            "part": None if found.part is None else {"first": found.part[0], "last": found.part[1]},
            "tokens": dataclasses.asdict(self.count),
            "reference_bits_per_base": self.bits.bits_per_base,
            "notes": self.notes,
        }


@contextmanager
def open_skipped(path: str | None, *, force: bool) -> Iterator[Callable[[ScoredRecord], None]]:
    """Yield what notes the alleles without a score; nothing, where no file is wanted for them."""
    from evo_toolkit.variants.skipped import SkippedWriter

    if path is None:
        yield lambda scored: None
    else:
        with SkippedWriter(path, force=force) as writer:
            yield writer.add


@contextmanager
def open_workers(
    setting: WorkerSetting, running: RunOptions, device: str, opened: Opened
) -> Iterator[Workers]:
    """Load the model wherever the run is to take place.

    Raises:
        UsageError: if the devices asked for do not exist.
        EvoError: if a process cannot start.
    """
    from evo_toolkit.variants.workers import DeviceProcesses, device_list

    workers: Workers
    if running.executor == "ray":
        from evo_toolkit.variants.ray_executor import RayWorkers

        workers = RayWorkers(setting, running.devices or "all", device)
    elif running.devices is not None and len(devices := device_list(running.devices, device)) > 1:
        workers = DeviceProcesses(setting, devices)
    else:
        workers = _in_this_process(setting, device, opened)
    try:
        yield workers
    finally:
        workers.close()


def foresee(
    setting: WorkerSetting, running: RunOptions, device: str, opened: Opened, found: Variants
) -> tuple[ScoringRun, Forecast, int]:
    """A run, what it would do, tried on one device, and on how many it would be done."""
    from evo_toolkit.variants.dry_run import forecast
    from evo_toolkit.variants.workers import device_list

    number = 1
    if running.devices is not None and running.executor == "local":
        number = len(device_list(running.devices, device))
    run = _in_this_process(setting, device, opened).scorer.run
    return run, forecast(run, found.records(), found.num_records), number


def _in_this_process(setting: WorkerSetting, device: str, opened: Opened) -> ThisProcess:
    from evo_toolkit.checkpoint.load import load_opened
    from evo_toolkit.variants.run import ScoringRun
    from evo_toolkit.variants.workers import ChunkScorer, ThisProcess

    model = load_opened(
        opened, device=device, precision=setting.precision,
        allow_inaccurate=setting.allow_inaccurate,
    )  # fmt: skip
    run = ScoringRun(model, setting.genome, setting.contigs, **setting.options)
    return ThisProcess(ChunkScorer(run), setting)
