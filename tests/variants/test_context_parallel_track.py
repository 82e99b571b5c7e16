"""Sequences over two processes: the same values, and what is said when a process fails."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from evo_data.tokenizer import ByteTokenizer
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.inference.context import ContextWorkers
from evo_toolkit.inference.context_embedding import ContextEmbeddingRunner
from evo_toolkit.inference.embed import EmbeddingRunner
from evo_toolkit.inference.readings import Pool, readings_of
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.parallel import ContextParallel
from evo_toolkit.variants.context import ContextPositionModel
from evo_toolkit.variants.positions import PositionModel

SEQUENCE = "".join(random.Random(5).choices("ACGT", k=17_001))


@pytest.fixture(scope="module")
def workers(toy_model_dir: Path) -> Iterator[ContextWorkers]:
    with ContextWorkers(str(toy_model_dir), ["cpu", "cpu"]) as running:
        yield running


def test_rows_of_any_length_have_the_values_of_one_process(
    workers: ContextWorkers, toy_model: StripedHyena2
) -> None:
    # The last one is longer than what one process runs in one piece.
    rows = [ByteTokenizer().encode(SEQUENCE[:n]) for n in (1, 70, 70, 301, 17_001)]
    one, two = PositionModel(toy_model, bases=True), ContextPositionModel(workers, bases=True)
    for a, b in zip(one(rows), two(rows), strict=True):
        np.testing.assert_allclose(b.log_probs, a.log_probs, atol=2e-5)
        assert a.bases is not None and b.bases is not None
        np.testing.assert_allclose(b.bases, a.bases, atol=2e-5)
    assert two.num_bases == one.num_bases
    assert workers.model.sha256 == toy_model.sha256


def test_a_track_over_two_processes_is_that_of_one(tmp_path: Path, toy_model_dir: Path) -> None:
    genome = tmp_path / "g.fa"
    genome.write_text(f">c\n{SEQUENCE[:900]}N{SEQUENCE[:300]}\n")
    words = ["track", str(genome), "-m", str(toy_model_dir), "--device", "cpu", "--window", "whole"]
    tables = []
    for name, how in (("one", ()), ("two", ("--context-parallel", "--devices", "2"))):
        output = tmp_path / f"{name}.tsv"
        done = CliRunner().invoke(cli, [*words, *how, "-o", str(output)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        tables.append(pd.read_csv(output, sep="\t", comment="#", na_values=".", header=None))
    assert "context_parallel=cpu, cpu" in (tmp_path / "two.tsv").read_text()
    pd.testing.assert_frame_equal(*tables, atol=2e-5, rtol=0)


@pytest.mark.parametrize("pool", ["mean", "max", "last", "center", "none"])
def test_embeddings_over_two_processes_are_those_of_one(
    workers: ContextWorkers, toy_model: StripedHyena2, pool: Pool
) -> None:
    layers = ["embedding", "blocks.1", "blocks.2.mixer", "norm"]
    tokens = [ByteTokenizer().encode(SEQUENCE[:n]) for n in (1, 70, 301, 17_001)]
    # The last mask keeps nothing of what the second process has on the forward strand.
    masks = [None, None, np.arange(301) % 3 == 1, np.arange(17_001) < 5000]
    readings = [readings_of(t, mask, "both") for t, mask in zip(tokens, masks, strict=True)]
    one = EmbeddingRunner(toy_model, layers, pool=pool, strands="both").embed(readings)
    two = ContextEmbeddingRunner(workers, layers, pool=pool, strands="both").embed(readings)
    assert list(one) == list(two) == layers
    for layer in layers:
        for a, b in zip(one[layer], two[layer], strict=True):
            np.testing.assert_allclose(b, a, atol=2e-5)


@pytest.mark.slow
def test_embed_over_two_processes_writes_what_one_does(tmp_path: Path, toy_model_dir: Path) -> None:
    fasta = tmp_path / "s.fa"
    fasta.write_text(f">a\n{SEQUENCE[:900]}\n>b\n{SEQUENCE[:300]}\n")
    words = ["embed", str(fasta), "-m", str(toy_model_dir), "--device", "cpu", "-l", "norm"]
    arrays = []
    for name, how in (("one", ()), ("two", ("--context-parallel", "--devices", "2"))):
        output = tmp_path / f"{name}.npz"
        done = CliRunner().invoke(cli, [*words, *how, "-o", str(output)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        with np.load(output) as file:
            arrays.append(file["norm"])
            assert ("cpu, cpu" in str(file["manifest"])) == (name == "two")
    np.testing.assert_allclose(arrays[0], arrays[1], atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "2"], "give --context-parallel too"),
        (["--devices", "1", "--context-parallel"], "over 1 device; give --devices 2 or more"),
        (["--devices", "0", "--context-parallel"], "--devices '0' is neither all nor a number"),
    ],
)
def test_devices_that_cannot_be(
    tmp_path: Path, toy_model_dir: Path, options: list[str], message: str
) -> None:
    genome = tmp_path / "g.fa"
    genome.write_text(">c\nACGT\n")
    words = ["track", str(genome), "-m", str(toy_model_dir), "--device", "cpu", *options]
    done = CliRunner().invoke(cli, [*words, "-o", str(tmp_path / "t.tsv")])
    assert done.exit_code == 2
    assert message in done.output and not (tmp_path / "t.tsv").exists()


def goes_wrong(model: StripedHyena2, context: ContextParallel, how: str) -> None:
    """A job of which the second process fails while the first waits for it."""
    import torch.distributed as dist

    if context.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UsageError("that cannot be")
    dist.barrier(context.group)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("raises", UsageError, "that cannot be"),
        ("killed", EvoError, r"the process for cpu ended \(exit code -9\)"),
    ],
)
def test_one_process_that_fails_ends_the_others_with_its_reason(
    toy_model_dir: Path, how: str, kind: type[Exception], message: str
) -> None:
    workers = ContextWorkers(str(toy_model_dir), ["cpu", "cpu"])
    processes = list(workers._processes)
    with workers, pytest.raises(kind, match=message):
        workers.run(10, goes_wrong, how)
    assert not any(process.is_alive() for process in processes)
