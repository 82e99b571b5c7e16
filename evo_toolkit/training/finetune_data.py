"""Labelled sequences as batches, in parts that no group straddles."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evo_data.fasta import Fasta
from evo_toolkit.errors import UsageError
from evo_toolkit.finetuning.examples import Examples, TaskKind
from evo_toolkit.finetuning.network_batches import batch_of
from evo_toolkit.finetuning.network_tasks import NetworkConfig
from evo_toolkit.finetuning.reading import read_class_fastas, read_fasta, read_table
from evo_toolkit.finetuning.reading_genome import (
    read_intervals,
    read_per_base,
    read_tracks,
    read_variants,
)
from evo_toolkit.finetuning.splits import (
    BLOCK,
    CLUSTER_K,
    SplitBy,
    grouped_folds,
    leak_report,
    require_trainable,
    split_groups,
    strata_of,
)
from evo_toolkit.training.loading import (
    EvaluationBatches,
    ResumableBatches,
    TrainingLoader,
    dealt_rank,
)

_log = logging.getLogger("evo_toolkit")


class _Numbers(Dataset[int]):
    """Sample numbers as samples: `n` counts examples across epochs; `~n` is one without weight."""

    def __init__(self, size: int, *, shuffled: bool, seed: int = 0) -> None:
        self.size, self.shuffled, self.seed = size, shuffled, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> int:
        epoch, place = divmod(number if number >= 0 else ~number, self.size)
        if self.shuffled:
            place = int(_permutation(self.size, self.seed, epoch)[place])
        return place if number >= 0 else ~place


@functools.lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Another order in every epoch."""
    return np.random.default_rng((seed, epoch)).permutation(size)


class FinetuneData(LightningDataModule):
    """Labelled sequences of a task: one fold to test on, the next to stop by, the rest to train on.

    Batches are those of `evo_toolkit.finetuning.network_batches.batch_of`.

    Attributes:
        examples: All of them, once set up.
        parts: Indices by `train`, `validation` and `test`, once set up; test may be empty.
        split: In words, what stays together.
        leaks: What test sequences share with those of training, as plain values.
        named_files: What was read of examples that are in memory.
        notes: What a reader of the results should know, a line each.
    """

    examples: Examples
    parts: dict[str, NDArray[np.int64]]

    def __init__(
        self,
        task: TaskKind,
        table: str | None = None,
        fasta: str | None = None,
        class_fastas: dict[str, str] | None = None,
        genome: str | None = None,
        regions: str | None = None,
        features: str | None = None,
        tracks: dict[str, str] | None = None,
        variants: str | None = None,
        labels: list[str] | str | None = None,
        sequence: str = "sequence",
        id: str | None = None,
        group: str | None = None,
        classes: list[str] | None = None,
        window: int | None = None,
        split_by: SplitBy = "auto",
        folds: int = 10,
        fold: int = 0,
        test: bool = True,
        kmer: int = CLUSTER_K,
        block: int = BLOCK,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Remember what to read; nothing is opened before `setup`.

        Args:
            task: binary, multiclass, multilabel, regression, per_base, track or variant.
            table: TSV, CSV or Parquet: sequences with labels, or the labels of `fasta`, `regions` or
                `variants`.
            fasta: Sequences, whose labels are in `table`.
            class_fastas: Instead: one FASTA for each class, by class.
            genome: FASTA that `regions` or `variants` are of.
            regions: BED, GFF3 or GTF: each line is one example.
            features: Of per_base: BED or GFF whose features are the classes of bases.
            tracks: Of track: bigWig by name.
            variants: VCF, BCF or a table of variants.
            labels: Columns, INFO key or attribute of the labels.
            sequence, id, group: Columns of `table` (or keys of the others).
            classes: Names and order of the classes.
            window: Bases of each window of regions or variants.
            split_by: What no part shares; see `evo_toolkit.finetuning.splits.split_groups`.
            folds: Parts of about equal size.
            fold: Which one is tested on, from 0; the next one is validated on.
            test: Whether one is held out for testing at all.
            kmer: Length of the k-mers of which clusters share one, and that leaks are told by.
            block: Bases of the stretches of `split_by: block`.
            batch_size: Examples in a batch, on each device.
            val_batch_size: The same of validation; None means `batch_size`.
            seed: Of the folds and of the order.
            num_workers: Processes that make batches; 0 makes them between steps.
        """
        super().__init__()
        self.task_kind: TaskKind = task
        self.sources: dict[str, str | dict[str, str] | None] = {
            "table": table, "fasta": fasta, "class_fastas": class_fastas, "genome": genome,
            "regions": regions, "features": features, "tracks": tracks, "variants": variants,
        }  # fmt: skip
        self.columns = {"sequence": sequence, "id": id, "group": group}
        self.labels = (labels,) if isinstance(labels, str) else tuple(labels or ())
        self.classes = tuple(classes or ())
        self.window = window
        self.split_by: SplitBy = split_by
        self.folds, self.fold, self.test = folds, fold, test
        self.kmer, self.block = kmer, block
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size or batch_size
        self.seed, self.num_workers = seed, num_workers
        self.notes: list[str] = []
        self.leaks: list[dict[str, object]] = []
        self.split = ""
        self.named_files: list[str] = []
        self._given: Examples | None = None
        self._consumed = 0
        self._counted_from: int | None = None

    @classmethod
    def of(
        cls,
        examples: Examples,
        parts: dict[str, NDArray[np.int64]] | None = None,
        **options: Any,
    ) -> FinetuneData:
        """The same of examples that are in memory, with parts (indices) or with folds as above."""
        data = cls(examples.kind, **options)
        data._given = examples
        if parts is not None:
            data.parts = {"test": np.zeros(0, np.int64), **parts}
            data.split = "as given"
        return data

    def setup(self, stage: str | None = None) -> None:
        """Read and divide the examples.

        Raises:
            ExamplesError: naming file and line of what cannot be used.
            UsageError: for arguments that do not go together.
        """
        if stage in ("fit", None):
            self._consumed, self._counted_from = 0, None
        if hasattr(self, "examples"):
            return
        for name in ("batch_size", "val_batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} must be 1 or more")
        examples = self._read() if self._given is None else self._given
        examples.require_classes(least=1)
        if not hasattr(self, "parts"):
            self.parts, self.split = self.divided(examples)
        for name in ("train", "validation"):
            if not len(self.parts[name]):
                raise UsageError(f"the {name} part has no example; give fewer folds, or more data")
        self.examples = examples
        self.notes += examples.notes
        self._say_leaks()

    @property
    def files(self) -> list[str]:
        """What is read."""
        found = list(self.named_files)
        for value in self.sources.values():
            found += [value] if isinstance(value, str) else list((value or {}).values())
        return found

    def _read(self) -> Examples:
        given = {name for name, value in self.sources.items() if value is not None}

        def need(*names: str, allow: Sequence[str] = ()) -> None:
            missing = [name for name in names if name not in given]
            odd = sorted(given - {*names, *allow})
            if missing or odd:
                what = f"{missing[0]} is missing" if missing else f"{odd[0]} does not go with it"
                raise UsageError(
                    f"task {self.task_kind} from {' and '.join(names)}: {what}; give --data.{' --data.'.join(names)}"
                )

        source: dict[str, Any] = self.sources
        named: dict[str, Any] = {"labels": self.labels} if self.labels else {}
        group, classes = self.columns["group"], self.classes
        if self.task_kind == "variant":
            need("variants", "genome", allow=("table",))
            if self.window is None:
                raise UsageError("variants need a window; give --data.window, such as 1024")
            with Fasta(source["genome"]) as genome:
                return read_variants(
                    source["variants"], genome, window=self.window, table=source["table"],
                    group=group, classes=classes, **named,
                )  # fmt: skip
        if "regions" in given:
            key = {"per_base": "features", "track": "tracks"}.get(self.task_kind)
            need("regions", "genome", *([key] if key else []), allow=() if key else ("table",))
            with Fasta(source["genome"]) as genome:
                if key == "features":
                    return read_per_base(
                        source["regions"], genome, source["features"], classes=classes,
                        window=self.window,
                    )  # fmt: skip
                if key == "tracks":
                    return read_tracks(
                        source["regions"], genome, source["tracks"], window=self.window
                    )
                return read_intervals(
                    source["regions"], genome, self.task_kind, table=source["table"], group=group,
                    id=self.columns["id"], classes=classes, window=self.window, **named,
                )  # fmt: skip
        if self.task_kind == "track":
            need("regions", "genome", "tracks")
        if "class_fastas" in given:
            need("class_fastas")
            return read_class_fastas(
                {k: Path(v) for k, v in source["class_fastas"].items()}, self.task_kind
            )
        if "fasta" in given:
            need("fasta", "table")
            own: dict[str, Any] = {"id": self.columns["id"]} if self.columns["id"] else {}
            return read_fasta(
                source["fasta"], source["table"], self.task_kind, group=group, classes=classes,
                **named, **own,
            )  # fmt: skip
        need("table")
        return read_table(
            source["table"], self.task_kind, sequence=str(self.columns["sequence"]),
            id=self.columns["id"], group=group, classes=classes, **named,
        )  # fmt: skip

    def groups(self, examples: Examples) -> tuple[NDArray[np.int64], str]:
        """What stays together, and is drawn together by intervals, `[n]`; and in words why."""
        return split_groups(examples, self.split_by, k=self.kmer, block=self.block)

    def divided(self, examples: Examples) -> tuple[dict[str, NDArray[np.int64]], str]:
        """The parts that folds make of examples, and in words what stays together.

        Raises:
            ExamplesError, UsageError: if they cannot be divided so.
        """
        if self.folds < (3 if self.test else 2) or not 0 <= self.fold < self.folds:
            raise UsageError(
                f"folds is {self.folds} and fold {self.fold}; folds must be at least {3 if self.test else 2}, and fold one of them, from 0"
            )
        groups, why = self.groups(examples)
        made = grouped_folds(groups, self.folds, strata=strata_of(examples), seed=self.seed)
        held = [made[self.fold].test, made[(self.fold + 1) % self.folds].test]
        test, validation = held if self.test else (np.zeros(0, np.int64), held[0])
        train = np.setdiff1d(np.arange(len(examples)), np.concatenate([test, validation]))
        fold = made[0]._replace(train=train, test=test)
        require_trainable(examples, [fold])
        return {"train": train, "validation": validation, "test": test}, why

    def _say_leaks(self) -> None:
        """One warning where the tested sequences stand among those that are trained on."""
        if self.task_kind == "variant" or not len(self.parts["test"]):
            return
        known = np.concatenate([self.parts["train"], self.parts["validation"]])
        leak = leak_report(
            self.examples.subset(known).sequences,
            self.examples.subset(self.parts["test"]).sequences,
            k=self.kmer,
            against="those that are trained or validated on",
        )
        if leak.found:
            self.leaks.append(leak.json())
            note = f"{leak}; the figures will be too good: split_by cluster keeps them apart"
            self.notes.append(note)
            _log.warning("%s", note)

    # ---- batches ---------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[int]:
        """The loader of this rank, which goes on where the run is."""
        rank, num_ranks = dealt_rank(self.trainer)
        self._consumed = self.consumed
        self._step = self.batch_size * num_ranks
        self._counted_from = self._batches_processed() if self.trainer is not None else None
        indices = self.parts["train"]
        batches = ResumableBatches(
            len(indices),
            batch_size=self.batch_size,
            rank=rank,
            num_ranks=num_ranks,
            consumed=lambda: self.consumed,
            accumulate=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
        )
        return TrainingLoader(
            _Numbers(len(indices), shuffled=True, seed=self.seed),
            batch_sampler=batches,
            collate_fn=functools.partial(self.batch, indices),
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader[int]:
        """Every example of validation once, over all ranks."""
        rank, num_ranks = dealt_rank(self.trainer)
        indices = self.parts["validation"]
        batches = EvaluationBatches(
            len(indices), batch_size=self.val_batch_size, rank=rank, num_ranks=num_ranks
        )
        return DataLoader(
            _Numbers(len(indices), shuffled=False),
            batch_sampler=batches,
            collate_fn=functools.partial(self.batch, indices),
            num_workers=self.num_workers,
        )

    def batch(self, indices: NDArray[np.int64], places: Sequence[int]) -> dict[str, Tensor]:
        """The batch of places among indices; ~place is one without weight. With `index` `[n]`."""
        chosen = [int(indices[p]) if p >= 0 else ~int(indices[~p]) for p in places]
        found = batch_of(self.examples, chosen, self.network)
        found["index"] = torch.tensor(chosen)
        return found

    @property
    def network(self) -> NetworkConfig:
        """What the run's network reads."""
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        config: NetworkConfig = NetworkConfig() if module is None else module.network
        return config

    # ---- where a run is --------------------------------------------------------------------------

    @property
    def consumed(self) -> int:
        """Examples that the run has used, of all ranks."""
        if self._counted_from is None:
            return self._consumed
        return self._consumed + (self._batches_processed() - self._counted_from) * self._step

    def _batches_processed(self) -> int:
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def state_dict(self) -> dict[str, Any]:
        """Examples consumed, and of which data."""
        return {"consumed": self.consumed, "digest": self.examples.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the examples that a checkpoint has consumed."""
        self._consumed, self._counted_from = int(state_dict["consumed"]), None
        if hasattr(self, "examples") and state_dict.get("digest") != self.examples.digest:
            _log.warning(
                "the checkpoint was trained on other examples; the run goes on with these, at %d",
                self._consumed,
            )
