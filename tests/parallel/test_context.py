"""Sequences over ranks against one process: logits, loss and every gradient, in float64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_RANKS = Path(__file__).with_name("ranks.py")


def run(size: int, folder: Path, mode: str) -> dict[str, Any]:
    """Start the ranks, and return what rank 0 wrote."""
    out = folder / "out.json"
    processes = [
        subprocess.Popen(
            [sys.executable, _RANKS, str(rank), str(size), str(folder / "store"), str(out), mode],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=280)[1][-2000:] for process in processes]
        assert all(process.returncode == 0 for process in processes), "\n".join(said)
    finally:
        for process in processes:
            process.kill()
    results: dict[str, Any] = json.loads(out.read_text())
    return results


@pytest.mark.parametrize(
    "size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_ranks_compute_what_one_process_does(size: int, tmp_path: Path) -> None:
    results = run(size, tmp_path, "values")
    said = {name: results.pop(name) for name in list(results) if name.startswith("refused")}
    assert len(results) == (43 if size == 3 else 47)
    wrong = {name: value for name, value in results.items() if not value < 1e-12}
    assert not wrong
    assert "explicit is 'states'; use halo, " in said["refused strategy"]
    assert "bidirectional long convolution by halo is not divided" in said["refused ahead"]
    assert "learned butterflies is not divided" in said["refused learned"]
    assert ("3 is not a power of two" in said["refused fft"]) == (size == 3)
    assert f"over {size} ranks" in said["refused lengths"]


def test_operators_are_well_formed(tmp_path: Path) -> None:
    """Schema, fakes, gradients' registration and compilation, as torch checks them; bytes are counted."""
    said = run(2, tmp_path, "operators")
    assert said.pop("bytes") == "True"
    assert said == dict.fromkeys(("exchange", "place", "gather", "ring_attention"), "")


@pytest.mark.slow
def test_blocks_compile_as_whole_graphs(tmp_path: Path) -> None:
    results = run(2, tmp_path, "compiled")
    assert len(results) == 23
    assert not {name: value for name, value in results.items() if not value < 1e-12}
