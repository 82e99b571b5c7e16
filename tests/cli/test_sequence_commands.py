"""`embed`, `log-likelihood` and `generate` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from evo_toolkit.cli.main import cli
from evo_toolkit.inference.embed import embed
from evo_toolkit.inference.likelihood import log_likelihood
from evo_toolkit.model.striped_hyena import StripedHyena2

SEQUENCES = {"one": "ACGTNACGTACCA", "two": "GGGTTTACA"}


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, args)))


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "s.fa"
    path.write_text("".join(f">{name}\n{text.lower()}\n" for name, text in SEQUENCES.items()))
    return path


def test_log_likelihood_of_each_record(
    fasta: Path, toy_model_dir: Path, toy_model: StripedHyena2, tmp_path: Path
) -> None:
    out = tmp_path / "ll.tsv"
    assert run("log-likelihood", fasta, "-m", toy_model_dir, "-o", out).exit_code == 0
    table = pd.read_csv(out, sep="\t", skiprows=1)
    assert table["#id"].tolist() == list(SEQUENCES)
    expected = log_likelihood(toy_model, list(SEQUENCES.values()))  # lower case was raised
    assert table["log_likelihood"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    bits = -expected / (np.array([len(s) for s in SEQUENCES.values()]) - 1) / np.log(2)
    assert table["bits_per_base"].tolist() == pytest.approx(bits.tolist(), rel=1e-4)
    again = run("log-likelihood", fasta, "-m", toy_model_dir, "-o", out)
    assert again.exit_code == 1 and "--force" in again.stderr
    assert run("log-likelihood", fasta, "-m", toy_model_dir, "-q").stdout == out.read_text()


def test_every_record_has_a_row(toy_model_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "odd.fa"
    source.write_text(">empty\n>one\nA\n>two\nAC\n")
    result = run("log-likelihood", source, "-m", toy_model_dir, "-q")
    rows = [line.split("\t") for line in result.stdout.splitlines() if not line.startswith("#")]
    assert [row[:2] for row in rows] == [["empty", "0"], ["one", "1"], ["two", "2"]]
    assert rows[0][2:] == rows[1][2:] == [".", ".", "."] and "." not in rows[2][2:]


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
@pytest.mark.parametrize("pool", ["mean", "last", "none"])
def test_embeddings_equal_those_of_the_library(
    fasta: Path,
    toy_model_dir: Path,
    toy_model: StripedHyena2,
    tmp_path: Path,
    suffix: str,
    pool: str,
) -> None:
    out, layers = tmp_path / f"e.{suffix}", ["blocks.1", "blocks.3.mlp.l3"]
    result = run(
        "embed",
        fasta,
        "-m",
        toy_model_dir,
        "-l",
        layers[0],
        "-l",
        layers[1],
        "--pool",
        pool,
        "-o",
        out,
    )
    assert result.exit_code == 0, result.stderr
    expected = embed(toy_model, list(SEQUENCES.values()), layers, pool=pool)  # type: ignore[arg-type]
    if suffix == "npz":
        with np.load(out) as found:
            assert found["ids"].tolist() == list(SEQUENCES)
            manifest = json.loads(str(found["manifest"]))
            for layer in layers:
                for row, name in enumerate(SEQUENCES):
                    values = found[f"{layer}/{name}"] if pool == "none" else found[layer][row]
                    np.testing.assert_array_equal(values, expected[layer][row])
    else:
        table = pd.read_parquet(out)
        manifest = json.loads(pq.read_metadata(out).metadata[b"evo_toolkit"])
        for layer in layers:
            for row, name in enumerate(SEQUENCES):
                part = table[(table["layer"] == layer) & (table["id"] == name)]
                found_values = np.stack(part["embedding"].tolist())
                wanted = expected[layer][row]
                np.testing.assert_array_equal(
                    found_values if pool == "none" else found_values[0], wanted
                )
                if pool == "none":
                    assert part["position"].tolist() == list(range(len(SEQUENCES[name])))
    assert manifest["model"] == "toy" and manifest["pool"] == pool


def test_generation_is_fasta_and_repeats_with_its_seed(toy_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.fa"
    arguments = ("generate", "-m", toy_model_dir, "-p", "ACGT", "-n", 8, "--seed", 3)
    assert run(*arguments, "-o", out).exit_code == 0
    assert out.read_text() == run(*arguments, "-q").stdout
    title, *lines = out.read_text(encoding="utf-8").splitlines()
    assert title.startswith(">generated model=toy prompt_length=4") and "seed=3" in title
    assert "".join(lines).startswith("ACGT") and len("".join(lines)) == 12


@pytest.mark.parametrize("command", ["embed", "log-likelihood"])
def test_genomes_outside_the_domain_are_refused_or_marked(
    command: str, toy_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder, source, out = tmp_path / "averse", tmp_path / "g.fa", tmp_path / "out.npz"
    shutil.copytree(toy_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(forbidden_genomes=["vertebrate"], domains=["bacteria"])
    (folder / "config.json").write_text(json.dumps(config))
    source.write_text(">c\n" + "ACGT" * 50 + "\n")
    # The rule about large genomes, at a size that a test can hold.
    monkeypatch.setattr("evo_toolkit.inference.domain.LARGEST_BASES", 100)
    arguments = [command, source, "-m", folder, "-o", out]
    arguments += ["-l", "blocks.0"] if command == "embed" else []
    refused = run(*arguments)
    assert refused.exit_code == 2 and "--allow-out-of-domain" in refused.stderr
    assert not out.exists()
    allowed = run(*arguments, "--allow-out-of-domain")
    assert allowed.exit_code == 0 and allowed.stderr.count("out of domain") == 2
    assert b"out of domain" in out.read_bytes() or command == "embed"


@pytest.mark.parametrize("command", ["embed", "log-likelihood", "generate"])
def test_there_is_no_default_model(
    command: str, fasta: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EVO_TOOLKIT_MODEL", raising=False)
    arguments = {
        "embed": [fasta, "-l", "blocks.0", "-o", tmp_path / "x.npz"],
        "log-likelihood": [fasta],
        "generate": ["-p", "ACGT"],
    }[command]
    result = run(command, *arguments)
    assert result.exit_code == 2 and "evo-mini" in result.stderr and "evo2_7b" in result.stderr


def test_wrong_layers_and_endings_are_usage_errors(
    fasta: Path, toy_model_dir: Path, tmp_path: Path
) -> None:
    result = run("embed", fasta, "-m", toy_model_dir, "-l", "blocks.9", "-o", tmp_path / "e.npz")
    assert result.exit_code == 2 and "blocks run from 0 to 3" in result.stderr
    result = run("embed", fasta, "-m", toy_model_dir, "-l", "blocks.0", "-o", tmp_path / "e.txt")
    assert result.exit_code == 2 and ".npz, .parquet" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".npz", ".txt")) == []
