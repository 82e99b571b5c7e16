"""Learning-rate schedules: the share of the peak rate at a step, a pure function of the step.

Nothing about a schedule is stored in checkpoints: a resumed run follows the schedule of its own
configuration from the step where it stands. So a run with `wsd` can be continued for longer by
resuming from a checkpoint before its decay began.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from evo_toolkit.errors import UsageError

Shape = Literal["wsd", "cosine", "constant"]
Decay = Literal["linear", "sqrt", "cosine"]


# Without slots: jsonargparse reads defaults with vars().
@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Shape of the learning rate over a run.

    Attributes:
        shape: `wsd` (warm up, stay, decay at the end), `cosine` (warm up, then half a cosine down)
            or `constant` (warm up, stay).
        warmup_fraction: Share of all steps in which the rate rises in a straight line.
        warmup_steps: The same as a number of steps, which then counts instead.
        decay_fraction: Share of all steps in which `wsd` falls, at the end.
        decay: Line that `wsd` falls along: `linear`, `sqrt` (1 - sqrt of the progress) or `cosine`.
        min_ratio: Share of the peak rate that the line ends at, after the last update: no update is
            wasted at a rate of zero.
    """

    shape: Shape = "wsd"
    warmup_fraction: float = 0.02
    warmup_steps: int | None = None
    decay_fraction: float = 0.2
    decay: Decay = "linear"
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup_fraction", "decay_fraction", "min_ratio"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"schedule.{name} is {value}; it must lie between 0 and 1")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise UsageError(f"schedule.warmup_steps is {self.warmup_steps}; it must be at least 0")

    def factor(self, step: int, total_steps: int) -> float:
        """Share of the peak learning rate for the update number `step`.

        Args:
            step: Updates made before, 0 for the first.
            total_steps: Updates of the whole run, at least 1.

        Returns:
            At most 1: the warm-up's last update and all until the decay's first have 1. Beyond
            `total_steps`, `min_ratio`.
        """
        warmup = self.warmup_steps
        if warmup is None:
            warmup = math.ceil(self.warmup_fraction * total_steps)
        warmup = min(warmup, total_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.shape == "constant":
            return 1.0
        if self.shape == "cosine":
            length, decay = total_steps - warmup, "cosine"
        else:
            length = min(math.ceil(self.decay_fraction * total_steps), total_steps - warmup)
            decay = self.decay
        if length <= 0:
            return 1.0
        progress = min(max((step - (total_steps - length)) / length, 0.0), 1.0)
        if decay == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * progress))
        elif decay == "sqrt":
            share = 1 - math.sqrt(progress)
        else:
            share = 1 - progress
        return self.min_ratio + (1 - self.min_ratio) * share
