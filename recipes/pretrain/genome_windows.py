"""Random windows of packed genomes for training: drawn on the host, gathered on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pack_genomes import Bytes, PackedGenomes, PackError
from torch import Tensor

EOD = 0
UPPER = 0xDF  # clears the bit that makes an ASCII letter lower case


def byte_table(upper: float, lower: float) -> Tensor:
    """`[256]` float32: `upper` at ACGT, `lower` at acgt, 0 elsewhere."""
    table = torch.zeros(256)
    table[list(b"ACGT")] = upper
    table[list(b"acgt")] = lower
    return table


def complement_table() -> Tensor:
    """`[256]` uint8: complements of ACGT in their case; every other byte (N, end of document) stays."""
    table = torch.arange(256, dtype=torch.uint8)
    table[list(b"ACGTacgt")] = torch.tensor(list(b"TGCAtgca"), dtype=torch.uint8)
    return table


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Training text, cut into segments within which any window may lie.

    Attributes:
        text: ASCII bases with their case, `EOD` between records that share a segment.
        start, length: Of each segment, int64.
        weight: Of each segment's positions.
    """

    text: Bytes
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    weight: NDArray[np.float64]


def build_stream(packed: PackedGenomes, span: int) -> Stream:
    """Arrange the records so that every segment holds at least one window of `span` tokens.

    A record that long is a segment. The shorter ones of a genome are joined, with `EOD` between
    them; what is still too short (small phages) is joined across genomes and repeated if need be.
    """
    short: dict[int, list[Bytes]] = {}
    segments: list[tuple[Bytes, float]] = []
    for record in packed.records:
        if record.length >= span:
            weight = packed.genomes[record.genome].weight
            segments.append((packed.record_bytes(record), weight))
        elif record.length:
            short.setdefault(record.genome, []).append(packed.record_bytes(record))
    leftover: list[Bytes] = []
    leftover_mass = 0.0
    for genome, pieces in short.items():
        joined = join_records(pieces)
        weight = packed.genomes[genome].weight
        if joined.size >= span:
            segments.append((joined, weight))
        else:
            leftover += pieces
            leftover_mass += joined.size * weight
    if leftover:
        joined = join_records(leftover)
        joined = join_records([joined] * -(-span // joined.size))
        segments.append((joined, leftover_mass / joined.size))
    if not segments:
        raise PackError("the training packing holds no bases; pack genomes with pack_genomes.py")
    length = np.array([text.size for text, _ in segments], np.int64)
    return Stream(
        text=np.concatenate([text for text, _ in segments]),
        start=np.cumsum(length) - length,
        length=length,
        weight=np.array([weight for _, weight in segments]),
    )


def join_records(pieces: Sequence[Bytes]) -> Bytes:
    """The records in one text, `EOD` between them."""
    mark = np.array([EOD], np.uint8)
    parts = [mark] * (2 * len(pieces) - 1)
    parts[::2] = pieces
    return np.concatenate(parts)


class WindowSampler:
    """Random windows of a stream: position weighted, strand by a coin, all from (seed, step)."""

    def __init__(
        self, stream: Stream, device: torch.device, *, seed: int, soft_mask_weight: float = 0.1
    ) -> None:
        self.stream = stream
        self.seed = seed
        self.device = device
        self.text = torch.from_numpy(stream.text).to(device)
        self.complement = complement_table().to(device)
        self.loss_weight = byte_table(1.0, soft_mask_weight).to(device)

    def plan(self, step: int, count: int, span: int) -> NDArray[np.int64]:
        """`[count, 2]`: where each window of `span` tokens starts in the stream, and 1 for reverse."""
        random = np.random.default_rng((self.seed, step))
        stream = self.stream
        mass = np.cumsum(stream.weight * (stream.length - span + 1))
        point = random.random(count) * mass[-1]
        segment = np.minimum(np.searchsorted(mass, point, side="right"), mass.size - 1)
        offset = random.integers(0, stream.length[segment] - span + 1)
        return np.stack([stream.start[segment] + offset, random.integers(0, 2, count)], axis=1)

    def gather(self, plan: NDArray[np.int64], span: int) -> tuple[Tensor, Tensor]:
        """Tokens `[count, span]` (int64) and the loss weights of their bases `[count, span]`.

        A weight belongs to the base that is predicted: 0 for the first of the window, for what is
        not ACGT, and for the first after an end of document.
        """
        where = torch.from_numpy(plan)
        if self.device.type == "cuda":
            where = where.pin_memory().to(self.device, non_blocking=True)
        raw = gather_bytes(self.text, self.complement, where[:, 0], where[:, 1] > 0, span, span)
        weights = self.loss_weight[raw.int()]
        weights[:, 1:] *= raw[:, :-1] != EOD
        weights[:, 0] = 0
        return (raw & UPPER).long(), weights

    def batch(self, step: int, count: int, span: int) -> tuple[Tensor, Tensor]:
        """`gather` of `plan`."""
        return self.gather(self.plan(step, count, span), span)


def gather_bytes(
    text: Tensor, complement: Tensor, start: Tensor, reverse: Tensor, span: Tensor | int, width: int
) -> Tensor:
    """Windows of a byte string in reading direction, `[count, width]` uint8.

    Args:
        text: `[T]` uint8.
        start: First position of each window on the forward strand, `[count]`.
        reverse: Whether to read the reverse complement, `[count]`.
        span: Bases in each window, `[count]` or one number; positions past it repeat some base.
    """
    # The bound stays a number where it is one: a tensor made of it would wait for the device.
    last = (span[:, None] if isinstance(span, Tensor) else span) - 1
    step = torch.arange(width, device=text.device).clamp(max=last)
    index = start[:, None] + torch.where(reverse[:, None], last - step, step)
    raw = text[index]
    return torch.where(reverse[:, None], complement[raw.int()], raw)
