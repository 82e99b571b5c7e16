"""The benchmark over ranks at toy size, with processes on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[2] / "kernels" / "benchmarks" / "context_parallel.py"


def run(*arguments: str) -> str:
    """What the command prints, with two ranks of a shallow evo-mini."""
    command = [sys.executable, str(_SCRIPT), "--device", "cpu", "--limit", "200", "--repeats", "1"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=True, timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ).stdout  # fmt: skip


@pytest.mark.slow
def test_every_section_measures_something() -> None:
    said = run(
        "--model", "evo-mini", "--layers", "4", "--lengths", "200", "--agreement-length", "200",
        "--longest", "1:200", "2:200", "--adamw", "2:200", "--forward", "200", "--large", "200",
        "--mlp-chunk", "64",
    )  # fmt: skip
    assert "failed" not in said and "over the limit" not in said
    # Float32 on both sides: one device and two ranks differ by rounding.
    differences = [float(x) for x in re.findall(r"2 ranks.*gradients (\S+)", said)]
    assert len(differences) == 5 and max(differences) < 1e-5
    assert len(re.findall(r"^  (?:Hyena-\w\w|attention) .* ms .* MB", said, re.MULTILINE)) == 20
    assert len(re.findall(r"positions: [\d,]+ ms, [\d,]+ tokens/s", said)) == 2
    assert len(re.findall(r"MLP in chunks of 64: [\d,]+ ms", said)) == 2
    assert len(re.findall(r"AdamW: [\d,]+ ms", said)) == 1
    assert "times as fast" in said and "bases/s" in said and "1,048,576 positions on" in said
    assert float(re.findall(r"rows differ by (\S+)", said)[0]) < 1e-5


@pytest.mark.slow
def test_a_measurement_that_fails_is_told_and_the_next_one_runs() -> None:
    said = run("--model", "nobody", "--sections", "large", "forward", "--forward", "100")
    assert said.count("failed") == 2
    assert "nobody" in said
