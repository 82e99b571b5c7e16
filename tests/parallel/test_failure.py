"""A rank that fails ends the others, with its message and within a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).with_name("failing.py")
_KILLED = "failed and ended the run: its process ended without a word"


Outcomes = dict[str, tuple[list[int], str, float]]

# rank_of in failing.py says what each means.
_CASES = ("stays:0", "stays:1", "raises:0", "raises:1", "killed:0", "killed:1", "stopped:1", "told:1", "both:0", "well:0")  # fmt: skip


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Exit codes of ranks 0 and 1 (9: its own error, negative: a signal), and what they wrote."""
    done = subprocess.run(
        [sys.executable, _SCRIPT, *_CASES], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    found: Outcomes = json.loads(done.stdout)
    assert set(found) == set(_CASES)
    return found


@pytest.mark.parametrize("case", _CASES)
def test_nobody_waits_long(outcomes: Outcomes, case: str) -> None:
    # The group itself would wait for ten minutes, and one that stays for fifteen.
    assert outcomes[case][2] < 150


@pytest.mark.parametrize("who", [0, 1])
def test_the_other_rank_ends_with_the_message_though_the_failed_one_stays(
    outcomes: Outcomes, who: int
) -> None:
    codes, said, _ = outcomes[f"stays:{who}"]
    assert codes[who] == -9 and codes[1 - who] == 1
    assert said.splitlines() == [
        f"Error: rank {who} failed and ended the run: OSError: the disk is gone"
    ]


@pytest.mark.parametrize("who", [0, 1])
def test_both_say_what_it_was_and_the_exit_code_is_that_of_the_failure(
    outcomes: Outcomes, who: int
) -> None:
    codes, said, _ = outcomes[f"raises:{who}"]
    assert codes[who] == 9 and codes[1 - who] == 1
    assert f"rank {who} says: the disk\nis gone\n" in said
    assert f"rank {who} failed and ended the run: OSError: the disk is gone\n" in said
    assert "gloo" not in said


@pytest.mark.parametrize(("case", "who"), [("killed", 0), ("killed", 1), ("stopped", 1)])
def test_a_rank_without_a_word_is_missed(outcomes: Outcomes, case: str, who: int) -> None:
    codes, said, _ = outcomes[f"{case}:{who}"]
    assert codes[who] == -9 and codes[1 - who] == 1
    assert f"Error: rank {who} {_KILLED}" in said


def test_a_rank_that_is_told_to_end_tells_the_others(outcomes: Outcomes) -> None:
    codes, said, _ = outcomes["told:1"]
    assert codes == [143, 143]
    assert "rank 1 failed and ended the run: it was told to end\n" in said


def test_ranks_that_fail_alike_each_say_so_themselves(outcomes: Outcomes) -> None:
    codes, said, _ = outcomes["both:0"]
    assert codes == [9, 9]
    assert "ended the run" not in said


def test_a_run_that_ends_in_order_says_nothing(outcomes: Outcomes) -> None:
    codes, said, _ = outcomes["well:0"]
    assert codes == [0, 0]
    assert "rank" not in said
