"""Benchmarks of labelled sequences: prepared from files, run with a network's features.

Each figure stands beside what needs no pretraining: composition, k-mers, base by position, a small
convolutional network, all trained on the same folds, and the same network with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.evaluation.baseline import Say
from evo_toolkit.evaluation.benchmarks.brca1_sge import ALT
from evo_toolkit.evaluation.benchmarks.labelled import OVERLAP, SPLIT, LabelledTask, train_overlap
from evo_toolkit.evaluation.features import (
    FeatureFile,
    default_layers,
    sequence_features,
    untrained,
    variant_features,
)
from evo_toolkit.evaluation.genomes import find_genomes
from evo_toolkit.evaluation.prepared import Prepared
from evo_toolkit.evaluation.registry import Benchmark
from evo_toolkit.evaluation.sequence_baselines import KMERS, one_hot
from evo_toolkit.evaluation.supervised import (
    FOLDS,
    ROUNDS,
    AsIs,
    LinearGrid,
    Outcome,
    Predictor,
    Round,
    compare_rounds,
    cross_validate,
    fold_numbers,
)
from evo_toolkit.evaluation.tasks import Progress, model_identity, quiet
from evo_toolkit.finetuning.plain_features import composition, kmer_features
from evo_toolkit.statistics import RESAMPLES

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

NETWORKS = ("model", "untrained")
TRAINED = ("composition", "kmers", "positions", "cnn", "untrained")
"""What the network is compared with."""


def prepare_labelled(
    benchmark: Benchmark,
    paths: Sequence[Path | str],
    *,
    train: Sequence[Path | str] = (),
    limit: int | None = None,
    seed: int = 0,
    say: Say = quiet,
) -> Prepared:
    """The examples of a benchmark and, with training genomes, how much of each stands there.

    Args:
        benchmark: Of the style "sequences".
        paths: Its files.
        train: The genomes that the network was trained on.
        limit: At most so many examples, whole groups drawn.
        seed: Of that draw.
        say: Gets a line after each step.

    Raises:
        EvoError: if nothing, or one class alone, is left of the data.
    """
    task: LabelledTask = benchmark.load(paths)
    if len(task):
        task = task.limited(limit, seed)
    if not len(task):
        raise EvoError(f"{' and '.join(map(str, paths))}: no example is left (left out: {_listed(task.left_out)}); give more data")  # fmt: skip
    task.examples.require_classes()
    say(f"{len(task):,} examples in {task.groups.max() + 1:,} groups; left out: {_listed(task.left_out)}")  # fmt: skip
    for note in task.examples.notes:
        say(note)
    meta: dict[str, Any] = {
        "benchmark": benchmark.name, "files": [Path(path).name for path in paths], "seed": seed,
        "readout": benchmark.readout, "notes": benchmark.notes,
    }  # fmt: skip
    files = find_genomes(train) if train else []
    if files:
        task = benchmark.with_train(task, paths, files)
        shares = train_overlap(task.examples.sequences, files)
        task = LabelledTask(
            examples=task.examples,
            columns={**task.columns, OVERLAP: shares},
            left_out=task.left_out,
        )
        meta["kmer_overlap_with_train"] = {benchmark.name: round(float(shares.mean()), 6)}
        meta["examples_with_overlap"] = int((shares > 0).sum())
        say("looked up 31-mers of the training genomes")
    return task.prepared(benchmark.name, meta)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count) or "none"


def make_features(
    prepared: Prepared,
    model: StripedHyena2,
    *,
    layers: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = quiet,
) -> FeatureFile:
    """Features of a network and of the same network with random weights.

    Args:
        prepared: Of `prepare_labelled`.
        model: The network.
        layers: To choose from in inner folds; none named means four depths.
        seed: Of the random weights.
        progress: Called with the tokens read since the last call.
    """
    task = LabelledTask.of_prepared(prepared)
    chosen = list(layers or default_layers(len(model.blocks)))
    readout = prepared.meta["readout"]
    sequences, alts = task.examples.sequences, task.columns.get(ALT)
    networks = {}
    for name, network in (("model", model), ("untrained", untrained(model, seed))):
        if alts is None:
            networks[name] = sequence_features(
                network, sequences, chosen, readout=readout, progress=progress
            )
        else:
            networks[name] = variant_features(network, sequences, alts, chosen, progress=progress)
    return FeatureFile(
        digest=prepared.meta["digest"],
        model={**model_identity(model), "source": model.source},
        networks=networks,
        readout=readout,
    )


def sequence_predictors(
    task: LabelledTask, features: FeatureFile | None, *, cnn: bool, device: str, seed: int
) -> dict[str, Predictor]:
    """All predictors of a benchmark: the networks', the trained baselines', and known values.

    Columns of the task named `feature.X` are trained on, each alone; `score.X` are taken as they are.
    """
    sequences = task.examples.sequences
    found: dict[str, Predictor] = {}
    if features is not None:
        found |= {name: LinearGrid(layers, seed) for name, layers in features.networks.items()}
    if ALT not in task.columns:
        found |= _sequence_baselines(sequences, cnn=cnn, device=device, seed=seed)
    for name, values in task.columns.items():
        kind, _, short = name.partition(".")
        if kind == "feature":
            found[short] = LinearGrid({short: values.reshape(len(task), -1)}, seed)
        elif kind == "score":
            found[short] = AsIs(values)
    return found


def _sequence_baselines(
    sequences: Sequence[str], *, cnn: bool, device: str, seed: int
) -> dict[str, Predictor]:
    from evo_toolkit.evaluation.cnn import CnnPredictor

    found: dict[str, Predictor] = {}
    found["composition"] = LinearGrid({"composition": composition(sequences)}, seed)
    found["kmers"] = LinearGrid({f"{k}-mers": kmer_features(sequences, k) for k in KMERS}, seed)
    positions = one_hot(sequences)
    if positions is not None:
        found["positions"] = LinearGrid({"positions": positions}, seed)
    if cnn:
        found["cnn"] = CnnPredictor(sequences, device=device, seed=seed)
    return found


def run_labelled(
    prepared: Prepared,
    features: FeatureFile | None,
    *,
    folds: int = FOLDS,
    rounds: int = ROUNDS,
    cnn: bool = True,
    device: str = "cpu",
    seed: int = 0,
    resamples: int = RESAMPLES,
    say: Say = quiet,
) -> dict[str, Any]:
    """Figures of a benchmark: of the network and its baselines, on the same folds.

    Args:
        prepared: Of `prepare_labelled`.
        features: Of the network; None gives the baselines alone.
        folds: Of the cross-validation; a published split is kept where there is one.
        rounds: Cross-validations with other folds and seeds, whose mean is given.
        cnn: Whether the convolutional network is trained.
        device: Where it is.
        seed: Of folds, weights and order of the first round; the next ones count up.
        resamples: Of the bootstrap over groups.
        say: Gets a line after each predictor.
    """
    task = LabelledTask.of_prepared(prepared)
    if task.examples.kind not in ("binary", "multiclass", "multilabel", "regression"):
        raise UsageError(f"the benchmark has the task {task.examples.kind}, which is not run here")
    outcome = Outcome(task.examples.kind, task.targets, task.groups)
    published = task.columns.get(SPLIT)
    found: list[Round] = []
    chosen: list[dict[str, Any]] = []
    for number in range(rounds):
        if published is None:
            fold = fold_numbers(outcome, folds, seed + number)
        else:
            fold = np.where(published, 0, -1)
        predictors = sequence_predictors(task, features, cnn=cnn, device=device, seed=seed + number)
        say(f"round {number + 1} of {rounds}")
        scores = cross_validate(outcome, predictors, fold, say=say)
        found.append(Round(scores, fold))
        chosen.append({name: getattr(one, "chosen", []) for name, one in predictors.items()})
    known = [name.partition(".")[2] for name in task.columns if name.startswith(("feature.", "score."))]  # fmt: skip
    others = [name for name in (*TRAINED, *known) if name in found[0].scores]

    def figures_of(keep: NDArray[np.bool_] | None) -> dict[str, Any]:
        return compare_rounds(outcome, found, against=others, keep=keep, resamples=resamples)

    figures: dict[str, Any] = {
        "split": "published"
        if published is not None
        else f"{folds} folds of whole groups, {rounds} times",
        **figures_of(None),
        "chosen": chosen,
    }
    overlap = task.columns.get(OVERLAP)
    if overlap is not None and 0 < (overlap > 0).sum() < len(task):
        figures["without_overlap"] = figures_of(overlap == 0)
    return {
        "task": prepared.kind,
        "model": None if features is None else dict(features.model),
        "data": dict(prepared.meta),
        "figures": figures,
    }
