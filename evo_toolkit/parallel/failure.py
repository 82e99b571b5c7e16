"""A rank that fails ends the others too, with its message: nobody waits for it in a collective.

Every rank has a thread beside its work that says each second that it lives, and looks whether the
others do. It asks a store of its own, which rank 0 holds, since a collective of the run may be what
hangs. The thread can end the process from outside whatever the process is waiting for.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from evo_toolkit.errors import EvoError, UsageError

_INTERVAL = 1.0
# What a rank that learns of a failure has to notice the same by itself, and to say it better.
_GRACE = 2.0
# How long rank 0 waits at an end until all have heard of it: the store ends with it.
_FAREWELL = 15.0
_PATIENCE = datetime.timedelta(seconds=60)  # of questions to the store
_DONE = "done"


@dataclass(frozen=True)
class Failure:
    """Why a run ends.

    Attributes:
        rank: Who failed.
        message: What it said, in one line; "" after an interruption, which needs no words.
        code: Exit code of the process.
    """

    rank: int
    message: str
    code: int = 1

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, "", 130)
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 1
            return cls(
                rank, "it was told to end" if code == 143 else f"it ended with code {code}", code
            )
        text = " ".join(str(error).split())
        if not isinstance(error, EvoError):
            text = f"{type(error).__name__}: {text}"
        return cls(rank, text, 2 if isinstance(error, UsageError) else 1)

    def line(self) -> str:
        return f"Error: rank {self.rank} failed and ended the run: {self.message}\n"


class RankWatch:
    """Watches over the ranks of a run until `stop`; ends this process when another has failed."""

    def __init__(self, host: str, *, timeout: float = 120.0) -> None:
        """Begin to watch; all ranks of the default process group make one, at the same time.

        Args:
            host: Address of rank 0's machine.
            timeout: Seconds without a sign of life after which a rank counts as ended.

        Raises:
            EvoError: if rank 0 cannot be reached.
        """
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.timeout = timeout
        self._keys = [f"beat/{rank}" for rank in range(self.size)]
        self._store = self._connect(host)
        self._heard = [time.monotonic()] * self.size
        self._beats = ["0"] * self.size
        self._stopped = threading.Event()
        self._settled = threading.Lock()  # held by the one who decides how this process ends
        self._thread = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._thread.start()

    def _connect(self, host: str) -> Any:
        # Torch's stubs know neither the class by this name nor all of its methods.
        make = functools.partial(
            vars(dist)["TCPStore"], host, timeout=_PATIENCE, wait_for_workers=False
        )
        store = None
        if self.rank == 0:
            store = make(port=0, is_master=True)
            store.multi_set(self._keys, ["0"] * self.size)
        ports = [None if store is None else store.port]
        dist.broadcast_object_list(ports)
        if store is not None:
            return store
        try:
            return make(port=ports[0], is_master=False)
        except RuntimeError as error:
            raise EvoError(
                f"rank {self.rank} does not reach rank 0 at {host}, port {ports[0]}; let the machines of a run reach each other, or give failure_timeout 0 to run without a watch"
            ) from error

    # ---- the thread --------------------------------------------------------------------------

    def _watch(self) -> None:
        number = 0
        while not self._stopped.wait(_INTERVAL):
            number += 1
            failure = self._look(str(number))
            if failure is not None:
                time.sleep(_GRACE)
                if not self._stopped.is_set():
                    self._end(failure)
                return

    def _look(self, beat: str) -> Failure | None:
        """Give a sign of life, and return what is known of a failure."""
        try:
            self._store.set(self._keys[self.rank], beat)
            failure = self._known()
            if failure is not None:
                return failure
            beats = [value.decode() for value in self._store.multi_get(self._keys)]
        except RuntimeError:
            # A rank 0 that ends in order waits until all have stopped.
            return None if self._stopped.is_set() else _ended(0)
        now = time.monotonic()
        for rank, beat in enumerate(beats):
            if beat != self._beats[rank] or beat == _DONE:
                self._heard[rank] = now
        self._beats = beats
        silent = [r for r, heard in enumerate(self._heard) if now - heard > self.timeout]
        if not silent or silent == [self.rank]:
            return None
        return self._announce(_ended(min(r for r in silent if r != self.rank)))

    def _known(self) -> Failure | None:
        if not self._store.check(["failure"]):
            return None
        return Failure(**json.loads(self._store.get("failure")))

    def _announce(self, failure: Failure) -> Failure:
        """Make a failure known; the first one stands."""
        stands = self._store.compare_set("failure", "", json.dumps(asdict(failure)))
        return Failure(**json.loads(stands))

    def _end(self, failure: Failure) -> None:
        """End this process, whatever it is waiting for."""
        with self._settled:
            if failure.message:
                sys.stderr.write(failure.line())
            sys.stderr.flush()
            sys.stdout.flush()
            if failure != _ended(0):  # which held the store
                self._say_farewell()
            # Not sys.exit: the main thread may be within a collective that never ends.
            os._exit(failure.code)

    def _say_farewell(self) -> None:
        try:
            self._store.set(self._keys[self.rank], _DONE)
            if self.rank == 0:
                self._wait_for_the_others()
        except RuntimeError:
            pass  # the store has ended already

    def _wait_for_the_others(self) -> None:
        until = time.monotonic() + _FAREWELL
        while time.monotonic() < until:
            if all(beat.decode() == _DONE for beat in self._store.multi_get(self._keys)):
                return
            time.sleep(0.05)

    # ---- the process -------------------------------------------------------------------------

    def failed(self, error: BaseException) -> None:
        """Tell the others that this rank ends with `error`; returns where it should say so itself.

        It does not return where the error only follows from the end of another rank.
        """
        with self._settled:
            mine = Failure.of(self.rank, error)
            try:
                cause = self._whom_it_lost() if is_of_a_lost_connection(error) else None
                stands = self._announce(cause or mine)
            except RuntimeError:
                stands = _ended(0)
            own = stands.rank == self.rank or stands.message == mine.message
            if own:
                self._stopped.set()
                self._say_farewell()
        if not own:
            self._end(stands)

    def _whom_it_lost(self) -> Failure | None:
        """After a lost connection: the failure that it follows from, as soon as that is known."""
        before = [value.decode() for value in self._store.multi_get(self._keys)]
        until = time.monotonic() + 4 * _INTERVAL
        while time.monotonic() < until:
            known = self._known()
            if known is not None:
                return known
            time.sleep(0.1)
        now = [value.decode() for value in self._store.multi_get(self._keys)]
        silent = [r for r, beat in enumerate(now) if before[r] == beat != _DONE and r != self.rank]
        return _ended(silent[0]) if silent else None

    def stop(self) -> None:
        """Watch no longer; a run that ends in order calls it on every rank."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._say_farewell()


def _ended(rank: int) -> Failure:
    return Failure(
        rank, "its process ended without a word (was it killed, or is memory short?); go on from the last checkpoint"
    )  # fmt: skip


def is_of_a_lost_connection(error: BaseException) -> bool:
    """Whether an error only says that a rank is gone, not why."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        w in text for w in ("gloo", "Connection", "NCCL")
    )
