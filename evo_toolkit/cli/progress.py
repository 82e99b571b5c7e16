"""A progress bar over bases on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    what: str, total: int, unit: str, *, quiet: bool
) -> Iterator[Callable[[int], None]]:
    """Yield what advances a bar with rate and time left; silent when quiet or not on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn(what), BarColumn(), TextColumn("{task.percentage:.0f}%"),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, disable=quiet or not console.is_terminal, transient=True,
    )  # fmt: skip
    task = bar.add_task(what, total=total, rate="")

    def advance(amount: int) -> None:
        elapsed = bar.tasks[0].elapsed or 0.0
        rate = f"{(bar.tasks[0].completed + amount) / elapsed:,.0f} {unit}/s" if elapsed else ""
        bar.update(task, advance=amount, rate=rate)

    with bar:
        yield advance
