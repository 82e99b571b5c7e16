"""What a fine-tuning run says of itself: one JSON of figures, one table of predictions."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evo_data.errors import EvoDataError
from evo_data.files import atomic_output, check_output
from evo_toolkit._version import __version__
from evo_toolkit.finetuning.examples import Examples, class_counts
from evo_toolkit.finetuning.heads import Floats, SequenceHead
from evo_toolkit.finetuning.metrics import (
    PRIMARY,
    Indices,
    Outcome,
    calibration,
    calibration_error,
    confusion,
    curves,
    figures,
    lead,
)
from evo_toolkit.statistics import RESAMPLES
from evo_toolkit.variants.head import VariantHead

FORMAT_VERSION = 1
HEAD, RESULTS, PREDICTIONS, REPORT = "head.safetensors", "results.json", "predictions.tsv", "report.html"  # fmt: skip
"""Files of a run, in its folder."""


def judged(
    outcome: Outcome,
    outputs: Floats,
    folds: Indices,
    units: Indices,
    *,
    baselines: Mapping[str, Floats] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Everything about predictions for held-out examples, for `results.json`.

    Args:
        outcome: What was to be predicted.
        outputs: As `evo_toolkit.finetuning.metrics` takes them.
        folds: Of each example; one fold for a test set.
        units: What is drawn together in the bootstrap.
        baselines: Outputs of other predictors for the same examples.
        resamples: Of the bootstrap.
    """
    found: dict[str, Any] = {
        "problem": outcome.problem,
        "primary": PRIMARY[outcome.problem],
        "num_examples": len(outcome),
        "num_groups": int(np.unique(units).size),
        "num_folds": int(np.unique(folds).size),
        "resamples": resamples,
        "metrics": _json(figures(outcome, outputs, folds, units, resamples=resamples)),
        "baselines": {},
        "lead": {},
        "by_fold": _by_fold(outcome, outputs, folds),
        "curves": curves(outcome, outputs),
    }
    for name, others in (baselines or {}).items():
        found["baselines"][name] = _json(
            figures(outcome, others, folds, units, resamples=resamples)
        )
        found["lead"][name] = lead(
            outcome, outputs, others, folds, units, resamples=resamples
        ).json()
    if outcome.problem != "regression":
        found["confusion"] = confusion(outcome, outputs)
        found["calibration"] = calibration(outcome, outputs)
        found["calibration_error"] = calibration_error(found["calibration"])
    return found


def _json(estimates: Mapping[str, Any]) -> dict[str, Any]:
    return {name: estimate.json() for name, estimate in estimates.items()}


def _by_fold(outcome: Outcome, outputs: Floats, folds: Indices) -> list[dict[str, Any]]:
    from evo_toolkit.finetuning.metrics import primary

    found = []
    for fold in np.unique(folds).tolist():
        own = np.flatnonzero(folds == fold)
        value = primary(outcome.part(own), outputs[own], folds[own])
        found.append({"fold": fold, "num_examples": own.size, "value": None if math.isnan(value) else value})  # fmt: skip
    return found


def about_data(examples: Examples, sources: Sequence[str]) -> dict[str, Any]:
    """What the results say of the data.

    Args:
        sources: Files as the user named them.
    """
    lengths = [len(sequence) for sequence in examples.sequences]
    values = None
    if isinstance(examples.targets, np.ndarray) and not examples.label_names and len(examples):
        low, middle, high = np.quantile(examples.targets, [0, 0.5, 1])
        values = {"lowest": float(low), "median": float(middle), "highest": float(high)}
    return {
        "sources": list(sources),
        "digest": examples.digest,
        "num_examples": len(examples),
        "label_names": list(examples.label_names),
        "counts": dict(class_counts(examples)),
        "values": values,
        "shortest": min(lengths, default=0),
        "longest": max(lengths, default=0),
        "notes": list(examples.notes),
    }


@contextmanager
def output_folder(path: Path | str, *, force: bool) -> Iterator[Path]:
    """Yield the folder of a run, made if it is absent, with room for its files.

    Raises:
        EvoDataError: if it cannot be made.
        OutputExistsError: if one of the files is there and `force` is not given.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise EvoDataError(f"output {folder} is a file; give the name of a folder")
    made = not folder.exists()
    if made and not folder.parent.is_dir():
        raise EvoDataError(f"output folder {folder.parent} does not exist; create it first")
    folder.mkdir(exist_ok=True)
    for name in (HEAD, RESULTS, PREDICTIONS, REPORT):
        check_output(folder / name, force=force)
    try:
        yield folder
    except BaseException:
        # An empty folder would only be in the way of the next try.
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise


def write_results(
    folder: Path,
    results: Mapping[str, Any],
    head: SequenceHead | VariantHead | None,
    examples: Examples,
    outputs: Floats,
    folds: Indices,
    *,
    force: bool = False,
) -> None:
    """Write head, predictions, figures and report of a run, the figures last; all of them or none.

    Args:
        folder: Of `output_folder`.
        results: The figures; the report is made of these alone.
        head: None where the network itself was trained, which is saved apart.
        examples: Those that were predicted.
        outputs: For them.
        folds: Of them.
        force: Whether existing files may be replaced.
    """
    from evo_toolkit.finetuning.report import write_report

    if force:
        # Figures of an earlier run beside this head would be taken for its own.
        (folder / RESULTS).unlink(missing_ok=True)
    written: list[Path] = []
    try:
        if head is not None:
            head.save(folder / HEAD, force=force)
            written.append(folder / HEAD)
        write_predictions(folder / PREDICTIONS, examples, outputs, folds, force=force)
        written.append(folder / PREDICTIONS)
        write_report(folder / REPORT, results, force=force)
        written.append(folder / REPORT)
        write_figures(folder / RESULTS, results, force=force)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def write_figures(path: Path, results: Mapping[str, Any], *, force: bool = False) -> None:
    """Write `results.json`: the figures, and which format and program they are of."""
    about = {"format_version": FORMAT_VERSION, "program": f"evo_toolkit {__version__}"}
    with atomic_output(path, force=force) as temporary:
        text = json.dumps({**about, **results}, indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def write_predictions(
    path: Path, examples: Examples, outputs: Floats, folds: Indices, *, force: bool = False
) -> None:
    """Write a row for each example: id, group, fold, label, and the outputs of a fit that had not seen it."""
    names = output_columns(examples.label_names, outputs)
    with atomic_output(path, force=force) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:  # fmt: skip
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["id", "group", "fold", "label", *names])
        for index, name in enumerate(examples.ids):
            group = "" if examples.groups is None else examples.groups[index]
            values = np.atleast_1d(outputs[index])
            writer.writerow([name, group, int(folds[index]), label_text(examples, index), *(f"{v:.6g}" for v in values)])  # fmt: skip


def output_columns(label_names: Sequence[str], outputs: Floats) -> list[str]:
    """Names of the columns of outputs."""
    if outputs.ndim == 2:
        return [f"p_{name}" for name in label_names]
    return [f"p_{label_names[1]}"] if label_names else ["predicted"]


def label_text(examples: Examples, index: int) -> str:
    """The target of one example as text."""
    target = examples.targets[index]
    if examples.kind == "multilabel":
        return ";".join(n for n, on in zip(examples.label_names, target, strict=True) if on)
    return examples.label_names[int(target)] if examples.label_names else f"{float(target):.6g}"
