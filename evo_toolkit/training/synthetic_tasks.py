"""Sequences of small symbolic languages whose answers are known: what a mixer must be able to do.

Induction head and associative recall are those of H3 (Fu et al., arXiv 2212.14052, section 3.1);
multi-token recall and compression are the abilities that the StripedHyena 2 paper (Ku et al., arXiv
2503.01868) names beside in-context recall. Compression is made as Poli et al., arXiv 2403.17844,
pose it.

A function draws N sequences and returns three arrays of theirs:

* `input_ids` `[N, L]` int64;
* `targets` `[N, T]` int64, what is to be said at each place; T is L, or the number of symbols that a
  compressed sequence had;
* `answers` `[N, T]` bool: where a target is asked for. Only those are scored.

Symbols are the tokens from 0 on, the kinds one behind the other in the order of the arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.errors import UsageError


class Sequences(NamedTuple):
    """Drawn sequences; the module describes the arrays."""

    input_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    answers: NDArray[np.bool_]


def induction_head(
    generator: np.random.Generator, number: int, *, length: int, num_symbols: int
) -> Sequences:
    """Random symbols, a marker once among them and once at the end: what followed it the first time?

    The marker is the last of `num_symbols`; one of the others is right with a chance of
    1 / (num_symbols - 1).

    Raises:
        UsageError: if `length` is below 3 or `num_symbols` below 3.
    """
    _at_least("context_length", length, 3)
    _at_least("num_symbols", num_symbols, 3)
    marker = num_symbols - 1
    input_ids = generator.integers(0, marker, (number, length))
    first = generator.integers(0, length - 2, number)
    rows = np.arange(number)
    input_ids[rows, first] = marker
    input_ids[:, -1] = marker
    targets = _following(input_ids, input_ids[rows, first + 1])
    answers = np.zeros(targets.shape, bool)
    answers[:, -1] = True
    return Sequences(input_ids, targets, answers)


def associative_recall(
    generator: np.random.Generator, number: int, *, length: int, num_keys: int, num_values: int
) -> Sequences:
    """Pairs of a key and its value, then a key seen before: what is its value?

    Every sequence has its own table of values. Asked for is the value of every key that came before,
    the last one among them; guessing among values is right with a chance of 1 / num_values.

    Raises:
        UsageError: if `length` is even or below 3 (pairs and a key make an odd number), or a kind of
            symbol is empty.
    """
    _at_least("num_keys", num_keys, 1)
    _at_least("num_values", num_values, 2)
    table = generator.integers(0, num_values, (number, num_keys, 1)) + num_keys
    keys = np.broadcast_to(np.arange(num_keys)[:, None], (number, num_keys, 1))
    return _recall(generator, keys, table, length)


def multi_token_recall(
    generator: np.random.Generator,
    number: int,
    *,
    length: int,
    num_entries: int,
    key_symbols: int,
    key_length: int,
    value_symbols: int,
    value_length: int,
) -> Sequences:
    """As `associative_recall`, of keys and values that are words of several symbols.

    Every sequence has its own dictionary of `num_entries` different words, which share symbols: to
    find a value, all symbols of its key must agree. All symbols of values are asked for.

    Raises:
        UsageError: if `length` + 1 is no multiple of `key_length + value_length`, or there are fewer
            words of `key_symbols` symbols than entries.
    """
    for name, value in (("key_symbols", key_symbols), ("key_length", key_length), ("value_length", value_length), ("num_entries", num_entries)):  # fmt: skip
        _at_least(name, value, 1)
    _at_least("value_symbols", value_symbols, 2)
    words = key_symbols**key_length
    if words < num_entries:
        raise UsageError(
            f"num_entries is {num_entries}, but {key_symbols} key_symbols make {words} words of key_length {key_length}; give fewer entries or longer keys"
        )
    # The places of the smallest random numbers are a draw without repetition.
    chosen = generator.random((number, words)).argsort(axis=1)[:, :num_entries]
    powers = key_symbols ** np.arange(key_length)[::-1]
    keys = chosen[..., None] // powers % key_symbols
    values = generator.integers(0, value_symbols, (number, num_entries, value_length))
    return _recall(generator, keys, values + key_symbols, length)


def compression(
    generator: np.random.Generator, number: int, *, length: int, num_symbols: int
) -> Sequences:
    """Random symbols, then a mark; all symbols are to be told from the mark's output alone.

    The mark is the token behind the symbols. `targets` are `[N, length - 1]`, the symbols in order;
    guessing is right with a chance of 1 / num_symbols.

    Raises:
        UsageError: if `length` is below 2 or `num_symbols` below 2.
    """
    _at_least("context_length", length, 2)
    _at_least("num_symbols", num_symbols, 2)
    targets = generator.integers(0, num_symbols, (number, length - 1))
    mark = np.full((number, 1), num_symbols)
    return Sequences(np.concatenate([targets, mark], 1), targets, np.ones(targets.shape, bool))


def _recall(
    generator: np.random.Generator,
    keys: NDArray[np.int64],
    values: NDArray[np.int64],
    length: int,
) -> Sequences:
    """Records of a key and its value, in random order with repetitions; the last key is a known one.

    Args:
        keys, values: Dictionaries, `[N, entries, symbols of a key or value]`.
        length: Inputs: all symbols of the records but the last.
    """
    number, num_entries, key_length = keys.shape
    record = key_length + values.shape[2]
    num_records, rest = divmod(length + 1, record)
    if rest or num_records < 2:
        below = max(num_records, 2) * record - 1
        raise UsageError(
            f"context_length is {length}; records of {record} symbols without the last symbol make {below} or {below + record}"
        )
    entry = generator.integers(0, num_entries, (number, num_records))
    repeated = generator.integers(0, num_records - 1, number)
    entry[:, -1] = entry[np.arange(number), repeated]
    rows = np.arange(number)[:, None]
    symbols = np.concatenate([keys[rows, entry], values[rows, entry]], axis=2)
    symbols = symbols.reshape(number, num_records * record)
    # known[n, r]: whether the entry of record r came before.
    same = entry[:, :, None] == entry[:, None, :]
    known = (same & np.tri(num_records, k=-1, dtype=bool)).any(axis=2)
    asked = np.zeros((number, num_records, record), bool)
    asked[:, :, key_length:] = known[:, :, None]
    asked = asked.reshape(symbols.shape)
    return Sequences(
        np.ascontiguousarray(symbols[:, :-1]),
        np.ascontiguousarray(symbols[:, 1:]),
        np.ascontiguousarray(asked[:, 1:]),
    )


def _following(input_ids: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token after each, `last` after the last."""
    return np.concatenate([input_ids[:, 1:], last[:, None]], axis=1)


def _at_least(name: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise UsageError(f"{name} is {value}; it must be at least {smallest}")
