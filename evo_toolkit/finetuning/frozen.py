"""Frozen networks: features of layers, scikit-learn estimators on them, nested cross-validation.

The network stays as it is. Which layer is read and how strong the penalty is are chosen by inner
folds within each training part, never by what is held out; no group straddles folds of either kind.
The head that is handed over is then fitted on everything, with settings chosen the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.finetuning.examples import Examples
from evo_toolkit.finetuning.heads import Affine, Floats, SequenceHead
from evo_toolkit.finetuning.metrics import Indices, Outcome, Problem, selection
from evo_toolkit.finetuning.plain_features import plain_features
from evo_toolkit.finetuning.splits import Fold, grouped_folds
from evo_toolkit.inference.head_files import fit_name, fit_names
from evo_toolkit.inference.readings import Pool, Strands
from evo_toolkit.variants.head import FEATURES, VariantHead
from evo_toolkit.variants.reading import Wanted
from evo_toolkit.variants.reuse import window_runner
from evo_toolkit.variants.window_runner import WindowGroup

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

Matrix = NDArray[np.floating[Any]]
Estimator = Literal["auto", "logistic", "ridge", "mlp"]
FROZEN_ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

PENALTIES: Mapping[str, tuple[float, ...]] = {
    "logistic": (1e4, 1e3, 1e2, 1e1, 1e0),
    "ridge": (1e5, 1e4, 1e3, 1e2, 1e1, 1e0),
    "mlp": (1e1, 1e-1, 1e-3),
}
"""What is tried, the strongest first: 1/C of logistic regressions, alpha of the others, on standardised features."""

HIDDEN = 64
"""Units of the hidden layer of `mlp`."""

VARIANT_FEATURES = ("ref", "difference")

_MLP_ITERATIONS = 300
_LOGISTIC_ITERATIONS = 2000
_AT_A_TIME = 256
# Log-odds of a class that no example of a training part has.
_NEVER = -20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How heads are fitted.

    Attributes:
        estimator: logistic (classes), ridge (numbers), mlp (either); auto is logistic or ridge.
        balanced: Whether classes count equally in fits however many examples each has. Ranks gain by it
            where one class is rare; probabilities are then those of a population in which all are equally common.
        folds, inner_folds: Of the cross-validation, and within its training parts.
        seed: Of all draws.

    Raises:
        UsageError: for an unknown estimator, or fewer than two folds.
    """

    estimator: Estimator = "auto"
    balanced: bool = False
    folds: int = 5
    inner_folds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimator not in FROZEN_ESTIMATORS:
            raise UsageError(
                f"estimator {self.estimator!r} is not known; use {', '.join(FROZEN_ESTIMATORS)}"
            )
        if min(self.folds, self.inner_folds) < 2:
            raise UsageError(f"{min(self.folds, self.inner_folds)} folds cannot be; give 2 or more")

    def resolve(self, problem: Problem, *, variants: bool = False) -> str:
        """The estimator for a problem.

        Raises:
            UsageError: for one that does not go with it.
        """
        if self.estimator == "auto":
            return linear_estimator(problem)
        if self.estimator == "logistic" and problem == "regression":
            raise UsageError("logistic predicts classes, and the targets are numbers; use ridge or mlp")  # fmt: skip
        if self.estimator == "ridge" and problem != "regression":
            raise UsageError("ridge predicts numbers, and the targets are classes; use logistic or mlp")  # fmt: skip
        if self.estimator == "mlp" and self.balanced and problem != "regression":
            raise UsageError(
                "mlp takes no class weights; use logistic with them, or leave them out"
            )
        if self.estimator == "mlp" and variants:
            raise UsageError("heads for variants are linear, so that both strands can be averaged; use logistic or ridge")  # fmt: skip
        return self.estimator


# Features


def parse_candidates(layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Layers by what the user calls a choice: `blocks.4`, or `blocks.2+blocks.4` for both side by side."""
    found: dict[str, tuple[str, ...]] = {}
    for text in layers:
        names = tuple(name.strip() for name in text.split("+"))
        if not all(names):
            raise UsageError(
                f"layer {text!r} is not understood; write blocks.4 or blocks.2+blocks.4"
            )
        found[text] = names
    if not found:
        raise UsageError("no layer was named; use for example blocks.4")
    return found


def default_layers(num_blocks: int) -> tuple[str, ...]:
    """Layers to choose among: residual streams at about a quarter, half and three quarters of the depth, and before the last."""
    depths = sorted({max(0, round(num_blocks * share) - 1) for share in (0.25, 0.5, 0.75)} | {max(0, num_blocks - 2)})  # fmt: skip
    return tuple(f"blocks.{depth}" for depth in depths)


def sequence_features(
    model: StripedHyena2,
    sequences: Sequence[str],
    layers: Sequence[str],
    *,
    pool: Pool = "mean",
    strands: Strands = "both",
    report: Callable[[int], None] = lambda count: None,
) -> dict[str, NDArray[np.float32]]:
    """Pooled outputs of layers, `[n, F]` each.

    Args:
        report: Called with the number of sequences done since the last call.
    """
    from evo_toolkit.inference.embed import embed

    if pool == "none":
        raise UsageError("pool none gives a value for every base; a label of a sequence needs mean, max, last or center")  # fmt: skip
    parts: dict[str, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
    # Of like lengths together, since a batch is as long as its longest.
    order = np.argsort([len(sequence) for sequence in sequences], kind="stable")
    for start in range(0, len(order), _AT_A_TIME):
        part = [sequences[i] for i in order[start : start + _AT_A_TIME].tolist()]
        found = embed(model, part, list(layers), pool=pool, strands=strands)
        for layer in layers:
            parts[layer].append(np.asarray(found[layer], np.float32))
        report(len(part))
    back = np.argsort(order)
    return {layer: np.concatenate(values)[back] for layer, values in parts.items()}


def variant_features(
    model: StripedHyena2,
    examples: Examples,
    layers: Sequence[str],
    window: int,
    *,
    features: Sequence[str] = VARIANT_FEATURES,
    report: Callable[[int], None] = lambda count: None,
) -> dict[str, NDArray[np.float32]]:
    """What `VariantHead` reads of variants, by layer: `[n, F]`, strands averaged.

    A strand whose windows are equal (at the end of a contig) says nothing and is left out, as in scoring.

    Args:
        window: Bases of the windows.
        features: Of `evo_toolkit.variants.head.FEATURES`.

    Raises:
        EvoError: if both windows of a variant are equal on every strand.
    """
    if not features or set(features) - set(FEATURES):
        raise UsageError(
            f"features {', '.join(features) or 'none'} are not known; use {', '.join(FEATURES)}"
        )
    runner = window_runner(model, window, wanted=Wanted(layers=tuple(layers)))
    rows: dict[str, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
    for start in range(0, len(examples), _AT_A_TIME):
        part = range(start, min(start + _AT_A_TIME, len(examples)))
        telling = [[w for w in examples.windows[i] if w.fork < len(w.ref)] for i in part]
        for index, windows in zip(part, telling, strict=True):
            if not windows:
                raise EvoError(
                    f"{examples.places[index]}: variant {examples.ids[index]} changes nothing in its windows; leave it out"
                )
        groups = [WindowGroup(w.ref, [(w.alt, w.fork)]) for windows in telling for w in windows]
        pairs = iter(pairs[0] for pairs in runner(groups))
        for windows in telling:
            own = [next(pairs) for _ in windows]
            for layer in layers:
                strands = []
                for pair in own:
                    ref, alt = pair.layers_ref[layer], pair.layers_alt[layer]
                    by_name = {"ref": ref, "alt": alt, "difference": alt - ref}
                    strands.append(np.concatenate([by_name[name] for name in features]))
                rows[layer].append(
                    np.stack(strands).mean(axis=0, dtype=np.float64).astype(np.float32)
                )
        report(len(part))
    return {layer: np.stack(values) for layer, values in rows.items()}


def joined(
    features: Mapping[str, Matrix], candidates: Mapping[str, Sequence[str]]
) -> dict[str, Matrix]:
    """The matrix of each choice: its layers side by side."""
    return {
        name: features[layers[0]]
        if len(layers) == 1
        else np.concatenate([features[layer] for layer in layers], axis=1)
        for name, layers in candidates.items()
    }


# Fits


def fit_affine(
    outcome: Outcome, estimator: str, x: Matrix, penalty: float, *, balanced: bool, seed: int
) -> Affine:
    """Fit one estimator of scikit-learn on standardised features, as an `Affine`.

    Args:
        outcome: Of the rows of `x`.
        estimator: logistic, ridge or mlp.
        x: `[n, F]`.
        penalty: See `PENALTIES`.
        balanced: Whether classes count equally.
        seed: Of the first weights and batches of `mlp`.
    """
    data = np.asarray(x, np.float64)
    mean, scale = data.mean(axis=0), data.std(axis=0)
    # A feature that hardly varies would turn its own rounding into signal when scaled up.
    largest = float(scale.max(initial=0.0)) or 1.0
    scale = np.where(scale > 1e-6 * largest, scale, largest)
    mean, scale = mean.astype(np.float32), scale.astype(np.float32)
    z = (data - mean) / scale
    fit = _fit_mlp if estimator == "mlp" else _fit_ridge if estimator == "ridge" else _fit_logistic
    with warnings.catch_warnings():
        from sklearn.exceptions import ConvergenceWarning

        # The penalty is chosen by what is held out, stopping early being one more.
        warnings.simplefilter("ignore", ConvergenceWarning)
        layers = fit(outcome, z, penalty, balanced, seed)
    *hidden, (weight, bias) = [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]
    activation = {"regression": "none", "multiclass": "softmax"}.get(outcome.problem, "sigmoid")
    return Affine(weight=weight, bias=bias, hidden=tuple(hidden), mean=mean, scale=scale, activation=activation)  # fmt: skip


_Layers = list[tuple[Floats, Floats]]


def _fit_logistic(
    outcome: Outcome, z: Floats, penalty: float, balanced: bool, seed: int
) -> _Layers:
    from sklearn.linear_model import LogisticRegression

    def fitted(y: NDArray[Any]) -> tuple[NDArray[Any], Floats, Floats]:
        """Classes seen, `[k, F]` and `[k]`; one row for two classes."""
        seen = np.unique(y)
        if seen.size < 2:
            return seen, np.zeros((1, z.shape[1])), np.zeros(1)
        model = LogisticRegression(C=1 / penalty, max_iter=_LOGISTIC_ITERATIONS, class_weight="balanced" if balanced else None)  # fmt: skip
        model.fit(z, y)
        return model.classes_, model.coef_, model.intercept_

    if outcome.problem == "multiclass":
        weight, bias = np.zeros((outcome.num_outputs, z.shape[1])), np.full(outcome.num_outputs, _NEVER)  # fmt: skip
        classes, w, b = fitted(outcome.targets)
        if classes.size == 2:  # softmax of plus and minus half is the sigmoid
            w, b = np.concatenate([-w, w]) / 2, np.concatenate([-b, b]) / 2
        weight[classes], bias[classes] = w, b
        return [(weight, bias)]
    columns = outcome.targets.T if outcome.problem == "multilabel" else [outcome.targets]
    weights, biases = [], []
    for y in columns:
        classes, w, b = fitted(np.asarray(y).astype(np.int64))
        weights.append(w[0])
        biases.append(b[0] if classes.size == 2 else -_NEVER if classes[0] else _NEVER)
    return [(np.stack(weights), np.array(biases))]


def _fit_ridge(outcome: Outcome, z: Floats, penalty: float, balanced: bool, seed: int) -> _Layers:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=penalty).fit(z, outcome.targets)
    return [(np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_))]


def _fit_mlp(outcome: Outcome, z: Floats, penalty: float, balanced: bool, seed: int) -> _Layers:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    common = {"hidden_layer_sizes": (HIDDEN,), "alpha": penalty, "max_iter": _MLP_ITERATIONS, "random_state": seed}  # fmt: skip
    if outcome.problem == "regression":
        middle, spread = float(outcome.targets.mean()), float(outcome.targets.std()) or 1.0
        model = MLPRegressor(**common).fit(z, (outcome.targets - middle) / spread)
        layers = _transposed(model)
        weight, bias = layers[-1]
        return [*layers[:-1], (weight * spread, bias * spread + middle)]
    targets = outcome.targets
    seen = np.unique(targets)
    if outcome.problem != "multilabel" and seen.size < 2:
        return _fit_logistic(outcome, z, 1.0, False, seed)
    model = MLPClassifier(**common).fit(z, targets.astype(np.int64))
    layers = _transposed(model)
    if outcome.problem == "multiclass":
        weight, bias = layers[-1]
        if seen.size == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        full_weight = np.zeros((outcome.num_outputs, weight.shape[1]))
        full_bias = np.full(outcome.num_outputs, _NEVER)
        full_weight[seen], full_bias[seen] = weight, bias
        layers[-1] = (full_weight, full_bias)
    return layers


def _transposed(model: Any) -> _Layers:
    return [
        (np.asarray(w, float).T, np.asarray(b, float))
        for w, b in zip(model.coefs_, model.intercepts_, strict=True)
    ]


def outputs_of(outcome: Outcome, affine: Affine, x: Matrix) -> Floats:
    """Outputs as `evo_toolkit.finetuning.metrics` takes them: `[n]` or `[n, K]`."""
    found = affine(x)
    return found[:, 0] if outcome.problem in ("binary", "regression") else found


# Cross-validation


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Settings, and how well they did on inner folds.

    Attributes:
        candidate: Name of the features.
        penalty: See `PENALTIES`.
        value: `evo_toolkit.finetuning.metrics.selection` on inner folds; None where there was nothing to choose.
        by_candidate: The best value of each, for the record.
    """

    candidate: str
    penalty: float
    value: float | None
    by_candidate: Mapping[str, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Fits:
    """What cross-validation needs of the data.

    Attributes:
        outcome: Of all examples.
        groups: What stays together, `[n]`.
        strata: What folds are balanced by, `[n]`.
        settings: How heads are fitted.
        estimator: `settings.resolve` of the problem.
    """

    outcome: Outcome
    groups: Indices
    strata: Indices
    settings: Settings
    estimator: str

    def fit(self, x: Matrix, rows: Indices, penalty: float) -> Affine:
        """Fit on some rows."""
        return fit_affine(
            self.outcome.part(rows), self.estimator, x[rows], penalty,
            balanced=self.settings.balanced, seed=self.settings.seed,
        )  # fmt: skip

    def choose(self, candidates: Mapping[str, Matrix], rows: Indices) -> Choice:
        """The settings that do best on inner folds of some rows; of equals the strongest penalty.

        Raises:
            UsageError: if the rows are in one group.
        """
        penalties = PENALTIES[self.estimator]
        if len(candidates) * len(penalties) == 1:
            return Choice(candidate=next(iter(candidates)), penalty=penalties[0], value=None, by_candidate={})  # fmt: skip
        count = min(self.settings.inner_folds, np.unique(self.groups[rows]).size)
        if count < 2:
            raise UsageError(
                "a training part is in one group, so nothing can be held out within it; give a finer grouping"
            )
        inner = grouped_folds(
            self.groups[rows], count, strata=self.strata[rows], seed=self.settings.seed + 1
        )
        part = self.outcome.part(rows)
        best: tuple[float, str, float] | None = None
        by_candidate: dict[str, float] = {}
        for name, x in candidates.items():
            for penalty in penalties:
                outputs, fold_of = _held_out(self, x, rows, inner, penalty)
                value = selection(part, outputs, fold_of, balanced=self.settings.balanced)
                by_candidate[name] = max(value, by_candidate.get(name, -np.inf))
                if best is None or value > best[0]:
                    best = (value, name, penalty)
        assert best is not None
        return Choice(candidate=best[1], penalty=best[2], value=best[0], by_candidate=by_candidate)


def _held_out(
    fits: Fits, x: Matrix, rows: Indices, folds: Sequence[Fold], penalty: float
) -> tuple[Floats, Indices]:
    """Outputs of rows held out of each fold, and the fold of each."""
    outputs = np.zeros(_shape(fits.outcome, rows.size))
    fold_of = np.zeros(rows.size, np.int64)
    for number, (train, test) in enumerate(folds):
        affine = fits.fit(x, rows[train], penalty)
        outputs[test] = outputs_of(fits.outcome, affine, x[rows[test]])
        fold_of[test] = number
    return outputs, fold_of


def _shape(outcome: Outcome, rows: int) -> tuple[int, ...]:
    return (
        (rows, outcome.num_outputs) if outcome.problem in ("multiclass", "multilabel") else (rows,)
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossValidated:
    """Predictions for examples that the fits had not seen.

    Attributes:
        outputs: `[n]` or `[n, K]`.
        fold_of: `[n]`.
        choices: Of each fold.
    """

    outputs: Floats
    fold_of: Indices
    choices: tuple[Choice, ...] = field(default=())


def cross_validate(
    fits: Fits,
    candidates: Mapping[str, Matrix],
    folds: Sequence[Fold],
    *,
    report: Callable[[int], None] = lambda count: None,
) -> CrossValidated:
    """Nested cross-validation: settings are chosen within each training part.

    Args:
        candidates: Features by name, `[n, F]`.
        folds: Each example is held out once.
        report: Called with 1 after each fold.
    """
    n = len(fits.outcome)
    outputs = np.zeros(_shape(fits.outcome, n))
    fold_of = np.zeros(n, np.int64)
    choices = []
    for number, (train, test) in enumerate(folds):
        choice = fits.choose(candidates, train)
        affine = fits.fit(candidates[choice.candidate], train, choice.penalty)
        outputs[test] = outputs_of(fits.outcome, affine, candidates[choice.candidate][test])
        fold_of[test] = number
        choices.append(choice)
        report(1)
    return CrossValidated(outputs=outputs, fold_of=fold_of, choices=tuple(choices))


def linear_estimator(problem: Problem) -> str:
    """The linear one for a problem, which baselines have whatever stands on the network's features."""
    return "ridge" if problem == "regression" else "logistic"


def baseline_outputs(fits: Fits, train: Examples, test: Examples) -> dict[str, Floats]:
    """What fits on features without a network say of test examples, by name of the features.

    Args:
        fits: Of the training examples, with a linear estimator.
        train: What is fitted on; penalties are chosen on inner folds of it.
        test: What is predicted.
    """
    rows, tested = np.arange(len(train)), plain_features(test)
    found = {}
    for name, matrix in plain_features(train).items():
        choice = fits.choose({name: matrix}, rows)
        affine = fits.fit(matrix, rows, choice.penalty)
        found[name] = outputs_of(fits.outcome, affine, tested[name])
    return found


# The head that is handed over


def sequence_head(
    examples: Examples,
    affine: Affine,
    model: StripedHyena2,
    *,
    name: str,
    layers: Sequence[str],
    pool: Pool,
    strands: Strands,
    about: Mapping[str, Any],
) -> SequenceHead:
    """A fitted head for sequences, ready to be saved."""
    names = examples.label_names or ("value",)
    lengths = [len(sequence) for sequence in examples.sequences]
    return SequenceHead(
        kind=examples.kind,
        name=fit_name(name),
        outputs=names[1:] if examples.kind == "binary" else names,
        layers=tuple(layers),
        pool=pool,
        strands=strands,
        window=(min(lengths), max(lengths)),
        affine=affine,
        run=model_run(model),
        about={"label_names": names, **about},
    )


def variant_head(
    examples: Examples,
    affine: Affine,
    model: StripedHyena2,
    *,
    name: str,
    layers: Sequence[str],
    features: Sequence[str],
    window: int,
    strands: str,
    about: Mapping[str, Any],
) -> VariantHead:
    """A fitted head for variants, for `evo-toolkit score --head`.

    Args:
        strands: As for scoring: both, fwd or rc.
    """
    assert not affine.hidden, "heads for variants are linear"
    names = examples.label_names or ("value",)
    return VariantHead(
        name=fit_name(name),
        outputs=fit_names(names[1:] if len(names) == 2 else names),
        layers=tuple(layers),
        features=tuple(features),
        activation=affine.activation,
        weight=affine.weight,
        bias=affine.bias,
        mean=affine.mean,
        scale=affine.scale,
        run={**model_run(model), "window": window, "strands": strands, "suffix": None},
        about={"label_names": names, **about},
    )


def model_run(model: StripedHyena2) -> dict[str, Any]:
    """What a head says of the model that it reads."""
    return {
        "model": model.config.name, "model_sha256": model.sha256, "precision": model.policy.describe(),
    }  # fmt: skip
