"""docs/how-to/embed.md, as a user would follow it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from evo_toolkit.cli.main import cli

OTHER = {"A": "C", "C": "G", "G": "T", "T": "A"}


@pytest.fixture(params=["toy", pytest.param("evo-mini", marks=pytest.mark.slow)])
def page(project_root: Path, toy_model_dir: Path, request: pytest.FixtureRequest) -> str:
    """The page as it is, or about a tiny model with fewer layers."""
    text = (project_root / "docs/how-to/embed.md").read_text(encoding="utf-8")
    if request.param == "toy":
        for ours, other in (("evo-mini", str(toy_model_dir)), ("blocks.6", "blocks.3"), ("blocks.4", "blocks.2")):  # fmt: skip
            text = text.replace(ours, other)
    return text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every file that the page names, made small."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    sequence = "".join(draw.choice(list("ACGT"), 3000))
    Path("genome.fa").write_text(f">c\n{sequence}\n")
    Path("sequences.fa").write_text(f">a\n{sequence[:50]}\n>b\n{sequence[50:120]}\n")
    Path("genes.gff3").write_text("c\tx\tgene\t101\t200\t.\t-\t.\tID=g1\n")
    Path("peaks.bed").write_text("c\t1000\t1200\tp\n")
    import pysam

    Path("v.vcf").write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=c,length=3000>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        f"c\t1500\t.\t{sequence[1499]}\t{OTHER[sequence[1499]]}\t.\t.\t.\n"
    )
    pysam.tabix_compress("v.vcf", "variants.vcf.gz", force=True)
    return tmp_path


def test_every_command_runs(page: str, folder: Path) -> None:
    pytest.importorskip("h5py")
    commands = [
        line
        for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("evo-toolkit embed ")
    ]
    assert len(commands) == 4
    for command in commands:
        words = shlex.split(command)[1:]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.stderr
        assert Path(words[words.index("-o") + 1]).stat().st_size
    with np.load("alleles.npz") as found:
        assert found["allele"].tolist() == ["ref", "alt"]


def test_python_runs(page: str, folder: Path) -> None:
    draw = np.random.default_rng(0)
    names: dict[str, object] = {
        "sequences": ["".join(draw.choice(list("ACGT"), 40)) for _ in range(20)],
        "labels": np.arange(20) % 2,
        "clusters": np.arange(20) // 2,
    }
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    arrays, table = names["arrays"], names["table"]
    assert all(a.shape == (2, 2 * table.shape[1]) for a in arrays.values())  # type: ignore[attr-defined]
