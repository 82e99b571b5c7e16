"""The tutorial, word by word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorials" / "train_on_your_genome.md"


def blocks() -> list[str]:
    """The page's commands, block by block."""
    return re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_the_page_has_every_step() -> None:
    text = "\n".join(blocks())
    for step in ("data prepare", "train fit", "--ckpt_path last", "train export", "score"):
        assert step in text
    for path in re.findall(r"(?:data|recipes)/[\w./-]+", PAGE.read_text()):
        assert (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.slow
def test_the_page_works_as_it_is_written_within_five_minutes(tmp_path: Path) -> None:
    for name in ("data", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    # `evo-toolkit` as an installation would put it there, of this checkout.
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
    started = time.monotonic()
    said = ""
    for block in blocks():
        done = subprocess.run(
            ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"
        said += done.stdout + done.stderr
    assert time.monotonic() - started < 300
    bits = {int(n): float(b) for n, b in re.findall(r"step (\d+)/\d+  ([\d.]+) bits/base", said)}
    assert list(bits) == [20, 40, 60, 80, 100, 120, 140, 160]
    validated = re.findall(r"validation ([\d.]+) bits/base \(.*codon_position_3", said)
    # Better than the composition of the whole, where the page says what that is.
    assert float(validated[-1]) < 1.95, said
    assert "tiny" in said and "scored 101 alleles of 101" in said
    for name in ("my_corpus/manifest.json", "runs/tiny/config.yaml", "my_model/model.safetensors", "scored.vcf"):  # fmt: skip
        assert (tmp_path / name).is_file(), name
    assert list((tmp_path / "runs" / "tiny" / "tensorboard").rglob("events*"))
