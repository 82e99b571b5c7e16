"""`eval layers`: figures of single layers, pools and strands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from evo_data.alphabet import reverse_complement
from evo_toolkit.cli.main import cli
from evo_toolkit.evaluation.layer_sweep import layer_features, strands_of
from evo_toolkit.inference.embed import embed
from evo_toolkit.model.striped_hyena import StripedHyena2


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Sequences with a motif, and the same sequences with its letters in another order."""
    draw = np.random.default_rng(0)
    paths = tmp_path / "promoters.fa", tmp_path / "others.fa"
    texts: list[list[str]] = [[], []]
    for number in range(120):
        body = "".join(draw.choice(list("ACGT"), 40))
        at = 5 + number % 30
        for side, motif in ((0, "TATAAT"), (1, "ATTTAA")):
            texts[side].append(
                f">s{number}\n{body[:at]}{motif}{body[at:][::-1] if side else body[at:]}\n"
            )
    for path, rows in zip(paths, texts, strict=True):
        path.write_text("".join(rows))
    return paths


def test_strands_come_from_one_pass(toy_model: StripedHyena2) -> None:
    draw = np.random.default_rng(0)
    sequences = ["".join(draw.choice(list("ACGT"), n)) for n in (20, 31, 5)]
    for pool in ("mean", "max", "last", "center"):
        found = layer_features(toy_model, sequences, ["blocks.1"], pool)["blocks.1"]  # type: ignore[arg-type]
        for strands in ("fwd", "rc", "both", "concat"):
            wanted = embed(toy_model, sequences, "blocks.1", pool=pool, strands=strands)  # type: ignore[call-overload]
            np.testing.assert_allclose(strands_of(found, strands), wanted["blocks.1"], rtol=1e-6)  # type: ignore[arg-type]


def test_the_command_measures_every_layer(
    files: tuple[Path, Path], toy_model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "layers.json"
    arguments = ["eval", "layers", "ecoli-promoters", *files, "-m", toy_model_dir, "-o", output]
    arguments += ["-l", "embedding", "-l", "blocks.1", "--strands", "concat", "--strands", "fwd"]
    arguments += ["--folds", "3", "--resamples", "20", "-q"]
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    found = json.loads(output.read_text())["figures"]
    assert list(found["figures"]) == [
        "composition", "kmers",
        "embedding mean fwd", "embedding mean concat", "blocks.1 mean fwd", "blocks.1 mean concat",
        "untrained embedding mean fwd", "untrained blocks.1 mean fwd",
    ]  # fmt: skip
    figures = {name: figure["value"] for name, figure in found["figures"].items()}
    # Shuffled letters leave nothing to composition; k-mers see the motif.
    assert figures["kmers"] > 0.8 and figures["composition"] < 0.7
    assert figures["embedding mean fwd"] < 0.7
    assert all(f["low"] <= f["value"] <= f["high"] for f in found["figures"].values())
    # Of the last layer there is no difference from itself; the others' are of the same predictions.
    assert set(found["minus_last"]) == {
        "embedding mean fwd", "embedding mean concat", "untrained embedding mean fwd",
    }  # fmt: skip
    ahead = found["minus_last"]["embedding mean fwd"]
    assert ahead["value"] == pytest.approx(
        figures["embedding mean fwd"] - figures["blocks.1 mean fwd"], abs=2e-6
    )
    assert ahead["low"] <= ahead["value"] <= ahead["high"]
    assert "blocks.1 mean concat" in result.stdout and "AUROC" in result.stdout


def test_wrong_use_is_one_line(files: tuple[Path, Path], toy_model_dir: Path) -> None:
    for arguments, message in (
        (["nothing", *files], "no benchmark 'nothing'"),
        (["ecoli-promoters"], "takes PROMOTERS OTHERS, 0 files were given"),
        (["ecoli-promoters", *files, "-l", "blocks.9"], "blocks run from 0 to 3"),
    ):
        texts = ["eval", "layers", *map(str, arguments), "-m", str(toy_model_dir), "-q"]
        result = CliRunner().invoke(cli, texts)
        assert result.exit_code == 2 and message in result.stderr
        assert result.stderr.count("\n") == 1


def test_reverse_complement_exchanges_the_strands(toy_model: StripedHyena2) -> None:
    sequences = ["ACGTTGCAAC", "GGGATTTCCA"]
    turned = [reverse_complement(s.encode()).decode() for s in sequences]
    one = layer_features(toy_model, sequences, ["norm"], "mean")["norm"]
    two = layer_features(toy_model, turned, ["norm"], "mean")["norm"]
    np.testing.assert_array_equal(strands_of(one, "fwd"), strands_of(two, "rc"))
    np.testing.assert_array_equal(strands_of(one, "both"), strands_of(two, "both"))
