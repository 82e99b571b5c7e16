"""The page about a run: what it says, and that it neither loads nor runs anything."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evo_toolkit.finetuning.metrics import Outcome
from evo_toolkit.finetuning.report import write_report
from evo_toolkit.finetuning.results import judged, output_folder

EVIL = "<script>alert(1)</script>"


def results(
    outcome: Outcome, outputs: np.ndarray, baselines: dict[str, np.ndarray]
) -> dict[str, Any]:
    folds = np.arange(len(outcome)) % 2
    return {
        "method": "frozen", "task": outcome.problem, "name": EVIL, "warnings": [EVIL], "command": EVIL,
        "model": {"model": "toy", "model_sha256": "s"}, "leaks": [],
        "data": {
            "sources": [EVIL], "digest": "d", "num_examples": len(outcome), "label_names": list(outcome.names),
            "counts": dict.fromkeys(outcome.names, 1), "values": None, "shortest": 1, "longest": 2,
        },
        **judged(outcome, outputs, folds, np.arange(len(outcome)), baselines=baselines, resamples=200),
    }  # fmt: skip


class Page(HTMLParser):
    """Tags and their balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name in ("src", "href", "onload", "onclick") for name, _ in attrs), tag
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(path: Path, found: dict[str, Any]) -> str:
    write_report(path, found)
    text = path.read_text(encoding="utf-8")
    parsed = Page(text)
    assert not parsed.open and not parsed.tags & {"script", "link", "img", "iframe"}
    assert "default-src 'none'" in text and EVIL not in text
    return text


def drawn(classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, 120)
    odds = np.exp(rng.normal(size=(120, classes)) + 2 * np.eye(classes)[truth])
    return truth, odds / odds.sum(axis=1, keepdims=True)


def test_who_is_ahead_is_said_in_words(tmp_path: Path) -> None:
    truth, shares = drawn(2)
    outcome = Outcome(problem="binary", targets=truth, names=("no", EVIL))
    good, guess = shares[:, 1], np.random.default_rng(1).random(120)
    ahead = page(tmp_path / "a.html", results(outcome, good, {"plain": guess}))
    assert re.search(r"ahead of plain by 0\.\d+ \[", ahead)
    behind = page(tmp_path / "b.html", results(outcome, guess, {"plain": good}))
    assert re.search(r"BEHIND plain by 0\.\d+ \[0\.", behind)
    even = page(tmp_path / "c.html", results(outcome, good, {"plain": good}))
    assert "not told apart from plain" in even
    for part in ("ROC", "Precision and recall", "Calibration", "Confusion matrix", "Folds"):
        assert part in ahead


@pytest.mark.parametrize("problem", ["multiclass", "multilabel", "regression"])
def test_other_problems_have_their_drawings(tmp_path: Path, problem: str) -> None:
    truth, shares = drawn(3)
    if problem == "multiclass":
        outcome = Outcome(problem="multiclass", targets=truth, names=("a", "b", EVIL))
        text = page(tmp_path / "r.html", results(outcome, shares, {}))
        assert "true \\ said" in text and text.count("<polyline") >= 7
    elif problem == "multilabel":
        outcome = Outcome(problem="multilabel", targets=np.eye(3, dtype=bool)[truth], names=("a", "b", EVIL))  # fmt: skip
        text = page(tmp_path / "r.html", results(outcome, shares, {}))
        assert "said, not true" in text and "Calibration" in text
    else:
        values = np.random.default_rng(2).normal(size=120)
        outcome = Outcome(problem="regression", targets=values)
        text = page(tmp_path / "r.html", results(outcome, values + 0.1, {"plain": -values}))
        assert "True and predicted" in text and text.count("<circle") > 120
        assert "probability 0.5" not in text


def test_a_folder_that_was_made_for_nothing_is_gone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), output_folder(tmp_path / "new", force=False):
        raise RuntimeError
    assert not (tmp_path / "new").exists()
    (tmp_path / "kept").mkdir()
    with pytest.raises(RuntimeError), output_folder(tmp_path / "kept", force=False) as folder:
        (folder / "notes.txt").write_text("mine")
        raise RuntimeError
    assert (tmp_path / "kept" / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="is a file"), output_folder(tmp_path / "kept/notes.txt", force=True):  # fmt: skip
        pass
