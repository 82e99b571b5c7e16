"""Items that a thread makes while those before them are used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _Failed:
    error: BaseException


class _End:
    """Nothing follows."""


def read_ahead(items: Iterable[T], number: int = 2) -> Iterator[T]:
    """Yield items that a thread makes meanwhile, so that no device waits for files or for Python.

    What the items raise is raised here, in their order. Whoever stops early stops the thread, too.

    Args:
        number: Items that are made before they are asked for.
    """
    waiting: queue.Queue[T | _Failed | _End] = queue.Queue(number)
    stopped = threading.Event()

    def put(item: T | _Failed | _End) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def read() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(_End())
        except BaseException as error:  # noqa: BLE001 (raised again by whoever reads)
            put(_Failed(error))

    thread = threading.Thread(target=read, name="reader", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), _End):
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stopped.set()
        # bcftools may be at a hundred thousand records; nobody waits for those.
        thread.join(5)
