"""Training on synthetic tasks: data modules of the four tasks, and modules that count right answers.

Batches have the form that `EvoModule` describes, with weights of 1 where an answer is asked for and 0
elsewhere. Training batches are drawn without end and never repeat; batch n is a function of the
task, the seed and n alone.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from evo_toolkit.errors import UsageError
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.loss import NextTokenObjective
from evo_toolkit.training.module import Batch, EvoModule
from evo_toolkit.training.optim import ParameterGroup, build_optimizer, parameter_groups
from evo_toolkit.training.synthetic_tasks import (
    Sequences,
    associative_recall,
    compression,
    induction_head,
    multi_token_recall,
)

_log = logging.getLogger("evo_toolkit")

# First words of a generator's key: training and validation never share a sequence's generator.
_TRAIN, _VALIDATION = 0, 1


class _Batches(IterableDataset[dict[str, Tensor]]):
    """Training batches from number `first` on, every `step`-th."""

    def __init__(self, data: SyntheticData, first: int, step: int) -> None:
        self.data, self.first, self.step = data, first, step

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        number = self.first
        while True:
            yield self.data.batch(number)
            number += self.step


class _Loader(DataLoader[dict[str, Tensor]]):
    """A loader that Lightning takes for resumable; its place is in the data module's state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class SyntheticData(LightningDataModule):
    """Batches of one synthetic task; subclasses draw the sequences.

    Attributes:
        context_length: Inputs of a sequence.
    """

    def __init__(
        self, context_length: int, batch_size: int = 32, val_sequences: int = 512, seed: int = 0
    ) -> None:
        """Describe the batches; nothing is drawn yet.

        Args:
            context_length: Inputs of a sequence, in tokens.
            batch_size: Sequences in a batch, on each device.
            val_sequences: Sequences to validate on.
            seed: Chooses every sequence, of training and validation.
        """
        super().__init__()
        self.context_length = context_length
        self.batch_size = batch_size
        self.val_sequences = val_sequences
        self.seed = seed
        self._consumed = 0
        self._counted_from: int | None = None

    @abstractmethod
    def draw(self, generator: np.random.Generator, number: int) -> Sequences:
        """So many sequences of the task."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of guessing among the symbols that an answer can be."""

    def setup(self, stage: str | None = None) -> None:
        """Refuse arguments that do not fit.

        Raises:
            UsageError: saying which, and what is allowed.
        """
        for name in ("batch_size", "val_sequences"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} must be 1 or more")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} must be 0 or more")
        highest = int(self.draw(np.random.default_rng(0), 8).input_ids.max())
        if highest > 255:
            raise UsageError(f"the task has symbols up to {highest}; give fewer: tokens are bytes")
        if stage in ("fit", None):
            self._consumed, self._counted_from = 0, None

    def batch(self, number: int) -> dict[str, Tensor]:
        """Training batch `number`, from 0."""
        generator = np.random.default_rng((self.seed, _TRAIN, number))
        return _as_batch(self.draw(generator, self.batch_size))

    def validation_batch(self) -> dict[str, Tensor]:
        """All sequences of validation."""
        generator = np.random.default_rng((self.seed, _VALIDATION))
        return _as_batch(self.draw(generator, self.val_sequences))

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """This rank's share of the batches, from where the run is."""
        trainer: Any = self.trainer
        self._consumed = self.consumed
        self._counted_from = self._batches_processed() if trainer is not None else None
        rank, ranks = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return _Loader(_Batches(self, self._consumed + rank, ranks), batch_size=None)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """All sequences of validation in one batch; every rank has the same."""
        return DataLoader([self.validation_batch()], batch_size=None)  # type: ignore[arg-type]

    @property
    def consumed(self) -> int:
        """Batches that the run has used, of all ranks."""
        if self._counted_from is None:
            return self._consumed
        trainer: Any = self.trainer
        used = self._batches_processed() - self._counted_from
        return self._consumed + used * int(trainer.world_size)

    def _batches_processed(self) -> int:
        trainer: Any = self.trainer
        return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def state_dict(self) -> dict[str, Any]:
        """Batches consumed."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the batches that a checkpoint has consumed."""
        self._consumed, self._counted_from = int(state_dict["consumed"]), None


def _as_batch(sequences: Sequences) -> dict[str, Tensor]:
    return {
        "input_ids": torch.from_numpy(sequences.input_ids),
        "targets": torch.from_numpy(sequences.targets),
        "weights": torch.from_numpy(sequences.answers.astype(np.float32)),
    }


class InductionHead(SyntheticData):
    """`synthetic_tasks.induction_head`."""

    def __init__(self, context_length: int = 30, num_symbols: int = 20, **kwargs: Any) -> None:
        """Sizes as in H3 by default.

        Args:
            context_length: Inputs of a sequence, both markers included.
            num_symbols: Kinds of symbols, the marker included.
            kwargs: As of `SyntheticData`.
        """
        super().__init__(context_length, **kwargs)
        self.num_symbols = num_symbols

    @property
    def chance(self) -> float:
        return 1 / (self.num_symbols - 1)

    def draw(self, generator: np.random.Generator, number: int) -> Sequences:
        return induction_head(
            generator, number, length=self.context_length, num_symbols=self.num_symbols
        )


class AssociativeRecall(SyntheticData):
    """`synthetic_tasks.associative_recall`."""

    def __init__(
        self, context_length: int = 19, num_keys: int = 4, num_values: int = 4, **kwargs: Any
    ) -> None:
        """Sizes as in H3 by default: 20 symbols with the answer.

        Args:
            context_length: Inputs of a sequence: an odd number.
            num_keys, num_values: Kinds of symbols.
            kwargs: As of `SyntheticData`.
        """
        super().__init__(context_length, **kwargs)
        self.num_keys, self.num_values = num_keys, num_values

    @property
    def chance(self) -> float:
        return 1 / self.num_values

    def draw(self, generator: np.random.Generator, number: int) -> Sequences:
        return associative_recall(
            generator,
            number,
            length=self.context_length,
            num_keys=self.num_keys,
            num_values=self.num_values,
        )


class MultiTokenRecall(SyntheticData):
    """`synthetic_tasks.multi_token_recall`."""

    def __init__(
        self,
        context_length: int = 47,
        num_entries: int = 4,
        key_symbols: int = 4,
        key_length: int = 2,
        value_symbols: int = 8,
        value_length: int = 2,
        **kwargs: Any,
    ) -> None:
        """Describe the dictionaries.

        Args:
            context_length: Inputs of a sequence: a multiple of `key_length + value_length`, less 1.
            num_entries: Words in the dictionary of a sequence.
            key_symbols, value_symbols: Kinds of symbols.
            key_length, value_length: Symbols of a key and of a value.
            kwargs: As of `SyntheticData`.
        """
        super().__init__(context_length, **kwargs)
        self.num_entries = num_entries
        self.key_symbols, self.key_length = key_symbols, key_length
        self.value_symbols, self.value_length = value_symbols, value_length

    @property
    def chance(self) -> float:
        return 1 / self.value_symbols

    def draw(self, generator: np.random.Generator, number: int) -> Sequences:
        return multi_token_recall(
            generator,
            number,
            length=self.context_length,
            num_entries=self.num_entries,
            key_symbols=self.key_symbols,
            key_length=self.key_length,
            value_symbols=self.value_symbols,
            value_length=self.value_length,
        )


class Compression(SyntheticData):
    """`synthetic_tasks.compression`; trained by `CompressionModule`."""

    def __init__(self, context_length: int = 17, num_symbols: int = 16, **kwargs: Any) -> None:
        """Describe the sequences.

        Args:
            context_length: Inputs of a sequence: the symbols and the mark.
            num_symbols: Kinds of symbols.
            kwargs: As of `SyntheticData`.
        """
        super().__init__(context_length, **kwargs)
        self.num_symbols = num_symbols

    @property
    def chance(self) -> float:
        return 1 / self.num_symbols

    def draw(self, generator: np.random.Generator, number: int) -> Sequences:
        return compression(
            generator, number, length=self.context_length, num_symbols=self.num_symbols
        )


class AnswerObjective(NextTokenObjective):
    """The loss of the answers, with logits of no other position."""

    def forward(
        self, input_ids: Tensor, targets: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor] | Tensor:
        if weights is None:
            return super().forward(input_ids, targets, weights)
        asked = weights > 0
        return self.loss_of(self.hidden(input_ids)[asked], targets[asked], weights[asked])


class SyntheticModule(EvoModule):
    """Trains on the answers of a synthetic task and validates by how many are right.

    Logged in validation: `val/accuracy`, the share of right answers; `val/sequence_accuracy`, the
    share of sequences without a wrong one; `val/loss` in nats per answer.
    """

    objective: NextTokenObjective | None

    def build_objective(self, model: StripedHyena2) -> NextTokenObjective:
        return AnswerObjective(model, checkpoint_blocks=self.checkpoint_blocks)

    def on_validation_epoch_start(self) -> None:
        self._counts = torch.zeros(5, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self.objective is not None
        asked, targets = batch["weights"] > 0, batch["targets"]
        with torch.compiler.set_stance("force_eager"):
            logits = self.model.head(self.objective.hidden(batch["input_ids"]))
        nll = nn.functional.cross_entropy(logits[asked].float(), targets[asked], reduction="sum")
        right = logits.argmax(-1) == targets
        whole = (right | ~asked).all(1)
        counts = [nll, (right & asked).sum(), asked.sum(), whole.sum(), whole.new_tensor(len(whole), dtype=torch.int64)]  # fmt: skip
        self._counts += torch.stack([count.double() for count in counts])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            dist.all_reduce(self._counts)
        nll, right, answers, whole, sequences = self._counts.tolist()
        logged = {
            "val/accuracy": right / answers,
            "val/sequence_accuracy": whole / sequences,
            "val/loss": nll / answers,
        }
        self.log_validation(logged)
        if self.trainer.progress_bar_callback is None and self.trainer.is_global_zero:
            _log.info(
                "step %d  validation accuracy %.4f, %.4f of sequences without a mistake",
                self.trainer.global_step,
                logged["val/accuracy"],
                logged["val/sequence_accuracy"],
            )


class CompressionObjective(AnswerObjective):
    """Tells all symbols of a sequence from the last position's output alone.

    That output and the number of the symbol asked for (as sines and cosines) go through an MLP into
    the model's own head: no other position can help.
    """

    def __init__(self, model: StripedHyena2, *, seed: int, checkpoint_blocks: int = 0) -> None:
        super().__init__(model, checkpoint_blocks=checkpoint_blocks)
        D = model.config.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decoder = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))
        places = _sinusoids(model.config.context_length - 1, D)
        self.register_buffer("places", places, persistent=False)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """One row for each symbol before the mark, `[B, L - 1, D]`."""
        mark = super().hidden(input_ids)[:, -1:]
        # As the head does: whatever the blocks compute in.
        rows: Tensor = self.decoder(self.model.norm(mark.float()) + self.places)
        return rows


def _sinusoids(number: int, width: int) -> Tensor:
    """`[number, width]`: sines, then cosines, of wavelengths from 2 pi to `4 pi number`."""
    place = torch.arange(number, dtype=torch.float32)[:, None]
    rates = torch.logspace(0, -np.log10(2 * number), width // 2)
    return torch.cat([(place * rates).sin(), (place * rates).cos()], dim=1)


class CompressionModule(SyntheticModule):
    """`SyntheticModule` for `Compression`: with a decoder behind the model, trained with it."""

    def build_objective(self, model: StripedHyena2) -> NextTokenObjective:
        return CompressionObjective(model, seed=self.seed, checkpoint_blocks=self.checkpoint_blocks)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert isinstance(self.objective, CompressionObjective)
        decoder = dict(self.objective.decoder.named_parameters(prefix="decoder"))
        rate = self.optimizer_config.learning_rate
        self._groups = [
            *parameter_groups(self.model, self.optimizer_config),
            ParameterGroup("decoder", decoder, rate, 0.0),
        ]
        return build_optimizer(self._groups, self.optimizer_config)


class StopWhenSolved(Callback):
    """Ends a run when enough answers are right."""

    def __init__(self, accuracy: float = 0.999) -> None:
        """Say what enough is.

        Args:
            accuracy: Share of right answers in a validation, from 0 to 1.
        """
        if not 0 < accuracy <= 1:
            raise UsageError(f"accuracy is {accuracy}; it must be above 0 and at most 1")
        self.accuracy = accuracy

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reached = trainer.callback_metrics.get("val/accuracy")
        if trainer.state.fn == "fit" and reached is not None and reached >= self.accuracy:
            trainer.should_stop = True
