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


def run(size: int, folder: Path, mode: str, limit: int = 200) -> dict[str, Any]:
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
        said = [process.communicate(timeout=limit)[1][-2000:] for process in processes]
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
    """Every kind of layer by every strategy; operators as torch checks them; bytes as they are foretold."""
    found = run(size, tmp_path, "values,operators,traffic" if size == 2 else "values,traffic")
    results = found["values"]
    said = {name: results.pop(name) for name in list(results) if name.startswith("refused")}
    assert len(results) == (41 if size == 3 else 45)
    wrong = {name: value for name, value in results.items() if not value < 1e-12}
    assert not wrong
    assert "explicit is 'states'; use halo, " in said["refused strategy"]
    assert "bidirectional long convolution by halo is not divided" in said["refused ahead"]
    assert "learned butterflies is not divided" in said["refused learned"]
    assert ("3 is not a power of two" in said["refused fft"]) == (size == 3)
    assert f"over {size} ranks" in said["refused lengths"]
    assert len(found["traffic"]) == (12 if size == 3 else 15)
    assert not {name: pair for name, pair in found["traffic"].items() if pair[0] != pair[1]}
    operators = ("exchange", "place", "gather", "ring_attention")
    assert found.get("operators", {}) == (dict.fromkeys(operators, "") if size == 2 else {})


@pytest.mark.slow
def test_blocks_compile_as_whole_graphs(tmp_path: Path) -> None:
    results = run(2, tmp_path, "compiled", limit=500)["compiled"]
    assert len(results) == 10
    assert not {name: value for name, value in results.items() if not value < 1e-12}
