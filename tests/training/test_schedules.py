"""Learning-rate schedules by hand-computed values."""

from __future__ import annotations

import pytest

from evo_toolkit.errors import UsageError
from evo_toolkit.training.schedules import ScheduleConfig


def line(total: int, **arguments: object) -> list[float]:
    schedule = ScheduleConfig(**arguments)  # type: ignore[arg-type]
    return [schedule.factor(step, total) for step in range(total)]


def test_wsd_warms_up_stays_and_decays() -> None:
    found = line(10, shape="wsd", warmup_steps=2, decay_fraction=0.4, min_ratio=0.2)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1.0, 0.8, 0.6, 0.4])


def test_wsd_by_the_square_root() -> None:
    found = line(6, shape="wsd", warmup_steps=0, decay_fraction=4 / 6, decay="sqrt")
    assert found == pytest.approx([1, 1, 1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])


def test_cosine_falls_to_the_minimum_from_the_end_of_the_warm_up() -> None:
    found = line(6, shape="cosine", warmup_steps=2, min_ratio=0.1)
    half = 0.1 + 0.9 * 0.5
    assert found[:3] == pytest.approx([0.5, 1, 1])
    assert found[4] == pytest.approx(half)
    assert ScheduleConfig(shape="cosine", min_ratio=0.1).factor(6, 6) == pytest.approx(0.1)


def test_constant_stays_and_a_warm_up_may_be_a_share() -> None:
    assert line(4, shape="constant", warmup_fraction=0.5) == pytest.approx([0.5, 1, 1, 1])


def test_no_step_of_any_schedule_is_wasted_or_above_the_peak() -> None:
    for shape in ("wsd", "cosine", "constant"):
        for total in (1, 2, 3, 50, 1000):
            values = line(total, shape=shape)
            assert all(0 < value <= 1 for value in values), (shape, total)
    # Beyond the end (a checkpoint resumed without more steps) the rate stays at its minimum.
    assert ScheduleConfig(min_ratio=0.1).factor(70, 50) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "wrong", [{"decay_fraction": 1.5}, {"min_ratio": -1}, {"warmup_steps": -1}]
)
def test_impossible_shapes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ScheduleConfig(**wrong)  # type: ignore[arg-type]
