"""Processes that share every sequence: a part of it on each device, the whole model on all.

The process that asks holds no weights. It hands whole rows of tokens to all processes, each of which
answers for its own positions; where one fails or dies, it ends the others and says why.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.parallel import ContextParallel, context_parallel
from evo_toolkit.parallel.failure import is_of_a_lost_connection

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")
Job = Callable[Concatenate[StripedHyena2, ContextParallel, _Arguments], _Answer]

# A rank that only lost another answers at once: how long to wait for the one that knows the reason.
_REASON = 3.0


class ContextWorkers:
    """One process for each device; every sequence lies on all of them.

    Attributes:
        model: What the processes run, without weights (on the `meta` device): its configuration,
            names of layers, precision, digest and notes.
        devices: The device of each.
    """

    def __init__(
        self,
        source: str,
        devices: Sequence[str],
        *,
        precision: str = "default",
        allow_inaccurate: bool = False,
    ) -> None:
        """Start the processes and wait until each has loaded the model.

        Args:
            source: As of `evo_toolkit.load_model`.
            devices: "cpu" or "cuda:N", at least two.

        Raises:
            EvoError: if one of them cannot.
        """
        if len(devices) < 2:
            raise UsageError(
                f"a sequence cannot be divided over {len(devices)} device; give --devices 2 or more"
            )
        self.devices = list(devices)
        self._folder = tempfile.TemporaryDirectory(prefix="evo-toolkit-")
        context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        try:
            for rank in range(len(devices)):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work,
                    args=(theirs, source, precision, allow_inaccurate, self.devices, rank, str(Path(self._folder.name) / "ranks")),
                    daemon=True,
                )  # fmt: skip
                process.start()
                theirs.close()
                self._processes.append(process)
                self._connections.append(ours)
            config, policy, described = self._answers()[0]
        except BaseException:
            self.close()
            raise
        with torch.device("meta"):
            self.model = StripedHyena2(config, policy=policy)
        for name, value in described.items():
            setattr(self.model, name, value)

    def run(
        self, length: int, job: Job[_Arguments, _Answer], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> list[_Answer]:  # fmt: skip
        """What every process answers, in the order of their parts of the sequence.

        Args:
            length: Positions of the sequence, at least one a process.
            job: A function of a module, called by each process with its model, which takes that
                process' part, and how the sequence is divided.

        Raises:
            EvoError, RuntimeError: what one of them raised; nothing runs after that.
        """
        for connection in self._connections:
            connection.send((length, job, args, kwargs))
        return self._answers()

    def _answers(self) -> list[Any]:
        answers: dict[Connection, Any] = {}
        while len(answers) < len(self._connections):
            ready = wait([c for c in self._connections if c not in answers])
            for connection in ready:
                kind, content = self._received(connection)  # type: ignore[arg-type]
                if kind == "error":
                    raise self._reason(content)
                answers[connection] = content  # type: ignore[index]
        return [answers[connection] for connection in self._connections]

    def _received(self, connection: Connection) -> tuple[str, Any]:
        try:
            kind, content = connection.recv()
        except (EOFError, ConnectionResetError):
            rank = self._connections.index(connection)
            self._processes[rank].join(5)
            return "error", EvoError(
                f"the process for {self.devices[rank]} ended (exit code {self._processes[rank].exitcode}); was it killed, or is memory short?"
            )
        if kind == "error":
            error, trace = content
            error.add_note(trace)
            return kind, error
        return kind, content

    def _reason(self, error: BaseException) -> BaseException:
        """The error of the process that failed first, as far as that says so in time."""
        until = time.monotonic() + _REASON
        while is_of_a_lost_connection(error) and time.monotonic() < until:
            for connection in wait(self._connections, timeout=0.2):
                kind, content = self._received(connection)  # type: ignore[arg-type]
                if kind == "error" and not is_of_a_lost_connection(content):
                    error = content
        self.close()
        if isinstance(error, torch.OutOfMemoryError):
            return EvoError(
                "the GPUs are out of memory with so long a part of a sequence each; give more --devices, or a shorter --window"
            )
        return error

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()  # a process within a collective heeds nothing less
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join(10)
            connection.close()
        self._processes, self._connections = [], []
        self._folder.cleanup()

    def __enter__(self) -> ContextWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sendable(error: BaseException) -> BaseException:
    """The error, or what says the same where it cannot be sent to another process."""
    if isinstance(error, EvoError | OSError | MemoryError | torch.OutOfMemoryError):
        return error
    if type(error) in (RuntimeError, ValueError):
        return type(error)(str(error))
    return RuntimeError(str(error) if isinstance(error, RuntimeError | ValueError) else repr(error))


def _work(
    connection: Connection,
    source: str,
    precision: str,
    allow_inaccurate: bool,
    devices: Sequence[str],
    rank: int,
    store: str,
) -> None:
    """A process: load the model, say so, do jobs until there are no more."""
    from evo_toolkit.checkpoint.load import load_model

    # Ctrl-C reaches the whole group of processes; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor` is deprecated.*")
    device = torch.device(devices[rank])
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(max(1, torch.get_num_threads() // len(devices)))
        model = load_model(
            source, device=device, precision=precision, allow_inaccurate=allow_inaccurate
        )
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=Path(store).as_uri(), rank=rank, world_size=len(devices),
        )  # fmt: skip
        group = dist.group.WORLD
        assert group is not None
        described = {name: getattr(model, name) for name in ("source", "sha256", "notes")}
        connection.send(("ready", (model.config, model.policy, described)))
        while True:
            length, job, args, kwargs = connection.recv()
            context = ContextParallel.of_length(length, group)
            with context_parallel(model, context), torch.inference_mode():
                connection.send(("answer", job(model, context, *args, **kwargs)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the parent is gone
    except BaseException as error:  # noqa: BLE001 (raised again by the parent)
        connection.send(("error", (sendable(error), traceback.format_exc())))
        # The others must not learn of it by their connections before the parent has heard.
        time.sleep(_REASON)
