"""A page about a fine-tuning run: figures beside baselines, curves, calibration, where it goes wrong.

It is made of `results.json` alone. One HTML file that loads nothing and runs nothing; every string
of the user's is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from evo_data.files import atomic_output
from evo_toolkit._version import __version__
from evo_toolkit.finetuning.metrics import LOWER_IS_BETTER, METRIC_NAMES
from evo_toolkit.finetuning.report_figures import (
    calibration_plot,
    confusion_table,
    intervals,
    rates,
    scatter,
)
from evo_toolkit.variants.report_page import page_head, page_table

_MOST_CLASSES = 30
_STYLE = """<style>
figure { margin: 0; } .figures { display: flex; flex-wrap: wrap; gap: 8px 14px; }
table.confusion td, table.confusion th { padding: 4px 12px; text-align: right; min-width: 4em; }
.verdict { font-size: 17px; }
</style>"""


def write_report(path: Path | str, results: Mapping[str, Any], *, force: bool = False) -> None:
    """Write the page.

    Args:
        path: An HTML file.
        results: As `results.json` holds them: of `evo_toolkit.finetuning.results.judged`, with `method`, `task`,
            `model`, `data` and, where known, `settings`, `split`, `leaks`, `chosen`, `training`.
        force: Whether an existing file may be replaced.

    Raises:
        EvoDataError: if the file exists or cannot be written.
    """
    name = results.get("name") or results["task"]
    parts = [
        page_head(f"Fine-tuning: {name}"),
        _STYLE,
        *(f'<p class="warning">{escape(text)}</p>' for text in results.get("warnings", ())),
        _verdict(results),
        _metrics(results),
        _drawings(results),
        _mistakes(results),
        _folds(results),
        _hygiene(results),
        _about(results),
        "</main></body></html>\n",
    ]
    with atomic_output(path, force=force) as temporary:
        temporary.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def _shown(one: Mapping[str, float | None] | None) -> str:
    if not one or one["value"] is None:
        return "none"
    if one["low"] is None or one["high"] is None:
        return f"{one['value']:.3f}"
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _verdict(results: Mapping[str, Any]) -> str:
    """The primary figure beside the baselines, and in words whether it is ahead."""
    name = results["primary"]
    rows = [("the network", results["metrics"][name])]
    rows += [(other, metrics[name]) for other, metrics in results["baselines"].items()]
    words = []
    for other, lead in results["lead"].items():
        low, high = lead["low"], lead["high"]
        if lead["value"] is None:
            continue
        if low is not None and low > 0:
            verdict = f"ahead of {other} by {_shown(lead)}"
        elif high is not None and high < 0:
            verdict = f"BEHIND {other} by {_shown(_turned(lead))}"
        else:
            verdict = f"not told apart from {other} ({_shown(lead)})"
        words.append(verdict)
    sentence = (
        f'<p class="verdict">{escape(METRIC_NAMES[name])} <strong>{escape(_shown(results["metrics"][name]))}</strong>'
        + (f": {escape('; '.join(words))}" if words else "")
        + ".</p>"
    )
    how = _how(results)
    return f"{sentence}<p class=note>{escape(how)}</p>{intervals(rows, METRIC_NAMES[name])}"


def _turned(one: Mapping[str, float | None]) -> dict[str, float | None]:
    def minus(value: float | None) -> float | None:
        return None if value is None else -value

    return {"value": minus(one["value"]), "low": minus(one["high"]), "high": minus(one["low"])}


def _how(results: Mapping[str, Any]) -> str:
    split = results.get("split", {})
    on = (
        f"a test set of {results['num_examples']:,} examples"
        if split.get("test_set")
        else f"{results['num_examples']:,} examples, each predicted by a fit that had not seen it ({results['num_folds']} folds)"
    )
    by = f"; what stays together: {split['by']}" if split.get("by") else ""
    return f"Judged on {on}{by}. 95 % intervals resample {results['num_groups']:,} groups {results['resamples']:,} times."


def _metrics(results: Mapping[str, Any]) -> str:
    names = ["the network", *results["baselines"]]
    tables = [results["metrics"], *results["baselines"].values()]
    rows = [
        (METRIC_NAMES.get(name, name) + (" (lower is better)" if name in LOWER_IS_BETTER else ""), *(_shown(table.get(name)) for table in tables))
        for name in results["metrics"]
    ]  # fmt: skip
    note = "Ranks are compared within folds alone."
    if results["problem"] != "regression":
        note += " Classes are those with probability 0.5 or more, of several the most probable one."
    if "calibration_error" in results:
        note += (
            f" Mean distance of predicted and observed shares: {results['calibration_error']:.3f}."
        )
    return f"<h2>Figures</h2>{page_table(rows, ('', *names), len(names))}<p class=note>{escape(note)}</p>"


def _drawings(results: Mapping[str, Any]) -> str:
    curves = results.get("curves", {})
    drawn = []
    if any(name.startswith("roc ") for name in curves):
        drawn += [rates(curves, "roc"), rates(curves, "pr")]
    if curves.get("pairs"):
        drawn.append(scatter(curves["pairs"]))
    if results.get("calibration"):
        drawn.append(calibration_plot(results["calibration"]))
    return f'<h2>Curves</h2><div class="figures">{"".join(drawn)}</div>' if drawn else ""


def _mistakes(results: Mapping[str, Any]) -> str:
    table = results.get("confusion")
    if not table:
        return ""
    names = results["data"]["label_names"]
    if results["problem"] == "multilabel":
        rows = [(name, *(f"{count:,}" for count in row)) for name, row in zip(names, table, strict=True)][:_MOST_CLASSES]  # fmt: skip
        return "<h2>Labels</h2>" + page_table(rows, ("label", "neither", "said, not true", "true, not said", "both"), 4)  # fmt: skip
    return "<h2>Confusion matrix</h2>" + confusion_table(table, names)


def _folds(results: Mapping[str, Any]) -> str:
    parts = []
    chosen = results.get("chosen_by_fold") or []
    sizes = results.get("split", {}).get("folds") or []
    if len(results["by_fold"]) > 1:
        rows = []
        for index, fold in enumerate(results["by_fold"]):
            own = chosen[index] if index < len(chosen) else {}
            value = "none" if fold["value"] is None else f"{fold['value']:.3f}"
            train = f"{sizes[index]['train']:,}" if index < len(sizes) else ""
            rows.append((fold["fold"], own.get("layer", ""), _penalty(own.get("penalty")), train, f"{fold['num_examples']:,}", value))  # fmt: skip
        parts.append("<h2>Folds</h2>" + page_table(rows, ("fold", "layer chosen", "penalty chosen", "trained on", "held out", METRIC_NAMES[results["primary"]]), 4))  # fmt: skip
    final = results.get("chosen")
    if final:
        by_layer = final.get("by_layer") or {}
        text = f"The head reads {final['layer']} with penalty {_penalty(final['penalty'])}, chosen on inner folds of all training examples."
        parts.append(f"<h3>The head</h3><p>{escape(text)}</p>")
        if len(by_layer) > 1:
            sign = -1 if final["by"] in LOWER_IS_BETTER else 1
            inner = [(layer, "none" if value is None else f"{sign * value:.3f}") for layer, value in by_layer.items()]  # fmt: skip
            parts.append(
                page_table(inner, ("layer", f"inner folds: {METRIC_NAMES[final['by']]}"), 1)
            )
            parts.append('<p class="note">Inner figures chose the layer and so are no estimate of what it will do.</p>')  # fmt: skip
    return "".join(parts)


def _penalty(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else ""


def _hygiene(results: Mapping[str, Any]) -> str:
    leaks = results.get("leaks") or []
    if not leaks:
        return ""
    rows = [
        (leak["against"], leak["k"] or "site", f"{leak['sequences']:,} of {leak['total']:,}", f"{leak['identical']:,}", f"{leak['kmers']:.2%}")
        for leak in leaks
    ]  # fmt: skip
    head = ("Shared with", "k", "sequences that share one", "all they have", "of what is distinct")
    return "<h2>What test and training share</h2>" + page_table(rows, head, 4)


def _about(results: Mapping[str, Any]) -> str:
    data, model = results["data"], results["model"]
    rows: list[tuple[str, object]] = [
        ("Task", results["task"]), ("Method", results["method"]),
        ("Data", ", ".join(data["sources"])),
        ("Examples", f"{data['num_examples']:,}, {data['shortest']:,} to {data['longest']:,} bases"),
        *((("Classes", ", ".join(f"{n} {c:,}" for n, c in list(data["counts"].items())[:_MOST_CLASSES])),) if data["counts"] else ()),
        *((("Values", f"{data['values']['lowest']:.4g} to {data['values']['highest']:.4g}, median {data['values']['median']:.4g}"),) if data.get("values") else ()),
        ("Data, sha256", data["digest"]),
        ("Model", f"{model['model']}, {model.get('parameters', 0):,} parameters, {model.get('precision', '')}"),
        ("Model, sha256", model["model_sha256"]),
    ]  # fmt: skip
    for key in ("settings", "training"):
        rows += [
            (name.replace("_", " ").capitalize(), _plain(value))
            for name, value in (results.get(key) or {}).items()
            if value is not None
        ]
    rows.append(("Program", f"evo_toolkit {__version__}"))
    if results.get("command"):
        rows.append(("Command", results["command"]))
    return "<h2>The run</h2>" + page_table(rows)


def _plain(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_plain(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
