"""The whole of the frozen method: from labelled sequences to a head and what can be said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evo_toolkit.errors import UsageError
from evo_toolkit.finetuning.examples import Examples
from evo_toolkit.finetuning.frozen import (
    PENALTIES,
    VARIANT_FEATURES,
    CrossValidated,
    Fits,
    Matrix,
    Settings,
    baseline_outputs,
    cross_validate,
    default_layers,
    joined,
    linear_estimator,
    model_run,
    outputs_of,
    parse_candidates,
    sequence_features,
    sequence_head,
    variant_features,
    variant_head,
)
from evo_toolkit.finetuning.heads import Floats, SequenceHead
from evo_toolkit.finetuning.metrics import SELECTION, Indices, outcome_of
from evo_toolkit.finetuning.plain_features import plain_features
from evo_toolkit.finetuning.results import judged
from evo_toolkit.finetuning.splits import (
    BLOCK,
    CLUSTER_K,
    Fold,
    Leak,
    SplitBy,
    corpus_leak_report,
    grouped_folds,
    leak_report,
    require_same_classes,
    require_trainable,
    split_groups,
    strata_of,
)
from evo_toolkit.inference.readings import Pool, Strands
from evo_toolkit.statistics import RESAMPLES
from evo_toolkit.variants.head import VariantHead

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

Say = Callable[[str], None]
Report = Callable[[int], None]


def _quiet(_: Any) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenOptions:
    """What the frozen method is asked to do.

    Attributes:
        name: Of the head.
        layers: To choose among, `blocks.2+blocks.4` side by side; empty means four depths.
        pool: Over positions: mean, max, last or center.
        strands: For sequences fwd, rc, both or concat; for variants both, fwd or rc, as their windows were cut.
        window: Of variants, in bases.
        features: Of variants.
        settings: How heads are fitted.
        split_by, k, block: What stays together (`split_groups`).
        resamples: Of bootstraps.
    """

    name: str = "head"
    layers: tuple[str, ...] = ()
    pool: Pool = "mean"
    strands: str = "both"
    window: int | None = None
    features: tuple[str, ...] = VARIANT_FEATURES
    settings: Settings = field(default_factory=Settings)
    split_by: SplitBy = "auto"
    k: int = CLUSTER_K
    block: int = BLOCK
    resamples: int = RESAMPLES


@dataclass(frozen=True, eq=False, kw_only=True)
class FrozenRun:
    """What came of it.

    Attributes:
        head: Fitted on all training examples.
        results: Figures, settings and data, ready for JSON.
        examples: Those that were predicted without having been seen.
        outputs, folds: For them.
        warnings: A line each.
    """

    head: SequenceHead | VariantHead
    results: dict[str, Any]
    examples: Examples
    outputs: Floats
    folds: Indices
    warnings: tuple[str, ...]


def run_frozen(
    model: StripedHyena2,
    examples: Examples,
    options: FrozenOptions,
    *,
    test: Examples | None = None,
    trained_on: Sequence[Path | str] = (),
    say: Say = _quiet,
    report: Report = _quiet,
) -> FrozenRun:
    """Features, nested cross-validation (or a given test set), baselines, and the head.

    Args:
        model: The network, which stays as it is.
        examples: To train on.
        test: To judge on; None judges on held-out folds of `examples`.
        trained_on: The model's own training genomes, for the overlap with what is judged on.
        say: Gets a line about each step.
        report: Called with the number of sequences read by the network since the last call.

    Raises:
        ExamplesError: for data that cannot be used, naming what is wrong.
        UsageError: for options that do not go together.
    """
    settings = options.settings
    is_variant = examples.kind == "variant"
    if is_variant and options.window is None:
        raise UsageError("variants need the length of their windows")
    outcome = outcome_of(examples)
    estimator = settings.resolve(outcome.problem, variants=is_variant)
    parts = (examples,) if test is None else (examples, test)
    for part in parts:
        part.require_length(model.config.context_length, f"the context of {model.config.name}")
    examples.require_classes(2)
    warnings = [note for part in parts for note in part.notes]

    groups, why = split_groups(examples, options.split_by, k=options.k, block=options.block)
    strata = strata_of(examples)
    folds, judge_on, units = _folds(examples, test, groups, strata, options)
    if test is None:
        require_trainable(examples, folds)
    leaks = _leaks(examples, test, folds, trained_on, options.k, say)
    warnings += [f"{leak}; figures are too good by as much as these are remembered" for leak in leaks if leak.found]  # fmt: skip

    candidates = parse_candidates(options.layers or default_layers(len(model.blocks)))
    layers = list(dict.fromkeys(layer for names in candidates.values() for layer in names))

    def read(part: Examples) -> dict[str, Matrix]:
        if is_variant:
            assert options.window is not None
            found = variant_features(model, part, layers, options.window, features=options.features, report=report)  # fmt: skip
        else:
            strands: Strands = options.strands  # type: ignore[assignment]
            found = sequence_features(model, part.sequences, layers, pool=options.pool, strands=strands, report=report)  # fmt: skip
        return joined(found, candidates)

    matrices = read(examples)
    fits = Fits(outcome=outcome, groups=groups, strata=strata, settings=settings, estimator=estimator)  # fmt: skip
    # Baselines are linear, whatever stands on the network's features.
    linear = Fits(outcome=outcome, groups=groups, strata=strata, settings=settings, estimator=linear_estimator(outcome.problem))  # fmt: skip
    everything = np.arange(len(examples))
    final = fits.choose(matrices, everything)
    affine = fits.fit(matrices[final.candidate], everything, final.penalty)
    others: dict[str, Floats] = {}
    if test is None:
        found = cross_validate(fits, matrices, folds)
        say(f"the network's features: {len(folds)} folds done")
        for name, matrix in plain_features(examples).items():
            others[name] = cross_validate(linear, {name: matrix}, folds).outputs
    else:
        outputs = outputs_of(outcome_of(test), affine, read(test)[final.candidate])
        found = CrossValidated(outputs=outputs, fold_of=np.zeros(len(test), np.int64))
        others = baseline_outputs(linear, examples, test)
    say("baselines done")

    results = judged(
        outcome_of(judge_on), found.outputs, found.fold_of, units, baselines=others,
        resamples=options.resamples,
    )  # fmt: skip
    shown = {name: results["metrics"][name] for name in (results["primary"],)}
    about = {
        "estimator": estimator,
        "penalty": final.penalty,
        "balanced": settings.balanced,
        "metrics": shown,
        "metrics_of": "a test set" if test is not None else f"nested cross-validation, {len(folds)} folds",
        "data_digest": examples.digest,
        "num_examples": len(examples),
    }  # fmt: skip
    names = candidates[final.candidate]
    head: SequenceHead | VariantHead
    if is_variant:
        assert options.window is not None
        head = variant_head(examples, affine, model, name=options.name, layers=names, features=options.features, window=options.window, strands=options.strands, about=about)  # fmt: skip
    else:
        head = sequence_head(examples, affine, model, name=options.name, layers=names, pool=options.pool, strands=options.strands, about=about)  # type: ignore[arg-type] # fmt: skip
    results = {
        "method": "frozen",
        "task": examples.kind,
        "name": options.name,
        "model": {**model_run(model), "parameters": model.config.parameter_count(), "device": str(model.device), "notes": list(model.notes)},
        "settings": {
            "estimator": estimator, "balanced": settings.balanced, "seed": settings.seed,
            "pool": None if is_variant else options.pool, "strands": options.strands,
            "window": options.window, "features": list(options.features) if is_variant else None,
            "layers": list(candidates), "penalties": list(PENALTIES[estimator]),
        },
        "split": {
            "by": why, "num_groups": int(np.unique(groups).size), "test_set": test is not None,
            "folds": [{"train": len(f.train), "test": len(f.test)} for f in folds] if test is None else [],
            "inner_folds": settings.inner_folds,
        },
        "leaks": [leak.json() for leak in leaks],
        "chosen": {"by": SELECTION[outcome.problem], "layer": final.candidate, "penalty": final.penalty, "inner_value": final.value, "by_layer": _finite(final.by_candidate)},
        "chosen_by_fold": [{"layer": c.candidate, "penalty": c.penalty, "inner_value": c.value} for c in found.choices],
        "warnings": warnings,
        **results,
    }  # fmt: skip
    return FrozenRun(
        head=head, results=results, examples=judge_on, outputs=found.outputs,
        folds=found.fold_of, warnings=tuple(warnings),
    )  # fmt: skip


def _finite(values: Any) -> dict[str, float | None]:
    return {name: float(v) if np.isfinite(v) else None for name, v in values.items()}


def _folds(
    examples: Examples,
    test: Examples | None,
    groups: Indices,
    strata: Indices,
    options: FrozenOptions,
) -> tuple[list[Fold], Examples, Indices]:
    """The folds (none with a test set), what is judged on, and what is drawn together there."""
    if test is None:
        folds = grouped_folds(
            groups, options.settings.folds, strata=strata, seed=options.settings.seed
        )
        return folds, examples, groups
    require_same_classes(examples, test)
    units, _ = split_groups(test, options.split_by, k=options.k, block=options.block)
    return [], test, units


def _leaks(
    examples: Examples,
    test: Examples | None,
    folds: Sequence[Fold],
    trained_on: Sequence[Path | str],
    k: int,
    say: Say,
) -> list[Leak]:
    """What is judged on shares with what was trained on, and with the model's training genomes."""
    found = []
    # Windows of neighbouring variants overlap whatever one does; their sites are what is told apart.
    if examples.kind != "variant":
        if test is not None:
            found.append(leak_report(examples.sequences, test.sequences, k=k, against="the training set"))  # fmt: skip
        else:
            found.append(_worst_fold(examples, folds, k))
    elif test is not None:
        found.append(_shared_sites(examples, test))
    if trained_on:
        say("looking up the model's training genomes")
        judged_on = examples if test is None else test
        found.append(corpus_leak_report(judged_on.sequences, trained_on, k=min(k, 32)))
    return found


def _worst_fold(examples: Examples, folds: Sequence[Fold], k: int) -> Leak:
    reports = [
        leak_report(
            [examples.sequences[i] for i in train], [examples.sequences[i] for i in test_], k=k,
            against=f"the other folds, in fold {number}",
        )
        for number, (train, test_) in enumerate(folds)
    ]  # fmt: skip
    return max(reports, key=lambda leak: (leak.sequences, leak.kmers))


def _shared_sites(examples: Examples, test: Examples) -> Leak:
    known = {(x.contig, x.start, x.end) for x in examples.loci or ()}
    same = [(x.contig, x.start, x.end) in known for x in test.loci or ()]
    identical = len(set(examples.ids) & set(test.ids))
    return Leak(
        against="the training set", k=0, kmers=float(np.mean(same)) if same else 0.0,
        sequences=sum(same), identical=identical, total=len(test),
    )  # fmt: skip
