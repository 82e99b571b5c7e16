"""`evo-toolkit data split`, run on a corpus of a few kilobases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from evo_data.corpus import Corpus, prepare
from evo_data.split_manifest import read_split
from evo_data.splits import num_bases
from evo_toolkit.cli.main import cli


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    first = "".join(rng.choice(list("ACGT"), 5000))
    second = first[:1000] + "".join(rng.choice(list("ACGT"), 1000))
    third = "".join(rng.choice(list("ACGT"), 1500))
    for name, sequence in (("one", first), ("two", second), ("three", third)):
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{sequence}\n")
    prepare([tmp_path / f"{name}.fa" for name in ("one", "two", "three")], tmp_path / "corpus")
    return tmp_path / "corpus"


def run(corpus: Path, *arguments: str) -> Result:
    output = ["-o", str(corpus.parent / "split.json")]
    return CliRunner().invoke(cli, ["data", "split", str(corpus), *output, *arguments])


def test_by_genome_with_its_leakage(corpus: Path) -> None:
    result = run(corpus, "--by", "genome", "--val", "two", "--val", "three")
    assert result.exit_code == 0, result.output
    assert "train           5,000 bases (58.82 %) in 1 stretches of 1 genomes" in result.stdout
    # 970 of 1970 + 1470 words.
    assert "28.20 % of the 31-mers of val are in train; most of two (49.2 %)" in result.stdout
    assert "Warning: much of val is also in train" in result.stderr
    path = corpus.parent / "split.json"
    assert len(read_split(path, Corpus.open(corpus)).val) == 2
    assert json.loads(path.read_text())["leakage"][0]["shared"] == pytest.approx(970 / 3440)
    again = run(corpus, "--by", "genome", "--val", "two")
    assert again.exit_code == 1
    assert "exists; choose another name or give --force" in again.stderr
    assert run(corpus, "--by", "genome", "--val", "three", "--force", "-q").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--by", "contig", "--val", "x"], 1, "no record is called 'x'"),
        (["--by", "contig"], 2, "--by contig needs --val or --test"),
        (["--by", "contig", "--val-fraction", "0.1"], 2, "--val-fraction does not go with --by contig, which takes --test, --val"),
        (["--by", "bed", "--val", "a", "--val", "b"], 2, "takes one file with --val"),
        (["--by", "bed", "--val", "absent.bed"], 1, "cannot read absent.bed"),
        (["--by", "blocks"], 2, "--by blocks needs --val-fraction or --test-fraction"),
        (["--by", "blocks", "--val-fraction", "1.5"], 1, "give shares from 0 to 1"),
        (["--by", "blocks", "--val-fraction", "0.1", "-k", "33"], 2, "not in the range"),
        (["--by", "nothing"], 2, "nothing"),
    ],
)  # fmt: skip
def test_errors_are_one_line(corpus: Path, arguments: list[str], code: int, message: str) -> None:
    result = run(corpus, *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (corpus.parent / "split.json").exists()


@pytest.mark.parametrize("by", ["cluster", "blocks"])
def test_by_share(corpus: Path, by: str) -> None:
    result = run(corpus, "--by", by, "--val-fraction", "0.2", "--seed", "1")
    assert result.exit_code == 0, result.output
    split = read_split(corpus.parent / "split.json", Corpus.open(corpus))
    assert split.method["by"] == by
    assert split.method["seed"] == 1
    # A fifth of 8,500 bases, as well as whole genomes (the least has 1,500) or blocks (425) allow.
    assert 1500 <= num_bases(split.val) <= 1700 + 425
    assert num_bases(split.train) + num_bases(split.val) == 8500 and not split.test
