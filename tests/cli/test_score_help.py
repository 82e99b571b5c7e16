"""`score --help`: by topic, every option once, examples that are command lines."""

import re
import shlex

import click
import pytest
from click.testing import CliRunner

from evo_toolkit.cli.main import cli
from evo_toolkit.cli.score import EXAMPLES, SECTIONS, score
from evo_toolkit.cli.sections import WIDTH


def help_of(columns: int) -> str:
    result = CliRunner().invoke(cli, ["score", "--help"], terminal_width=columns)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("columns", [80, WIDTH])
def test_every_option_stands_in_one_section(columns: int) -> None:
    text = help_of(columns)
    assert "Other options" not in text
    titles = [line[:-1] for line in text.splitlines() if re.fullmatch(r"[A-Z][\w ]+:", line)]
    assert titles == [*SECTIONS, "Examples"]
    for option in score.params:
        if isinstance(option, click.Option):
            long = max(option.opts, key=len)
            assert len(re.findall(rf"^  (?:-\w, )?{long}(?: |$)", text, re.M)) == 1, long
    listed = [name for names in SECTIONS.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == {p.name for p in score.params if isinstance(p, click.Option)} | {"help"}
    texts = text.split("Examples:")[0].splitlines()
    assert max(map(len, texts)) <= columns


def test_texts_begin_in_one_column() -> None:
    begins = {
        len(match[0])
        for line in help_of(WIDTH).split("Examples:")[0].splitlines()
        if (match := re.match(r"  -\S.*?\s{2,}(?=\S)", line))
    }
    assert len(begins) == 1


@pytest.mark.parametrize("line", [line for _, line in EXAMPLES])
def test_examples_parse(line: str) -> None:
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("evo-toolkit", "score")
    context = score.make_context("score", arguments)
    assert context.params["inputs"] and context.params["model"]
