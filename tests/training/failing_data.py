"""Toy data of which the process of one rank goes wrong after the first update."""

from __future__ import annotations

import os
import signal
from typing import Any

from torch import Tensor
from toy_data import ToyData


class FailingData(ToyData):
    """ToyData that raises, is killed or is told to end on one rank."""

    def __init__(self, genomes: str, how: str, who: int, **kwargs: Any) -> None:
        super().__init__(genomes, **kwargs)
        self.how, self.who = how, who

    def on_before_batch_transfer(self, batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        trainer: Any = self.trainer
        if trainer.global_rank == self.who and trainer.global_step == 1:
            if self.how == "raises":
                raise OSError("the disk is gone")
            os.kill(os.getpid(), {"killed": signal.SIGKILL, "told": signal.SIGTERM}[self.how])
        return batch
