"""Log-likelihoods, embeddings, generation: exact, and independent of batch-mates."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.inference.batching import CHUNK, batches, bucket_length
from evo_toolkit.inference.embed import embed, resolve_layer
from evo_toolkit.inference.generate import generate
from evo_toolkit.inference.likelihood import log_likelihood
from evo_toolkit.inference.readings import POOLS
from evo_toolkit.inference.runner import LogProbRunner, default_rows
from evo_toolkit.model.striped_hyena import StripedHyena2


def bases(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=length))


def by_hand(model: StripedHyena2, sequence: str) -> np.ndarray:
    tokens = torch.tensor([list(sequence.encode())])
    with torch.no_grad():
        log_probs = model(tokens)[:, :-1].double().log_softmax(-1)
    return log_probs.gather(-1, tokens[:, 1:, None])[0, :, 0].numpy()


def test_log_likelihood_by_hand_with_masks(toy_model: StripedHyena2) -> None:
    sequences = [bases(50), bases(7, 1), bases(300, 2)]
    expected = [by_hand(toy_model, s) for s in sequences]
    np.testing.assert_allclose(
        log_likelihood(toy_model, sequences), [e.sum() for e in expected], rtol=1e-5
    )
    means = log_likelihood(toy_model, sequences, reduce="mean")
    np.testing.assert_allclose(means, [e.mean() for e in expected], rtol=1e-5)
    masks = [np.arange(len(s)) % 3 == 0 for s in sequences]
    found = log_likelihood(toy_model, sequences, masks=masks, reduce="mean")
    np.testing.assert_allclose(
        found, [e[m[1:]].mean() for e, m in zip(expected, masks, strict=True)], rtol=1e-5
    )


def test_a_sequence_does_not_depend_on_its_batch_mates(toy_model: StripedHyena2) -> None:
    sequences = [bases(n, n) for n in (10, 16, 63, 64, 65, 90, 200, 16, 10)]
    together = log_likelihood(toy_model, sequences)
    alone = [log_likelihood(toy_model, [s])[0] for s in sequences]
    assert together.tolist() == alone
    assert log_likelihood(toy_model, sequences[::-1]).tolist() == alone[::-1]


def test_long_sequences_go_through_states_exactly(
    toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = bases(1000)
    whole = log_likelihood(toy_model, [sequence])
    layers = ["blocks.3", "blocks.0.mlp.l3", "norm", "embedding"]
    expected = {p: embed(toy_model, [sequence], layers, pool=p) for p in POOLS}
    for module in ("batching", "likelihood", "embed"):
        monkeypatch.setattr(f"evo_toolkit.inference.{module}.CHUNK", 128)
    np.testing.assert_allclose(log_likelihood(toy_model, [sequence]), whole, rtol=1e-6)
    for pool, wanted in expected.items():
        found = embed(toy_model, [sequence], layers, pool=pool)
        for layer in layers:
            np.testing.assert_allclose(found[layer][0], wanted[layer][0], rtol=1e-3, atol=1e-4)


def test_one_base_has_no_likelihood(toy_model: StripedHyena2) -> None:
    assert log_likelihood(toy_model, ["A"]).tolist() == [0.0]
    assert np.isnan(log_likelihood(toy_model, ["A"], reduce="mean")).all()
    assert log_likelihood(toy_model, []).shape == (0,)


def test_likelihood_refuses_bad_input(toy_model: StripedHyena2) -> None:
    with pytest.raises(ValueError, match="one string"):
        log_likelihood(toy_model, "ACGT")
    with pytest.raises(ValueError, match="sequence 0 is a ndarray"):
        log_likelihood(toy_model, [np.array([65, 66])])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        log_likelihood(toy_model, ["ACGT", ""])
    with pytest.raises(ValueError, match="mask 0 has shape"):
        log_likelihood(toy_model, ["ACGT"], masks=[np.ones(3, bool)])
    with pytest.raises(ValueError, match="2 masks for 1"):
        log_likelihood(toy_model, ["ACGT"], masks=[np.ones(4, bool)] * 2)


def test_embeddings_are_the_outputs_of_the_named_layers(toy_model: StripedHyena2) -> None:
    sequences = [bases(40), bases(25, 1)]
    outputs: dict[str, torch.Tensor] = {}
    handle = toy_model.blocks[1].register_forward_hook(
        lambda m, i, o: outputs.__setitem__("b", o[0])
    )
    other = toy_model.blocks[2].mlp.l3.register_forward_hook(
        lambda m, i, o: outputs.__setitem__("l", o)
    )
    for row, sequence in enumerate(sequences):
        with torch.no_grad():
            toy_model(torch.tensor([list(sequence.encode())]))
        found = embed(toy_model, sequences, ["blocks.1", "blocks.2.mlp.l3"], pool="none")
        np.testing.assert_allclose(
            found["blocks.1"][row],
            outputs["b"][row if len(outputs["b"]) > 1 else 0][: len(sequence)],
            rtol=1e-4,
            atol=1e-5,
        )
        mean = embed(toy_model, [sequence], "blocks.2.mlp.l3")["blocks.2.mlp.l3"]
        np.testing.assert_allclose(
            mean[0], outputs["l"][0, : len(sequence)].mean(0), rtol=1e-4, atol=1e-5
        )
    handle.remove()
    other.remove()


def test_pooling_and_masks(toy_model: StripedHyena2) -> None:
    sequence = bases(30)
    mask = np.zeros(30, bool)
    mask[5:9] = True
    values = embed(toy_model, [sequence], "blocks.0", pool="none")["blocks.0"][0]
    mean = embed(toy_model, [sequence], "blocks.0", masks=[mask])["blocks.0"]
    last = embed(toy_model, [sequence], "blocks.0", pool="last", masks=[mask])["blocks.0"]
    none = embed(toy_model, [sequence], "blocks.0", pool="none", masks=[mask])["blocks.0"]
    np.testing.assert_allclose(mean[0], values[5:9].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(last[0], values[8])
    np.testing.assert_array_equal(none[0], values[5:9])
    with pytest.raises(ValueError, match="keeps no position"):
        embed(toy_model, [sequence], "blocks.0", masks=[np.zeros(30, bool)])


def test_embeddings_do_not_depend_on_batch_mates_and_stop_early(toy_model: StripedHyena2) -> None:
    sequences = [bases(n, n) for n in (10, 30, 64, 65)]
    together = embed(toy_model, sequences, "blocks.1")["blocks.1"]
    for row, sequence in enumerate(sequences):
        assert np.array_equal(
            embed(toy_model, [sequence], "blocks.1")["blocks.1"][0], together[row]
        )
    ran: list[int] = []
    handles = [
        b.register_forward_hook(lambda m, i, o, k=k: ran.append(k))
        for k, b in enumerate(toy_model.blocks)
    ]
    embed(toy_model, ["ACGT"], ["blocks.1.mlp.l1", "blocks.0"])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_threads_do_not_mix_their_embeddings(toy_model: StripedHyena2) -> None:
    sequences = [bases(60, n) for n in range(24)]
    expected = [embed(toy_model, [s], "blocks.2")["blocks.2"][0] for s in sequences]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda s: embed(toy_model, [s], "blocks.2")["blocks.2"][0], sequences)
        )
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_layer_names(toy_model: StripedHyena2) -> None:
    assert resolve_layer(toy_model, "blocks.2.filter") == "blocks.2.mixer"
    assert resolve_layer(toy_model, "blocks.0.out_filter_dense") == "blocks.0.out_projection"
    assert resolve_layer(toy_model, "embedding_layer") == "embedding"
    assert resolve_layer(toy_model, "blocks.3.inner_mha_cls") == "blocks.3.out_projection"
    for name in ("blocks.4", "", "blocks", "nothing", "unembedding"):
        with pytest.raises(ValueError, match="does not exist in toy"):
            resolve_layer(toy_model, name)
    with pytest.raises(ValueError, match="no layer was named"):
        embed(toy_model, ["A"], [])
    with pytest.raises(ValueError, match="use one of mean, max, last, center, none"):
        embed(toy_model, ["A"], "blocks.0", pool="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["exact", "vortex"])
def test_every_module_of_a_block_can_be_embedded(toy_model_dir: Path, precision: str) -> None:
    model = load_model(toy_model_dir, device="cpu", precision=precision)
    names = [n for n, _ in model.named_modules() if n.startswith("blocks.") and n.count(".") < 4]
    found = embed(model, [bases(20)], names)
    assert all(values.shape[0] == 1 and values.shape[1] >= 16 for values in found.values())


def test_greedy_generation_equals_recomputing_everything(toy_model: StripedHyena2) -> None:
    prompt, produced = bases(20), []
    tokens = list(prompt.encode())
    with torch.no_grad():
        for _ in range(12):
            token = int(toy_model(torch.tensor([tokens]))[0, -1].argmax())
            tokens.append(token)
            produced.append(chr(max(32, token)))
    assert generate(toy_model, prompt, max_new_tokens=12, temperature=0) == "".join(produced)


def test_sampling_follows_its_seed_and_temperature(toy_model: StripedHyena2) -> None:
    def draw(seed: int | None, temperature: float = 1.0) -> str:
        return generate(toy_model, "ACGT", max_new_tokens=16, seed=seed, temperature=temperature)

    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)
    assert draw(3, 1e-4) == generate(toy_model, "ACGT", max_new_tokens=16, temperature=0)
    for arguments, message in (
        ({"prompt": ""}, "prompt is empty"),
        ({"temperature": -1}, "temperature"),
        ({"max_new_tokens": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(toy_model, **{"prompt": "A", **arguments})  # type: ignore[arg-type]


def test_buckets_depend_on_the_length_alone() -> None:
    assert [bucket_length(n) for n in (1, 64, 65, 96, 97, 129, 193)] == [
        64,
        64,
        96,
        96,
        128,
        192,
        256,
    ]
    assert bucket_length(CHUNK) == CHUNK
    device = torch.device("cpu")
    grouped = list(batches([10, CHUNK + 1, 70, 12], device))
    assert [(i, s[1]) for i, s in grouped] == [([0, 3], 64), ([2], 96)]
    assert default_rows(8192, device) == 1 and default_rows(512, device) == 8


def test_the_probe_halves_the_rows_when_memory_runs_out(
    toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = LogProbRunner(toy_model, 64, rows=16)
    whole = type(runner).__call__

    def limited(self: LogProbRunner, rows: list[np.ndarray]) -> list[np.ndarray]:
        if self.shape[0] > 4:
            raise torch.OutOfMemoryError("too many rows")
        return whole(self, rows)

    monkeypatch.setattr(LogProbRunner, "__call__", limited)
    assert runner.probe() > 0
    assert runner.shape == (4, 64)
