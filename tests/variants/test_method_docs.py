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


def test_pages_about_score(here: Path, project_root: Path, toy_model_dir: Path) -> None:
    """A head is made and applied; methods and haplotypes as the pages have them."""
    shutil.copy(project_root / DEMO / "rbcL_psbA.vcf", here / "variants.vcf")
    lines = (here / "variants.vcf").read_text().splitlines()
    head = [line for line in lines if line.startswith("##")]
    head.append('##FORMAT=<ID=GT,Number=1,Type=String,Description="x">')
    columns, *rows = (line for line in lines if not line.startswith("##"))
    body = [f"{columns}\tFORMAT\tSAMPLE", *(f"{row}\tGT\t1|1" for row in rows)]
    (here / "phased.vcf").write_text("\n".join([*head, *body]) + "\n")
    (code,) = blocks(project_root / "docs/how-to/heads.md", "python")
    exec(compile(code, "heads.md", "exec"), {})
    for name in ("how-to/heads.md", "explanation/variant-methods.md", "how-to/haplotypes.md", "how-to/report.md"):  # fmt: skip
        (text,) = blocks(project_root / "docs" / name, "console")
        model = "evo-mini" if "heads" in name else str(toy_model_dir)
        # As on the page, but for what it costs.
        command = [
            word.replace("MODEL", model).replace("blocks.4", "blocks.1") for word in text.split()
        ]
        extra = ["-r", "NC_000932.1:1-700"] if "heads" in name else []
        result = CliRunner().invoke(cli, [*command[1:], *extra, "--force", "-q"])
        assert result.exit_code == 0, (name, result.output)
        if "heads" in name:
            rows = [
                x.split("\t")
                for x in (here / "scored.tsv").read_text().splitlines()
                if x[:2] != "##"
            ]
            assert rows[0][-1] == "head_example" and {row[-1] for row in rows[1:]} == {"0.5"}
    assert (here / "haplotypes.tsv.gz.tbi").is_file() and (here / "scored.html").is_file()


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
