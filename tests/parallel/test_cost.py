"""The cost model: what was measured, what must hold of it, and what it refuses."""

from __future__ import annotations

import pytest

from evo_toolkit.errors import UsageError
from evo_toolkit.model.registry import MODELS
from evo_toolkit.parallel.cost import DEFAULT_STRATEGY, sent, step_cost

SHAPE = MODELS["evo2_7b_base"].config


@pytest.mark.parametrize(
    ("length", "measured"),
    # docs/benchmarks.md, "The model": one H200. The rates come from the last; the others are foretold.
    [(8_192, 0.1686), (32_768, 0.7537), (131_072, 3.8918)],
)
def test_a_forward_takes_what_was_measured(length: int, measured: float) -> None:
    assert step_cost(SHAPE, length, 1, backward=False).seconds == pytest.approx(measured, rel=0.2)


def test_bytes_of_the_released_shape() -> None:
    """As in the table of the documentation, 131,072 positions over 8 ranks; halos and states by hand."""
    found = {
        (symbol, name): sent(SHAPE, symbol, name, 131_072, 8).forward
        for symbol, name in (*DEFAULT_STRATEGY.items(), ("H", "all-to-all"), ("H", "fft"))
    }
    assert found["S", "halo"] == 8 * 3 * 4096 * 2
    assert found["D", "halo"] == 129 * 3 * 4096 * 2
    assert found["H", "states"] == 7 * 4096 * 16 * 4 + 2 * 3 * 4096 * 2
    # Three tensors of a part go, one comes back, an eighth of each stays.
    assert found["H", "all-to-all"] == found["*", "heads"] == 4 * 16_384 * 4096 * 2 * 7 // 8
    assert found["H", "fft"] > 6 * found["H", "all-to-all"]


def test_ranks_share_the_work() -> None:
    """Never more than as many times as fast, and less where messages weigh more."""
    one = step_cost(SHAPE, 131_072, 1).seconds
    gains = {n: one / step_cost(SHAPE, 131_072, n).seconds for n in (2, 4, 8, 16, 64)}
    assert all(n / 2 < gain < n for n, gain in gains.items())
    shares = [gains[n] / n for n in gains]
    assert shares == sorted(shares, reverse=True)
    by_channels = step_cost(SHAPE, 131_072, 8, strategies={**DEFAULT_STRATEGY, "H": "all-to-all"})
    assert by_channels.seconds > step_cost(SHAPE, 131_072, 8).seconds


def test_a_ring_makes_the_last_rank_wait_for_nobody() -> None:
    heads, ring = (
        step_cost(SHAPE, 131_072, 8, strategies={**DEFAULT_STRATEGY, "*": name}).mixers
        for name in ("heads", "ring")
    )
    assert ring > 1.5 * heads
    # 32 heads: of 64 ranks half have nothing to do.
    idle, busy = (
        step_cost(SHAPE, 131_072, n, strategies=DEFAULT_STRATEGY).mixers * n for n in (64, 32)
    )
    assert idle > 1.5 * busy


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="'S' has no strategy 'states' over 2 ranks"):
        sent(SHAPE, "S", "states", 1024, 2)
    with pytest.raises(UsageError, match="no strategy 'fft' over 3 ranks"):
        sent(SHAPE, "D", "fft", 1026, 3)
    with pytest.raises(UsageError, match="rates of layers '3'"):
        step_cost(SHAPE.replace(pattern="3"), 1024, 2)
