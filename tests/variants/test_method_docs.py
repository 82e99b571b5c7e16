"""The Python of the pages about methods, tracks and substitutions, run word by word."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from evo_toolkit.cli.main import cli

DEMO = "data/evo_data/demo"


@pytest.fixture
def here(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the demo's genome as genome.fa, which commands and code see."""
    shutil.copy(project_root / DEMO / "NC_000932.fa", tmp_path / "genome.fa")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_python_of_the_pages(here: Path, project_root: Path) -> None:
    for name in ("how-to/track.md", "explanation/variant-methods.md"):
        (code,) = blocks(project_root / "docs" / name, "python")
        # A shorter stretch: the page's takes ten seconds.
        exec(compile(code.replace("0, 2000", "0, 200"), name, "exec"), {})


def test_commands_of_the_pages(here: Path, project_root: Path) -> None:
    for name in ("how-to/track.md", "how-to/ism.md"):
        (text,) = [b for b in blocks(project_root / "docs" / name, "") if "evo-toolkit" in b]
        command = text.replace("\\\n", " ").split()
        assert command[:1] == ["evo-toolkit"] and "```" not in text
        # As on the page, but for what it costs.
        command = [w.replace(":400-499", ":400-402").replace(":1-2000", ":1-200") for w in command]
        result = CliRunner().invoke(cli, [*command[1:], "--window", "64"])
        assert result.exit_code == 0, result.output
    assert {"loglik.bedgraph", "ism.npz", "logo.svg", "heatmap.png"} <= {p.name for p in here.iterdir()}  # fmt: skip
    (code,) = blocks(project_root / "docs/how-to/ism.md", "python")
    found: dict[str, object] = {}
    exec(compile(code, "ism.md", "exec"), found)
    assert found["centred"].shape == (3, 4)  # type: ignore[attr-defined]
