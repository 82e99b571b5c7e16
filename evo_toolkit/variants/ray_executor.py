"""Chunks on the machines of a Ray cluster: one actor for each GPU, or for each of N processors.

The genome and the model must lie under the same path on every machine. An actor whose machine or
process dies is replaced, and its chunk scored again.

Source: Ray Core, docs.ray.io (actors, fault tolerance).
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.variants.chunks import Chunk, ChunkScores
from evo_toolkit.variants.scores import RunInfo
from evo_toolkit.variants.workers import (
    ChunkScorer,
    Shapes,
    WorkerSetting,
    number_of,
    smallest_shapes,
    windows_per_chunk,
)

_MOST_DEATHS = 3
# Less than one: the process that hands out chunks and those that copy objects need some of it.
_CPUS_PER_ACTOR = 0.5


class _Actor:
    """One model; Ray runs it in a process of its own."""

    def __init__(self, setting: WorkerSetting, device: str, threads: int) -> None:
        self._setting, self._device, self._threads = setting, device, threads

    @cached_property
    def _scorer(self) -> ChunkScorer:
        # Not when it is made: Ray takes an error there for the death of the actor.
        if self._device == "cpu":
            torch.set_num_threads(self._threads)
        return ChunkScorer.opened(self._setting, self._device)

    def ready(self) -> tuple[RunInfo, float | None, int]:
        info = replace(self._scorer.info, device=self._device)
        return info, self._scorer.estimate(self._setting), windows_per_chunk(self._scorer)

    def place(self) -> tuple[str, int]:
        """The node and the process of this actor."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def score(self, chunk: Chunk, shapes: Shapes) -> bytes:
        # With every chunk, since an actor that was started anew knows nothing.
        if self._scorer.info.shapes != shapes:
            self._scorer.use_shapes(shapes)
        return self._scorer.score(chunk).encoded()


class RayWorkers:
    """Scores chunks on a Ray cluster: that of RAY_ADDRESS, or one of this machine alone."""

    def __init__(self, setting: WorkerSetting, devices: str, device: str) -> None:
        """Start the actors and wait until each has loaded the model.

        Args:
            devices: "all", or how many actors.
            device: "auto", "cpu" or "cuda".

        Raises:
            UsageError: if Ray is not installed, or the cluster has not so many devices.
        """
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "--executor ray needs Ray, which is not installed; pip install 'evo-toolkit[ray]', or leave it out"
            ) from error
        self._ray: Any = ray
        self._owns = not ray.is_initialized()
        if self._owns:
            self._connect()
        kind, wanted = self._wanted(devices, device)
        nodes = sum(1 for node in ray.nodes() if node["Alive"])
        threads = max(1, (os.cpu_count() or 1) * nodes // wanted)
        options = {"num_gpus": 1} if kind == "cuda" else {"num_cpus": _CPUS_PER_ACTOR}
        # Spread, so that the cluster's machines share the work.
        remote = ray.remote(max_restarts=0, scheduling_strategy="SPREAD", **options)(_Actor)
        self._new_actor = lambda: remote.remote(setting, kind, threads)
        self._actors = [self._new_actor() for _ in range(wanted)]
        self._starting: dict[Any, Any] = {}
        self._replacements = _MOST_DEATHS * wanted
        self._queue: deque[Chunk] = deque()
        self._at: dict[Any, tuple[Any, Chunk]] = {}
        self._deaths: dict[int, int] = {}
        self.capacity = 2 * wanted
        try:
            ready = [self._get(actor.ready.remote()) for actor in self._actors]
        except BaseException:
            self.close()
            raise
        self.info: RunInfo = ready[0][0]
        estimates = [seconds for _, seconds, _ in ready]
        self.seconds = None if None in estimates else max(estimates) / wanted
        self.windows_per_chunk: int = ready[0][2]
        self.use_shapes(smallest_shapes([info for info, _, _ in ready]))

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        alone: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level="error", **alone)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EvoError(
                f"no Ray cluster at {address or 'this machine'}: {error}; start one with ray start, or leave --executor out"
            ) from error

    def _wanted(self, devices: str, device: str) -> tuple[str, int]:
        """Kind of the devices, and how many actors."""
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--executor ray chooses the devices; leave --device {device} out")
        there = self._ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if device != "cpu" else 0
        if device == "cuda" and not gpus:
            raise UsageError("--device cuda: the Ray cluster has no GPU; use cpu")
        kind, most = ("cuda", gpus) if gpus else ("cpu", int(there.get("CPU", 1) / _CPUS_PER_ACTOR))
        nodes = sum(1 for node in self._ray.nodes() if node["Alive"])
        wanted = number_of(devices) or (most if gpus else nodes)
        if wanted > most:
            raise UsageError(
                f"--devices {wanted}: the Ray cluster has room for {most} on its {'GPUs' if gpus else 'processors'}"
            )
        return kind, wanted

    def _get(self, reference: Any) -> Any:
        """What a remote call gives; raises what it raised."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from error

    def use_shapes(self, shapes: Shapes) -> None:
        self.info = replace(self.info, shapes=shapes)

    def submit(self, chunk: Chunk) -> None:
        self._queue.append(chunk)
        self._feed()

    def _feed(self) -> None:
        busy = [actor for actor, _ in self._at.values()]
        for actor in self._actors:
            if self._queue and actor not in busy:
                chunk = self._queue.popleft()
                self._at[actor.score.remote(chunk, self.info.shapes)] = actor, chunk

    def next(self) -> ChunkScores:
        """Wait for a chunk.

        Raises:
            EvoError: if a chunk has ended several actors, or no actor is left.
        """
        lost = self._ray.exceptions.RayActorError
        while True:
            (reference,), _ = self._ray.wait([*self._at, *self._starting], num_returns=1)
            if reference in self._starting:
                actor = self._starting.pop(reference)
                try:
                    self._get(reference)
                    self._actors.append(actor)
                except lost as error:
                    self._replace(error)
                self._feed()
                continue
            actor, chunk = self._at.pop(reference)
            try:
                data = self._get(reference)
            except lost as error:
                self._bury(actor, chunk, error)
                continue
            self._feed()
            return ChunkScores.decoded(data)

    def _bury(self, actor: Any, chunk: Chunk, error: Exception) -> None:
        """Give a dead actor's chunk to the others, and have another take its place."""
        self._actors.remove(actor)
        deaths = self._deaths[chunk.number] = self._deaths.get(chunk.number, 0) + 1
        if deaths >= _MOST_DEATHS:
            first = chunk.records[0]
            raise EvoError(
                f"{deaths} actors ended at {first.contig}:{first.pos}, the last one since {_said(error)}; is memory short?"
            ) from error
        self._queue.appendleft(chunk)
        self._replace(error)
        self._feed()

    def _replace(self, error: Exception) -> None:
        """Start an actor wherever there is room; it gets chunks when it has loaded the model."""
        if self._replacements:
            self._replacements -= 1
            actor = self._new_actor()
            self._starting[actor.ready.remote()] = actor
        elif not self._actors and not self._starting:
            raise EvoError(f"no actor is left, the last one ended since {_said(error)}") from error

    def close(self) -> None:
        for actor in (*self._actors, *self._starting.values()):
            self._ray.kill(actor)
        self._actors, self._starting = [], {}
        if self._owns:
            self._ray.shutdown()


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
