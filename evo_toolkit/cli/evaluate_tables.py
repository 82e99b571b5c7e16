"""The tables that `evo-toolkit eval` prints of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


def print_table(rows: list[list[str]]) -> None:
    """Print rows on stdout, cells of a column under each other."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join(cells).rstrip())


def figure_text(figure: Mapping[str, float | None], digits: int = 3) -> str:
    """A figure with its interval, `0.912 [0.897, 0.925]`; - where there is none."""
    value, low, high = (figure[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def bits_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return bits per base by genome, strand and position, and the gains, one column a predictor."""
    names = list(figures["predictors"])
    rows = [["bits per base", "composition", *names]]
    for genome, values in figures["per_genome"].items():
        rows.append([genome, *(f"{values[name]:.4f}" for name in ("composition", *names))])
    rows.append(
        [
            "mean over genomes",
            f"{figures['composition']['mean']:.4f}",
            *(figure_text(figures["predictors"][name]["mean"], 4) for name in names),
        ]
    )
    for strand in ("+", "-"):
        found = [f"{figures['predictors'][name]['strand'][strand]:.4f}" for name in names]
        rows.append([f"strand {strand}", "", *found])
    ranges = [figures["predictors"][name]["by_position"] for name in names]
    for cells in zip(*ranges, strict=True):
        start, stop, _ = cells[0]
        rows.append([f"positions {start} to {stop - 1}", "", *(f"{x:.4f}" for _, _, x in cells)])
    if "gain_of_mixture_over_markov" in figures:
        rows.append(
            [
                "gain of mixture over markov",
                "",
                "",
                figure_text(figures["gain_of_mixture_over_markov"], 4),
            ]
        )
    for name, gain in figures.get("gain", {}).items():
        won = f"genomes won: {gain['genomes_won']} of {gain['genomes']}"
        rows.append([f"gain of model over {name}", figure_text(gain, 4), won])
    return rows


def snv_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return AUROCs of each class by predictor, and within parts of the data."""
    rows = [["AUROC against synonymous", "scores", "within strata", "raw", "table", "positives"]]
    for predictor in ("model", "shift", "codon position", "markov"):
        for kind in ("nonsense", "missense"):
            found = figures.get(predictor, {}).get(kind)
            if found is None:
                continue
            main = [found[name] for name in ("within_strata", "raw", "table")]
            cells = [figure_text(figure) for figure in main]
            rows.append([kind, predictor, *cells, str(main[0]["positives"])])
            for name, figure in found["parts"].items():
                rows.append(
                    [f"  {name}", "", figure_text(figure), "", "", str(figure["positives"])]
                )
    return rows


def essentiality_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return AUROCs of the model and of each feature."""
    rows = [["AUROC for essential", "all genes", "within fifths of length"]]
    for name, figure in figures["auroc"].items():
        rows.append(
            [name, figure_text(figure), figure_text(figures["auroc_within_fifths_of_length"][name])]
        )
    rows.append([f"{figures['num_essential']} of {figures['num_genes']} genes essential", "", ""])
    return rows


def brca1_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the AUROC of each comparison."""
    rows = [["BRCA1", "AUROC"]]
    rows += [
        [name, figure_text(figure)] for name, figure in figures.items() if name.startswith("LOF")
    ]
    return rows


def window_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rank correlation of each window, and the default that follows."""
    rows = [["window", f"Spearman with {figures['compared_with']}"]]
    rows += [[window, figure_text(figure, 4)] for window, figure in figures["spearman"].items()]
    rows.append(["default_window", str(figures["default_window"])])
    return rows


def labelled_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the metric of each predictor, and how far the model is ahead of it."""
    parts = [("", figures)]
    if "without_overlap" in figures:
        parts.append((" without 31-mers of the training genomes", figures["without_overlap"]))
    rows = [[f"{figures['metric']}, {figures['split']}", "", "model ahead by"]]
    for text, part in parts:
        if text:
            rows.append([f"{part['num_examples']:,} examples{text}", "", ""])
        for name, figure in part["figures"].items():
            ahead = part["model_minus"].get(name)
            rows.append([name, figure_text(figure), "" if ahead is None else figure_text(ahead)])
    rows.append([f"{figures['num_examples']:,} examples in {figures['num_groups']:,} groups", "", ""])  # fmt: skip
    return rows


def variants_table(figures: dict[str, Any]) -> list[list[str]]:
    """Return AUROC and AUPRC of all variants and of each consequence."""
    metrics = list(figures["all"]["model"])
    rows = [[f"window {figures['window']}", "variants", "positive", *metrics]]
    total = [f"{figures['num_variants']:,}", f"{figures['num_positive']:,}"]
    for name, found in figures["all"].items():
        label = "consequence alone (in sample)" if name == "consequence" else name
        rows.append([label, *total, *(figure_text(found[metric]) for metric in metrics)])
    for name, part in figures["by_consequence"].items():
        counts = [f"{part['num_variants']:,}", f"{part['num_positive']:,}"]
        rows.append(
            [f"  {name}", *counts, *(figure_text(part["model"][metric]) for metric in metrics)]
        )
    return rows
