"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def terminal_bar(*columns: ProgressColumn, quiet: bool) -> Progress:
    """Return a bar that is gone when done; silent when quiet or where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    shown = console.is_terminal and not quiet
    return Progress(*columns, console=console, disable=not shown, transient=True)


@contextmanager
def progress_bar(
    what: str, total: int | None, unit: str, *, quiet: bool
) -> Iterator[Callable[[int], None]]:
    """Yield what advances a bar with rate and time left; silent when quiet or not on a terminal."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bar = terminal_bar(
        TextColumn(what), BarColumn(), TextColumn("{task.percentage:.0f}%"),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        quiet=quiet,
    )  # fmt: skip
    task = bar.add_task(what, total=total, rate="")

    def advance(amount: int) -> None:
        elapsed = bar.tasks[0].elapsed or 0.0
        rate = f"{(bar.tasks[0].completed + amount) / elapsed:,.0f} {unit}/s" if elapsed else ""
        bar.update(task, advance=amount, rate=rate)

    with bar:
        yield advance
