"""The tutorial, word by word."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorials" / "finetune_on_your_genome.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_the_page_names_what_there_is() -> None:
    text = "\n".join(blocks("bash"))
    for step in ("finetune frozen", "finetune predict", "score", "--head"):
        assert step in text
    for path in re.findall(r"\bdata/evo_data/[\w./-]+", PAGE.read_text()):
        assert (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.slow
def test_the_page_works_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    program = tmp_path / "bin" / "evo-toolkit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m evo_toolkit "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "data")),
        "OMP_NUM_THREADS": "1",
        "EVO_TOOLKIT_CACHE": str(tmp_path / "cache"),
    }
    said = []
    for block in blocks("bash"):
        done = subprocess.run(
            ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"
        said.append(done.stdout + done.stderr)
    for block in blocks("python"):
        subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=environment, check=True)
    # What the page says the commands say: the same counts, figures near those of the page.
    for folder, least, most in (("gene_kind", 0.95, 1.0), ("changed", 0.3, 0.7)):
        results = json.loads((tmp_path / folder / "results.json").read_text())
        assert least <= results["metrics"]["auroc"]["value"] <= most
    results = json.loads((tmp_path / "gene_kind" / "results.json").read_text())
    assert results["split"]["num_groups"] == 122 and results["data"]["num_examples"] == 141
    assert results["lead"]["4-mers"]["low"] > 0
    page = PAGE.read_text()
    for text in said:
        for line in text.splitlines():
            if re.match(r"\d+ examples \(", line):
                assert line in page, line
    assert "unknown" in (tmp_path / "predicted.tsv").read_text()
    header = next(line for line in (tmp_path / "scored.tsv").read_text().splitlines() if not line.startswith("##"))  # fmt: skip
    assert header.split("\t")[-1] == "head_changed"
