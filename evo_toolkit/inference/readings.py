"""Strands of sequences as a model reads them, and pools over their positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo_data.alphabet import reverse_complement

Pool = Literal["mean", "max", "last", "center", "none"]
POOLS: tuple[Pool, ...] = ("mean", "max", "last", "center", "none")

Strands = Literal["fwd", "rc", "both", "concat"]
STRANDS: tuple[Strands, ...] = ("fwd", "rc", "both", "concat")

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One strand of a sequence, as a model reads it.

    Attributes:
        tokens: `[L]` in reading direction.
        mask: `[L]` True where the position counts, in reading direction; None is everywhere.
        center: Position that "center" takes, in reading direction.
        reverse: Whether rows of "none" are turned round, so that they follow the other strand.
    """

    tokens: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None = None
    center: int
    reverse: bool = False


def readings_of(
    tokens: NDArray[np.uint8], mask: NDArray[np.bool_] | None, strands: Strands
) -> list[Reading]:
    """The readings of a sequence for "fwd", "rc", or both; "center" is the same base in each.

    Args:
        tokens: `[L]` of the forward strand.
        mask: `[L]` of the forward strand.
    """
    kept = np.arange(len(tokens)) if mask is None else np.flatnonzero(mask)
    center = int(kept[len(kept) // 2]) if len(kept) else 0
    found = []
    if strands != "rc":
        found.append(Reading(tokens=tokens, mask=mask, center=center))
    if strands != "fwd":
        other = np.frombuffer(reverse_complement(tokens.tobytes()), dtype=np.uint8).copy()
        turned = None if mask is None else mask[::-1]
        found.append(
            Reading(tokens=other, mask=turned, center=len(tokens) - 1 - center, reverse=True)
        )
    return found


class Pooled:
    """The pool of one reading at one layer, chunk after chunk."""

    def __init__(self, reading: Reading, pool: Pool) -> None:
        self._reading, self._pool = reading, pool
        self._kept = 0
        self._value: Tensor | None = None
        self._rows: list[Values] = []

    def add(self, values: Tensor, start: int) -> None:
        """Take the outputs `[n, C]` at the positions from `start` on."""
        if self._pool == "center":
            at = self._reading.center - start
            if 0 <= at < len(values):
                self._value = values[at].clone()
            return
        if self._reading.mask is not None:
            mask = self._reading.mask[start : start + len(values)]
            values = values[torch.from_numpy(mask.copy()).to(values.device)]
        if self._pool == "none":
            self._rows.append(values.float().cpu().numpy().copy())
        elif len(values):
            self._kept += len(values)
            if self._pool == "last":
                self._value = values[-1].clone()  # a view would keep every position alive
            elif self._pool == "max":
                found = values.amax(dim=0)
                self._value = found if self._value is None else torch.maximum(self._value, found)
            else:
                total = values.sum(dim=0, dtype=torch.float64)
                self._value = total if self._value is None else self._value + total

    def partial(self) -> tuple[int, Tensor | None, list[Values]]:
        """What has been taken so far, on the CPU, for `follow`."""
        return self._kept, None if self._value is None else self._value.cpu(), self._rows

    def follow(self, part: tuple[int, Tensor | None, list[Values]]) -> None:
        """Take what another pool of the same reading took of the positions that come next."""
        kept, value, rows = part
        self._kept += kept
        self._rows = [*self._rows, *rows]
        if self._value is None or value is None or self._pool in ("center", "last"):
            self._value = self._value if value is None else value
        elif self._pool == "max":
            self._value = torch.maximum(self._value, value)
        else:
            self._value = self._value + value

    def result(self) -> Values:
        """`[C]`, or `[positions, C]` for "none"."""
        if self._pool == "none":
            rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows)
            return rows[::-1].copy() if self._reading.reverse else rows
        assert self._value is not None, "a mask that keeps nothing was let through"
        value = self._value / self._kept if self._pool == "mean" else self._value
        found: Values = value.float().cpu().numpy()
        return found
