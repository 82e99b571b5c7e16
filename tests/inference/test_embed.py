"""Strands, pools, groups and tables of embeddings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from evo_data.alphabet import reverse_complement
from evo_toolkit.inference.embed import EmbeddingRunner, column_names, embed, expand_layers
from evo_toolkit.inference.readings import POOLS, STRANDS, readings_of
from evo_toolkit.model.striped_hyena import StripedHyena2

LAYERS = ["blocks.1", "blocks.2.mlp.l3"]


def bases(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def other_strand(sequence: str) -> str:
    return reverse_complement(sequence.encode()).decode()


def by_hand(model: StripedHyena2, sequence: str, block: int) -> np.ndarray:
    """`[L, C]` of the residual stream, through the model alone."""
    with torch.no_grad():
        hidden, _ = model.hidden(
            torch.tensor([list(sequence.encode())]), return_state=False, num_blocks=block + 1
        )
    return hidden[0].float().numpy()


@pytest.mark.parametrize("length", [30, 31])
def test_pools_of_each_strand_by_hand(toy_model: StripedHyena2, length: int) -> None:
    sequence = bases(length)
    mask = np.arange(length) % 7 != 2
    middle = np.flatnonzero(mask)[mask.sum() // 2]
    fwd = by_hand(toy_model, sequence, 1)
    # Row i about base i of the forward strand.
    rc = by_hand(toy_model, other_strand(sequence), 1)[::-1]
    expected = {
        "mean": (fwd[mask].mean(0), rc[mask].mean(0)),
        "max": (fwd[mask].max(0), rc[mask].max(0)),
        # Each strand has read everything at another end.
        "last": (fwd[mask][-1], rc[mask][0]),
        "center": (fwd[middle], rc[middle]),
        "none": (fwd[mask], rc[mask]),
    }
    for pool in POOLS:
        one, two = expected[pool]
        combined = {"fwd": one, "rc": two, "both": (one + two) / 2}
        combined["concat"] = np.concatenate([one, two], axis=-1)
        for strands in STRANDS:
            found = embed(
                toy_model, [sequence], "blocks.1", pool=pool, strands=strands, masks=[mask]
            )
            np.testing.assert_allclose(
                found["blocks.1"][0], combined[strands], rtol=1e-4, atol=1e-5
            )


def test_both_strands_make_the_reverse_complement_the_same(toy_model: StripedHyena2) -> None:
    sequences = [bases(n, n) for n in (21, 64, 65, 3)]
    turned = [other_strand(s) for s in sequences]
    for pool in ("mean", "max", "last"):
        one = embed(toy_model, sequences, "blocks.3", pool=pool, strands="both")["blocks.3"]
        two = embed(toy_model, turned, "blocks.3", pool=pool, strands="both")["blocks.3"]
        np.testing.assert_array_equal(one, two)
    forward = embed(toy_model, sequences, "blocks.3")["blocks.3"]
    assert not np.allclose(forward, embed(toy_model, turned, "blocks.3")["blocks.3"])
    # An odd number of bases has one middle.
    one, two = (
        embed(toy_model, [s], "blocks.3", pool="center", strands="both")["blocks.3"]
        for s in (sequences[0], turned[0])
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("strands", STRANDS)
@pytest.mark.parametrize("pool", POOLS)
def test_long_sequences_and_masks_go_in_chunks_exactly(
    toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch, pool: str, strands: str
) -> None:
    sequences = [bases(500), bases(129, 1), bases(40, 2)]
    masks = [np.arange(len(s)) > len(s) // 2 for s in sequences]
    arguments = {"pool": pool, "strands": strands, "masks": masks}
    whole = embed(toy_model, sequences, LAYERS, **arguments)  # type: ignore[call-overload]
    for module in ("batching", "embed"):
        monkeypatch.setattr(f"evo_toolkit.inference.{module}.CHUNK", 64)
    pieces = embed(toy_model, sequences, LAYERS, **arguments)  # type: ignore[call-overload]
    for layer in LAYERS:
        for one, two in zip(whole[layer], pieces[layer], strict=True):
            assert one.shape == two.shape
            np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-4)


def test_all_layers_in_one_pass(toy_model: StripedHyena2) -> None:
    names = expand_layers(toy_model, "all")
    assert names == ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm"]
    assert expand_layers(toy_model, ["norm", "all", "blocks.1"])[0] == "norm"
    passes: list[int] = []
    handle = toy_model.blocks[0].register_forward_hook(lambda m, i, o: passes.append(1))
    found = embed(toy_model, ["ACGTACGT"], "all")
    handle.remove()
    assert len(passes) == 1 and list(found) == names
    for name in names:
        np.testing.assert_array_equal(found[name], embed(toy_model, ["ACGTACGT"], name)[name])


def test_groups_of_a_stream_change_nothing(
    toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [bases(n, n) for n in (10, 90, 64, 200, 31, 10)]
    for pool in ("mean", "none"):
        runner = EmbeddingRunner(toy_model, LAYERS, pool=pool, strands="both")
        tokens = [np.frombuffer(s.encode(), np.uint8) for s in sequences]
        readings = [readings_of(t, None, "both") for t in tokens]
        monkeypatch.setattr("evo_toolkit.inference.embed.default_rows", lambda *_: 0)
        groups = list(runner.stream(iter(readings)))
        monkeypatch.undo()
        assert len(groups) == len(sequences)  # of one sequence, since no budget was left
        assert len(list(runner.stream(iter(readings)))) == 1
        expected = embed(toy_model, sequences, LAYERS, pool=pool, strands="both")
        for layer in LAYERS:
            found = [values for _, group in groups for values in group[layer]]
            for one, two in zip(found, expected[layer], strict=True):
                np.testing.assert_array_equal(one, two)


def test_fewer_rows_when_memory_runs_out(
    toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sequences = [bases(60, n) for n in range(70)]
    expected = embed(toy_model, sequences, "blocks.1")["blocks.1"]
    runner = EmbeddingRunner(toy_model, "blocks.1")
    run, asked = runner._probe.run, []

    def limited(ids: torch.Tensor, state: object = None, *, return_state: bool) -> object:
        asked.append(len(ids))
        if len(ids) > 20 or len(asked) == 5:
            raise torch.OutOfMemoryError("too many rows")
        return run(ids, state, return_state=return_state)

    monkeypatch.setattr(runner._probe, "run", limited)
    tokens = [np.frombuffer(s.encode(), np.uint8) for s in sequences]
    found = runner.embed([readings_of(t, None, "fwd") for t in tokens])["blocks.1"]
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-5, atol=1e-6)
    # What did not fit is not tried again, and what is done is not done again.
    assert asked == [64, 32, 16, 16, 16, 8, 8, 8, 8, 8]
    assert runner.shapes == {(16, 64), (8, 64)} and caplog.text.count("out of memory") == 3
    monkeypatch.setattr(runner, "_most_rows", {64: 1})
    monkeypatch.setattr(runner._probe, "run", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("one")))  # fmt: skip
    with pytest.raises(torch.OutOfMemoryError):
        runner.embed([readings_of(tokens[0], None, "fwd")])


def test_tables(toy_model: StripedHyena2) -> None:
    sequences = ["ACGTA", "GGT"]
    table = embed(toy_model, sequences, LAYERS, strands="concat", as_frame=True, ids=["one", "two"])
    arrays = embed(toy_model, sequences, LAYERS, strands="concat")
    assert isinstance(table, pd.DataFrame) and table.index.tolist() == ["one", "two"]
    assert table.columns[0] == "blocks.1_fwd_0" and table.columns[16] == "blocks.1_rc_0"
    assert table.dtypes.unique().tolist() == [np.dtype("float32")]
    np.testing.assert_array_equal(
        table.to_numpy(), np.concatenate([arrays[name] for name in LAYERS], axis=1)
    )
    assert table.attrs["evo_toolkit"]["model"] == "toy"
    positions = embed(toy_model, sequences, "norm", pool="none", as_frame=True)
    assert positions.index.tolist() == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]  # fmt: skip
    rows = embed(toy_model, sequences, "norm", pool="none")["norm"]
    np.testing.assert_array_equal(positions.loc[1].to_numpy(), rows[1])
    assert embed(toy_model, [], "norm", as_frame=True).shape == (0, 0)
    assert column_names("x", 2) == ["x_0", "x_1"]
    with pytest.raises(ValueError, match="1 ids for 2 sequences"):
        embed(toy_model, sequences, "norm", ids=["one"])
    with pytest.raises(ValueError, match="use one of fwd, rc, both, concat"):
        embed(toy_model, sequences, "norm", strands="-")  # type: ignore[call-overload]
