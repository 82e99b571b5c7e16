"""Short sequences packed several to a window."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np


def pack_stretches(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute stretches over windows: longest first, each where it leaves the least room.

    Args:
        sizes: Tokens of each stretch, at most `capacity`; one more goes between two.
        capacity: Tokens of a window.

    Returns:
        Indices of the stretches of each window.
    """
    order = np.argsort(-np.array(sizes, np.int64), kind="stable").tolist()
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # packs with room for so many tokens more
    rooms: list[int] = []  # the keys, sorted
    for at in order:
        needed = sizes[at] + 1
        fitting = bisect_left(rooms, needed)
        if fitting < len(rooms):
            room = rooms[fitting]
            pack = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[fitting]
            packs[pack].append(at)
            room -= needed
        else:
            pack, room = len(packs), capacity - sizes[at]
            packs.append([at])
        if room in by_room:
            by_room[room].append(pack)
        elif room > 2:  # the least that fits is an EOD and two bases
            by_room[room] = [pack]
            insort(rooms, room)
    return packs
