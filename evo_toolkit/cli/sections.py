"""Help of a command with many options, as bcftools prints it: by topic, with examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

WIDTH = 100
"""Columns of the help, where the terminal has as many."""

_OPTION_COLUMNS = 34


class SectionedCommand(click.Command):
    """A command whose options stand in sections.

    Attributes:
        sections: Names of parameters by title, in order; what is in none comes last, as "Other options".
        examples: Command lines with a word on each.
    """

    def __init__(
        self,
        name: str | None,
        *,
        sections: Mapping[str, Sequence[str]] | None = None,
        examples: Sequence[tuple[str, str]] = (),
        **options: Any,
    ) -> None:
        settings = {"max_content_width": WIDTH, **(options.pop("context_settings", None) or {})}
        super().__init__(name, context_settings=settings, **options)
        self.sections = dict(sections or {})
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, and behind them the examples."""
        left = {
            ("help" if "--help" in parameter.opts else parameter.name): record
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
            and (record := parameter.get_help_record(ctx)) is not None
        }
        listed = {
            title: [left.pop(name) for name in names if name in left]
            for title, names in self.sections.items()
        }
        for title, records in (listed | {"Other options": list(left.values())}).items():
            if records:
                with formatter.section(title):
                    # As wide in every section, so that all texts begin in one column.
                    rows = [(names.ljust(_OPTION_COLUMNS), text) for names, text in records]
                    formatter.write_dl(rows, col_max=_OPTION_COLUMNS)
        if self.examples:
            with formatter.section("Examples"):
                for does, line in self.examples:
                    formatter.write(f"    # {does}\n    {line}\n")
