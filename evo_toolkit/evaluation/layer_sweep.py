"""Which layer, which pool and which strands: a linear classifier on each of them, on one set of folds.

Every figure is of nested cross-validation over whole groups (`evo_toolkit.evaluation.supervised`); the
penalty alone is chosen in inner folds, so figures of single layers may be set side by side. The best of
many is picked on the data that judge it and flatters itself: a choice for a result is made within the
training folds (`evo-toolkit eval NAME --layers`, `evo-toolkit finetune`), and this table says where to look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.evaluation.baseline import Say
from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask
from evo_toolkit.evaluation.features import untrained
from evo_toolkit.evaluation.sequence_baselines import KMERS
from evo_toolkit.evaluation.supervised import (
    FOLDS,
    LinearGrid,
    Outcome,
    Predictor,
    cross_validate,
    fold_numbers,
    measure,
    metric_name,
)
from evo_toolkit.evaluation.tasks import Progress, model_identity, quiet
from evo_toolkit.finetuning.plain_features import composition, kmer_features
from evo_toolkit.inference.embed import EmbeddingRunner
from evo_toolkit.inference.readings import Pool, Strands, Values, readings_of
from evo_toolkit.statistics import RESAMPLES, bootstrap, difference

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2


def layer_features(
    model: StripedHyena2,
    sequences: Sequence[str],
    layers: str | Sequence[str],
    pool: Pool,
    progress: Progress = quiet,
) -> dict[str, Values]:
    """`[n, 2 C]` by layer: the forward strand's channels, then those of the reverse complement."""
    runner = EmbeddingRunner(model, layers, pool=pool, strands="concat")
    tokens = (np.frombuffer(text.encode(), np.uint8) for text in sequences)
    found: dict[str, list[Values]] = {layer: [] for layer in runner.layers}
    for group, values in runner.stream(readings_of(t, None, "concat") for t in tokens):
        for layer in runner.layers:
            found[layer] += values[layer]
        progress(sum(len(reading.tokens) for readings in group for reading in readings))
    return {layer: np.stack(rows) for layer, rows in found.items()}


def strands_of(features: NDArray[np.float32], strands: Strands) -> NDArray[np.float32]:
    """Features of "concat", `[n, 2 C]`, as those of other strands, `[n, C]`."""
    half = features.shape[1] // 2
    forward, backward = features[:, :half], features[:, half:]
    if strands == "both":
        return ((forward + backward) / 2).astype(np.float32)
    return {"fwd": forward, "rc": backward, "concat": features}[strands]


def sweep_layers(
    task: LabelledTask,
    model: StripedHyena2,
    *,
    layers: str | Sequence[str] = "all",
    pools: Sequence[Pool] = ("mean",),
    strands: Sequence[Strands] = ("concat",),
    folds: int = FOLDS,
    seed: int = 0,
    with_untrained: bool = True,
    resamples: int = RESAMPLES,
    say: Say = quiet,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Figures by layer, pool and strands, beside composition, k-mers and the untrained network.

    Args:
        task: Labelled sequences with groups.
        model: The network.
        layers: As for `evo_toolkit.embed`.
        pools: The first is that of the untrained network too.
        strands: The same.
        folds: Of the cross-validation.
        seed: Of folds and the untrained weights.
        with_untrained: Whether the network is measured with random weights too.
        resamples: Of the bootstrap over groups.
        say: Gets a line after each figure.
        progress: Called with the tokens read since the last call.

    Returns:
        JSON: `figures` by name (`LAYER POOL STRANDS`, `untrained ...`, `composition`, `kmers`), each with its
        value and interval of 95 % over groups; `minus_last`, how far each is ahead of the last layer named
        with the same pool and strands, groups resampled together; and what they are of.
    """
    outcome = Outcome(task.examples.kind, task.targets, task.groups)  # type: ignore[arg-type]
    fold = fold_numbers(outcome, folds, seed)
    sequences = task.examples.sequences
    figures: dict[str, Any] = {}
    minus_last: dict[str, Any] = {}

    def judge(predictors: Mapping[str, Predictor], last: Mapping[str, str] | None = None) -> None:
        scores = cross_validate(outcome, predictors, fold, say=say)
        metrics = {name: measure(outcome, values, fold) for name, values in scores.items()}
        for name, metric in metrics.items():
            figures[name] = bootstrap(metric, outcome.groups, resamples=resamples).json()
            other = (last or {}).get(name, name)
            if other != name:
                ahead = difference(metric, metrics[other])
                minus_last[name] = bootstrap(ahead, outcome.groups, resamples=resamples).json()

    judge(
        {
            "composition": LinearGrid({"composition": composition(sequences)}, seed),
            "kmers": LinearGrid({f"{k}-mers": kmer_features(sequences, k) for k in KMERS}, seed),
        }
    )
    networks = [("", model, tuple(pools), tuple(strands))]
    if with_untrained:
        networks.append(
            ("untrained ", untrained(model, seed), tuple(pools)[:1], tuple(strands)[:1])
        )
    for prefix, network, own_pools, own_strands in networks:
        for pool in own_pools:
            features = layer_features(network, sequences, layers, pool, progress)
            names = {
                f"{prefix}{layer} {pool} {side}": (layer, side)
                for layer in features
                for side in own_strands
            }
            judge(
                {
                    name: LinearGrid({layer: strands_of(features[layer], side)}, seed)
                    for name, (layer, side) in names.items()
                },
                {
                    name: f"{prefix}{list(features)[-1]} {pool} {side}"
                    for name, (_, side) in names.items()
                },
            )
    return {
        "model": model_identity(model),
        "metric": metric_name(outcome.kind),
        "num_examples": len(task),
        "num_groups": int(np.unique(task.groups).size),
        "folds": folds,
        "seed": seed,
        "left_out": dict(task.left_out),
        "digest": task.examples.digest,
        "figures": figures,
        "minus_last": minus_last,
    }
