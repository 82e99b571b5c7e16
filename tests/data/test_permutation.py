"""The permutation is one, both routes to it agree, and it never changes."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from evo_data.errors import EvoDataError
from evo_data.permutation import keyed_hash, permute

SIZES = [*range(1, 18), 31, 64, 65, 129, 1000, 4097]


@pytest.mark.parametrize("n", SIZES)
def test_every_position_comes_once_and_one_by_one_gives_the_same(n: int) -> None:
    whole = permute(np.arange(n), n, (7, n))
    assert sorted(whole) == list(range(n))
    assert [permute(k, n, (7, n)) for k in range(min(n, 50))] == list(whole[:50])


def test_golden() -> None:
    # A run that resumes after an update goes on in the order that it began with: never change these.
    assert keyed_hash(()) == 16294208416658607535
    assert keyed_hash((1, 2)) == 9231840426040001144
    assert keyed_hash((-1,)) == 3942601436946758747
    assert list(permute(np.arange(10), 10, (1, 2))) == [0, 8, 6, 9, 7, 1, 4, 5, 3, 2]
    assert permute(123456789012, 2**40 + 7, (5,)) == 627381401387
    assert list(permute(np.arange(5) * 1000, 100003, (2026, 0))) == [
        95597,
        14080,
        80863,
        15708,
        81370,
    ]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_order_of_a_few_is_equally_likely(n: int) -> None:
    trials = 60 * math.factorial(n)
    seen = Counter(tuple(permute(k, n, (s, 3)) for k in range(n)) for s in range(trials))
    chi_square = sum((seen[order] - 60) ** 2 / 60 for order in itertools.permutations(range(n)))
    freedom = math.factorial(n) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_neighbours_are_not_neighbours_any_more() -> None:
    order = permute(np.arange(100_000), 100_000, (3,)).astype(float)
    # The standard error of a correlation of 100,000 independent pairs is 0.003.
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.015
    assert abs(np.corrcoef(order, np.arange(order.size))[0, 1]) < 0.015


def test_keys_differ_in_every_part_order_and_length() -> None:
    keys = [(1, 2), (2, 1), (1, 2, 0), (1,), (0, 1, 2), (-1, 2), (2**40, 2)]
    assert len({keyed_hash(key) for key in keys}) == len(keys)
    orders = {tuple(permute(np.arange(50), 50, key).tolist()) for key in keys}
    assert len(orders) == len(keys)


def test_shape_is_kept_and_no_position_is_fine() -> None:
    assert permute(np.arange(12).reshape(3, 4), 12, (1,)).shape == (3, 4)
    assert permute(np.zeros(0, np.int64), 5, (1,)).size == 0


def test_wrong_positions_are_refused() -> None:
    for k, n in [(5, 5), (-1, 5), (0, 0), (0, 2**63)]:
        with pytest.raises(EvoDataError):
            permute(k, n, (1,))
    with pytest.raises(EvoDataError, match="outside of 0 to 4"):
        permute(np.array([1, 5]), 5, (1,))
    with pytest.raises(EvoDataError, match="64 bits"):
        permute(0, 5, (2**64,))
