"""The page of the papers' claims: every line has a verdict, every command names what exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from evo_toolkit.training.synthetics_table import _parsed

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "seeds.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith(("| claim", "|---"))
]
PROGRAMS = ("python ", "make ", "evo-toolkit ")
COMMANDS = [c for c in re.findall(r"`([^`]+)`", PAGE) if c.startswith(PROGRAMS)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_claim_has_a_verdict_and_its_command_or_reason(row: list[str]) -> None:
    claim, verdict, reason = row
    assert claim and len(reason) > 20
    assert verdict in ("reproduced", "substituted", "out of reach")
    if verdict != "out of reach":
        assert any(f"`{program}" in reason for program in PROGRAMS)


def test_all_three_papers_are_there() -> None:
    assert [len(re.findall(rf"arxiv.org/abs/{n}", PAGE)) for n in ("2212.14052", "2302.06646", "2503.01868")] == [1, 1, 1]  # fmt: skip
    assert len(ROWS) == 16


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_what_exists(command: str) -> None:
    program, what, *rest = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{what}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "evo-toolkit":
        assert [what, rest[0]] == ["train", "fit"]
        assert (ROOT / rest[rest.index("--config") + 1]).is_file()
    elif [what, *rest[:1]] == ["-m", "pytest"]:
        assert rest[1:] and all((ROOT / path).exists() for path in rest[1:])
    elif what == "-m":
        assert importlib.util.find_spec(rest[0]) is not None
        _parsed(rest[1:])
    else:
        source = (ROOT / what).read_text()
        for option in (word for word in rest if word.startswith("-")):
            assert f'"{option}"' in source, option


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https)([^)]+)\)", PAGE))
def test_links_lead_somewhere(target: str) -> None:
    path, _, anchor = target.partition("#")
    text = (ROOT / "docs" / path).read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert not anchor or anchor in {title.lower().replace(" ", "-") for title in titles}
