"""What a window says about itself: counts of contexts seen earlier in it, on both strands.

A model in context learns such repeats; a table of the training genomes cannot. So the second
baseline has both (`mixture`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import OTHER
from evo_toolkit.errors import UsageError
from evo_toolkit.evaluation.genomes import Bytes
from evo_toolkit.evaluation.markov import context_lengths

MAX_ADAPTIVE_ORDER = 16
LONGEST_WINDOW = 32_768
"""Four counts of up to twice the window share one 64-bit sum."""


def adaptive_counts(codes: Bytes, order: int) -> NDArray[np.uint16]:
    """How often each base followed the present context earlier in the window, `[W, L, 4]`.

    Both strands of what was read count: a k-mer and its reverse complement, each once, from the
    position at which its last base was read. Position t knows the bases 0..t-1 alone.

    Args:
        codes: `[W, L]`, windows in reading direction.
        order: Length of the context, 1 to 16.

    Raises:
        UsageError: for an order or a window outside of the limits.
    """
    windows, length = codes.shape
    if not 1 <= order <= MAX_ADAPTIVE_ORDER:
        raise UsageError(f"adaptive order {order} is out of range; use 1 to {MAX_ADAPTIVE_ORDER}")
    if length > LONGEST_WINDOW:
        raise UsageError(f"window {length} is longer than {LONGEST_WINDOW}; use a shorter one")
    time_bits = max(length - 1, 1).bit_length()
    if time_bits + 3 + 2 * order + windows.bit_length() > 63:
        raise UsageError(f"{windows} windows of {length} are too many at a time; give fewer")
    flat = codes.reshape(-1)
    values = np.where(flat < OTHER, flat, 0).astype(np.int64)
    before = np.zeros(flat.size, np.int64)  # x[t-order..t-1]
    other_strand = np.zeros(flat.size, np.int64)  # complements of x[t], x[t-1], .., x[t-order+1]
    for lag in range(order):
        before[lag + 1 :] |= values[: flat.size - lag - 1] << (2 * lag)
        other_strand[lag:] |= (3 - values[: flat.size - lag]) << (2 * (order - 1 - lag))
    known = context_lengths(codes).reshape(-1) >= order
    place = np.arange(flat.size, dtype=np.int64)
    row, time = np.divmod(place, length)
    # One number per question and per event, which sorts by window, context and time; at one time
    # the question comes before the events. Layout: row | context | time | event? | base.
    above = time_bits + 3
    head = (row << (2 * order)) << above
    stamp = time << 3
    learn = known & (flat < OTHER)
    oldest = np.zeros(flat.size, np.int64)
    oldest[order:] = 3 - values[: flat.size - order]
    entries = np.concatenate(
        [
            (head + (before << above) + stamp)[known],
            (head + (before << above) + stamp + 4 + values)[learn],
            (head + (other_strand << above) + stamp + 4 + oldest)[learn],
        ]
    )
    entries.sort()
    base = entries & 3
    is_event = (entries & 4) > 0
    # Counts of the four bases in fields of 16 bits; differences of the running sum stay exact
    # although the sum itself wraps around.
    step = np.where(
        is_event, np.uint64(1) << (base.astype(np.uint64) * np.uint64(16)), np.uint64(0)
    )
    total = np.cumsum(step, dtype=np.uint64)
    context = entries >> above
    first = np.flatnonzero(np.concatenate(([True], context[1:] != context[:-1])))
    start = np.repeat(total[first] - step[first], np.diff(np.append(first, entries.size)))
    asked = ~is_event
    found = (total - start)[asked]
    where = (context[asked] >> (2 * order)) * length + (
        (entries[asked] >> 3) & ((1 << time_bits) - 1)
    )
    result = np.zeros((flat.size, 4), np.uint16)
    result[where] = found[:, None] >> np.array([0, 16, 32, 48], np.uint64) & np.uint64(0xFFFF)
    return result.reshape(windows, length, 4)
