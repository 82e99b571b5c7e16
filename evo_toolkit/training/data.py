"""Genomes as batches: from FASTA files or a prepared corpus to what a model trains on.

How far a run has come is one number, the samples that its optimizer has used. Checkpoints hold it,
and a run that resumes reads the samples it would have read, with other ranks, rows or workers too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from evo_data.codon_positions import CodonPositions, read_codon_positions
from evo_data.corpus import Corpus
from evo_data.errors import EvoDataError
from evo_data.split_manifest import read_split
from evo_data.splits import Segment, split_by_blocks, split_by_contigs, whole_records, without_gaps
from evo_data.training_windows import SOFT_MASK_WEIGHT, Strands, TrainingWindows
from evo_toolkit.errors import UsageError
from evo_toolkit.training.genome_cache import open_genomes
from evo_toolkit.training.loading import (
    EvaluationBatches,
    ResumableBatches,
    Row,
    TrainingLoader,
    WindowDataset,
    batch_of,
    dealt_rank,
)

_log = logging.getLogger("evo_toolkit")

# Share of bases in the windows, below which most of the work goes into padding.
_WORTH_SAYING = 0.5


class GenomeDataModule(LightningDataModule):
    """Windows of genomes for training and validation.

    Batches are `{"input_ids", "targets": int64 [B, L], "weights": float32 [B, L], "group":
    int64 [B]}` for B rows of L tokens: targets are the token after each input, weights what each
    target counts in the loss (1; 0.1 soft-masked; 0 not scored), and group an index of
    `group_names`. The trainer needs `use_distributed_sampler=False`: samples are dealt to the ranks
    here.

    Attributes:
        windows: The training windows, once set up.
        val_windows: Those of validation, or None.
    """

    def __init__(
        self,
        genomes: list[str] | str,
        context_length: int = 8192,
        batch_size: int = 8,
        val_genomes: list[str] | str | None = None,
        val_fraction: float | None = None,
        val_contigs: list[str] | None = None,
        split: str | None = None,
        cluster_weights: bool = True,
        weights: dict[str, float] | None = None,
        strands: Strands = "random",
        soft_mask_weight: float = SOFT_MASK_WEIGHT,
        tags: dict[str, str] | None = None,
        skip_gaps: bool = True,
        seed: int = 0,
        val_batch_size: int | None = None,
        val_strands: Strands = "forward",
        val_annotations: list[str] | str | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        """Remember what to read; nothing is opened before `prepare_data` and `setup`.

        Args:
            genomes: A folder made by `evo-toolkit data prepare`; or files of genomes (FASTA,
                GenBank, also compressed) or folders of them, which are prepared in the cache first.
            context_length: Tokens that the model reads at once.
            batch_size: Windows in a batch, on each device.
            val_genomes: Other genomes (as `genomes`) to validate on.
            val_fraction: Share of the genomes that is held out for validation, in blocks.
            val_contigs: Names or patterns of the records that are held out for validation.
            split: A file made by `evo-toolkit data split`. At most one of these four is given.
            cluster_weights: Whether a genome of a cluster of n near strains counts 1/n.
            weights: Factors of how often windows come, by name of genome or of group.
            strands: Strand of training windows: forward, random, or both (each window twice).
            soft_mask_weight: Weight of soft-masked (lower-case) bases in the training loss. In
                validation they count as others do.
            tags: Text by name of genome that stands before its stretches, unscored (a lineage).
            skip_gaps: Whether runs of more than 100 N are cut out, which reads the genomes once when
                a run begins.
            seed: Chooses order and strands.
            val_batch_size: Windows in a batch of validation; None means `batch_size`.
            val_strands: Strand of validation windows.
            val_annotations: GFF3 files of the validation genomes; batches of validation then hold
                `codon_position` int64 `[B, L]` of the targets: 0, 1, 2, or -1 outside of genes.
            num_workers: Processes that read, on each device; 0 reads between steps.
            cache_dir: Where genomes are prepared; None means the toolkit's cache. Machines of one
                run must share it.
        """
        super().__init__()
        # One rank prepares for all: what is prepared may lie on a disk that machines share.
        self.prepare_data_per_node = False
        self.genomes = [genomes] if isinstance(genomes, str | Path) else list(genomes)
        self.val_genomes = [val_genomes] if isinstance(val_genomes, str | Path) else val_genomes
        self.context_length = context_length
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.val_contigs = val_contigs
        self.split = split
        self.cluster_weights = cluster_weights
        self.weights = weights
        self.strands: Strands = strands
        self.soft_mask_weight = soft_mask_weight
        self.tags = tags
        self.skip_gaps = skip_gaps
        self.seed = seed
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.val_strands: Strands = val_strands
        self.val_annotations = [val_annotations] if isinstance(val_annotations, str | Path) else val_annotations  # fmt: skip
        self.num_workers = num_workers
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.windows: TrainingWindows | None = None
        self.val_windows: TrainingWindows | None = None
        self._codon_positions: CodonPositions | None = None
        self._groups: list[str] = []
        self._consumed = 0
        self._counted_from: int | None = None
        self._step_samples = 0

    @property
    def group_names(self) -> list[str]:
        """Names of the groups that `group` in a batch counts, of training and validation."""
        return list(self._groups)

    @property
    def consumed(self) -> int:
        """Samples that optimizer steps have used, of all ranks, since the run began."""
        if self._counted_from is None:
            return self._consumed
        return (
            self._consumed + (self._batches_processed() - self._counted_from) * self._step_samples
        )

    def prepare_data(self) -> None:
        """Prepare genomes that are no corpus yet; on one process only.

        Raises:
            EvoDataError, UsageError: if genomes cannot be used, or arguments do not fit.
        """
        self._check_arguments()
        for genomes in (self.genomes, self.val_genomes):
            if genomes is not None:
                open_genomes(genomes, self.cache_dir, prepare=True)

    def setup(self, stage: str | None = None) -> None:
        """Open the corpora and plan the windows.

        Raises:
            EvoDataError, UsageError: if there is nothing to train on, or arguments do not fit.
        """
        if stage in ("fit", None):
            self._consumed, self._counted_from = 0, None
        if self.windows is not None:
            return
        self._check_arguments()
        corpus = open_genomes(self.genomes, self.cache_dir)
        val_corpus, train, val = self._parts(corpus)
        if self.skip_gaps:
            train = without_gaps(corpus, train)
            val = val and without_gaps(val_corpus, val)
        genomes = [*corpus.genomes, *val_corpus.genomes]
        self._groups = sorted({genome.group for genome in genomes})
        self.windows = TrainingWindows(
            corpus,
            context_length=self.context_length,
            segments=train,
            cluster_weights=self.cluster_weights,
            weights=self.weights,
            strands=self.strands,
            seed=self.seed,
            shift=True,
            soft_mask_weight=self.soft_mask_weight,
            tags=self.tags,
            groups=self._groups,
        )
        self._say_if_mostly_empty(self.windows)
        if self.batch_size > len(self.windows):
            _log.warning(
                "batch_size %d is more than the %d training windows: an update reads some of them "
                "more than once; give a smaller one, or a shorter context_length",
                self.batch_size,
                len(self.windows),
            )
        if val is not None:
            # In a keyed order too, so that a few batches are a fair sample of all.
            try:
                self.val_windows = TrainingWindows(
                    val_corpus,
                    context_length=self.context_length,
                    segments=val,
                    cluster_weights=False,
                    strands=self.val_strands,
                    seed=self.seed,
                    soft_mask_weight=1.0,
                    tags=self.tags if val_corpus is corpus else None,
                    groups=self._groups,
                )
            except EvoDataError as error:
                raise EvoDataError(f"validation: {error}") from error
            if self.val_annotations is not None:
                self._codon_positions = read_codon_positions(self.val_annotations, val_corpus)

    def train_dataloader(self) -> DataLoader[Row]:
        """The loader of this rank, which goes on where the run is."""
        assert self.windows is not None, "setup() comes first"
        rank, num_ranks = self._rank()
        self._consumed = self.consumed
        self._step_samples = self.batch_size * num_ranks
        self._counted_from = self._batches_processed() if self.trainer is not None else None
        batches = ResumableBatches(
            len(self.windows),
            batch_size=self.batch_size,
            rank=rank,
            num_ranks=num_ranks,
            consumed=lambda: self.consumed,
            accumulate=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
        )
        return TrainingLoader(
            WindowDataset(self.windows), batch_sampler=batches, **self._loader_options()
        )

    def val_dataloader(self) -> DataLoader[Row] | list[Any]:
        """The loader of this rank, or none without anything to validate on."""
        if self.val_windows is None:
            return []
        rank, num_ranks = self._rank()
        batches = EvaluationBatches(
            len(self.val_windows), batch_size=self.val_batch_size, rank=rank, num_ranks=num_ranks
        )
        return DataLoader(
            WindowDataset(self.val_windows, self._codon_positions),
            batch_sampler=batches,
            **self._loader_options(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Samples consumed, and what windows they are samples of."""
        return {"consumed": self.consumed, "windows": self._fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the samples that a checkpoint has consumed."""
        self._consumed, self._counted_from = int(state_dict["consumed"]), None
        if self.windows is not None and state_dict.get("windows") != self._fingerprint():
            _log.warning(
                "the checkpoint was trained on other windows (another corpus, split, context_length, "
                "seed, strands or weights); the run goes on with these, at sample %d",
                self._consumed,
            )

    def _check_arguments(self) -> None:
        # Not when the module is made: LightningCLI would bury the message in one of its own.
        for name in ("context_length", "batch_size", "val_batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} must be 1 or more")
        if self.num_workers < 0:
            raise UsageError(f"num_workers {self.num_workers} must be 0 or more")
        sources = ("val_genomes", "val_fraction", "val_contigs", "split")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} are both given; choose one of them")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UsageError(f"val_fraction {self.val_fraction} must be above 0 and below 1")
        if self.val_annotations is not None and not given:
            raise UsageError(
                "val_annotations are given, but nothing to validate on; give val_genomes, "
                "val_fraction, val_contigs or split too"
            )

    def _parts(self, corpus: Corpus) -> tuple[Corpus, Sequence[Segment], Sequence[Segment] | None]:
        """Return the corpus to validate on, the segments to train on, and those to validate on."""
        if self.val_genomes is not None:
            val_corpus = open_genomes(self.val_genomes, self.cache_dir)
            _say_if_known(val_corpus, corpus)
            return val_corpus, whole_records(corpus), whole_records(val_corpus)
        if self.split is not None:
            split = read_split(self.split, corpus)
        elif self.val_contigs is not None:
            split = split_by_contigs(corpus, val=self.val_contigs)
        elif self.val_fraction is not None:
            split = split_by_blocks(corpus, val_fraction=self.val_fraction, seed=self.seed)
        else:
            return corpus, whole_records(corpus), None
        return corpus, split.train, split.val or None

    def _fingerprint(self) -> str | None:
        return None if self.windows is None else self.windows.digest

    def _say_if_mostly_empty(self, windows: TrainingWindows) -> None:
        filled = windows.num_targets / (windows.num_windows * self.context_length)
        if filled < _WORTH_SAYING:
            _log.warning(
                "only %.0f %% of what the model reads are bases: most stretches are far shorter than "
                "context_length %d; a shorter context trains faster",
                100 * filled,
                self.context_length,
            )

    def _batches_processed(self) -> int:
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def _rank(self) -> tuple[int, int]:
        """This process among those that read different samples, from 0, and their number."""
        return dealt_rank(self.trainer)

    def _loader_options(self) -> dict[str, Any]:
        workers = self.num_workers
        return {
            "collate_fn": batch_of,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "prefetch_factor": 2 if workers else None,
            "pin_memory": torch.cuda.is_available(),
        }


def _say_if_known(val: Corpus, train: Corpus) -> None:
    """Warn of validation records whose very sequence is trained on."""
    known = {record.sha256 for record in train.records if record.sha256}
    shared = [record.name for record in val.records if record.sha256 in known]
    if shared:
        _log.warning(
            "%d of %d records of val_genomes are in the training genomes too (%s, ...); results on "
            "them say nothing about other genomes",
            len(shared),
            len(val.records),
            shared[0],
        )
