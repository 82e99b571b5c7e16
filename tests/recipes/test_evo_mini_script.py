"""The provisional evo-mini: packing, sampling, baselines, and a training of toy size."""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evo_data.alphabet import reverse_complement
from evo_data.files import sha256_file
from evo_toolkit.checkpoint.format import open_checkpoint
from evo_toolkit.model.precision import resolve_precision
from evo_toolkit.model.striped_hyena import StripedHyena2

# The recipes are scripts beside each other, not a package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes" / "pretrain"))

import evo_mini_provisional as script
import genome_windows as windows
import markov_baseline as markov
import pack_genomes as packing

CPU = torch.device("cpu")


def random_bases(length: int, seed: int) -> bytes:
    return bytes(np.random.default_rng(seed).choice(list(b"ACGT"), length).astype(np.uint8))


def mutated(sequence: bytes, rate: float, seed: int) -> bytes:
    random = np.random.default_rng(seed)
    letters = np.frombuffer(sequence, np.uint8).copy()
    hit = random.random(letters.size) < rate
    letters[hit] = random.choice(list(b"ACGT"), int(hit.sum()))
    return letters.tobytes()


def write_fasta(path: Path, records: dict[str, bytes], width: int = 60) -> None:
    lines = []
    for name, sequence in records.items():
        lines.append(b">" + name.encode() + b" some description")
        lines += [sequence[i : i + width] for i in range(0, len(sequence), width)]
    text = b"\n".join(lines) + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def packed_of(tmp_path: Path, files: dict[str, dict[str, bytes]]) -> packing.PackedGenomes:
    for name, records in files.items():
        write_fasta(tmp_path / "genomes" / name, records)
    packing.pack([tmp_path / "genomes"], tmp_path / "packed", max_bases=10**9)
    return packing.read_packed(tmp_path / "packed")


def test_packing_keeps_bases_case_and_unknowns(tmp_path: Path) -> None:
    first = b"NNACGTacgtnnNNggRYtt" + random_bases(7, 1) + b"n"
    files = {
        "a.fna.gz": {"one": first, "two": b"T", "long": random_bases(1001, 2)},
        "b.fa": {"three": b"aaaaC" + random_bases(50, 3).lower()},
    }
    packed = packed_of(tmp_path, files)
    expected = [
        ("one", first.replace(b"R", b"N").replace(b"Y", b"N")),
        ("two", b"T"),
        ("long", files["a.fna.gz"]["long"]),
        ("three", files["b.fa"]["three"]),
    ]
    found = [(r.name, packed.record_bytes(r).tobytes()) for r in packed.records]
    assert found == expected
    assert [r.genome for r in packed.records] == [0, 0, 0, 1]
    assert [g.file for g in packed.genomes] == ["genomes/a.fna.gz", "genomes/b.fa"]
    bases = sum(len(sequence) for _, sequence in expected)
    assert (tmp_path / "packed" / packing.PACKED).stat().st_size == -(-bases // 4)


def test_a_damaged_packing_is_refused(tmp_path: Path) -> None:
    packed_of(tmp_path, {"a.fna": {"one": random_bases(400, 1)}})
    path = tmp_path / "packed" / packing.PACKED
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(packing.PackError, match="damaged"):
        packing.read_packed(tmp_path / "packed")


def test_proteins_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = packed_of(
        tmp_path,
        {"a.fna": {"dna": random_bases(99, 1), "protein": b"MFQTFISRHNSNFFSDKLVLTSVTPASSAP"}},
    )
    assert [r.name for r in packed.records] == ["dna"]
    assert "protein: 30 letters, not nucleotides" in capsys.readouterr().out


def test_kmer_codes_by_hand() -> None:
    forward, reverse, good = packing.kmer_codes(np.frombuffer(b"ACGTnA", np.uint8), 3)
    assert good.tolist() == [True, True, False, False]
    assert forward[:2].tolist() == [0 * 16 + 1 * 4 + 2, 1 * 16 + 2 * 4 + 3]  # ACG, CGT
    assert reverse[:2].tolist() == [1 * 16 + 2 * 4 + 3, 0 * 16 + 1 * 4 + 2]  # CGT, ACG
    assert [x.size for x in packing.kmer_codes(np.frombuffer(b"AC", np.uint8), 3)] == [0, 0, 0]


@pytest.mark.parametrize("k", [1, 2, 11, 12, 31, 32])
def test_kmer_codes_read_both_strands(k: int) -> None:
    sequence = random_bases(50, k)
    forward, reverse, good = packing.kmer_codes(np.frombuffer(sequence, np.uint8), k)
    assert good.all() and good.size == 50 - k + 1
    for i in (0, 50 - k):
        word = sequence[i : i + k]
        for codes, text in ((forward, word), (reverse, reverse_complement(word))):
            assert int(codes[i]) == int("".join(str(b"ACGT".index(x)) for x in text), 4)


def test_near_strains_share_their_weight_and_a_plasmid_does_not_count(tmp_path: Path) -> None:
    genome, other = random_bases(120_000, 1), random_bases(100_000, 2)
    packed = packed_of(
        tmp_path,
        {
            "a.fna": {"a": genome},
            "b.fna": {"b": reverse_complement(mutated(genome, 0.01, 3))},
            "c.fna": {"c": other},
            "d.fna": {"plasmid": other[20_000:30_000]},
            "e.fna": {"far": mutated(genome, 0.15, 4)},
        },
    )
    assert [g.weight for g in packed.genomes] == [0.5, 0.5, 1.0, 1.0, 1.0]
    clusters = [g.cluster for g in packed.genomes]
    assert clusters[0] == clusters[1] and len(set(clusters)) == 4


def test_clusters_are_linked_through_members() -> None:
    sketches = [
        np.arange(start, start + 100, dtype=np.uint64) for start in (0, 1000, 70, 140, 5000)
    ]
    assert packing.shared_hashes(sketches)[0].tolist() == [100, 0, 30, 0, 0]
    assert packing.cluster_genomes(sketches) == [0, 1, 0, 0, 2]


def test_the_largest_clusters_lose_members_first() -> None:
    bases = [10, 11, 12, 50, 49, 100]
    clusters = [0, 0, 0, 1, 1, 2]
    assert packing.choose(bases, clusters, 232) == [0, 1, 2, 3, 4, 5]
    assert packing.choose(bases, clusters, 231) == [1, 2, 3, 4, 5]
    # Two clusters of two are left: the one with more bases gives its shorter member, then the other.
    assert packing.choose(bases, clusters, 221) == [1, 2, 3, 5]
    assert packing.choose(bases, clusters, 172) == [2, 3, 5]


def stream_of(text: bytes, weight: float = 1.0) -> windows.Stream:
    return windows.Stream(
        text=np.frombuffer(text, np.uint8).copy(),
        start=np.array([0]),
        length=np.array([len(text)]),
        weight=np.array([weight]),
    )


def test_windows_depend_on_seed_and_step_alone() -> None:
    stream = stream_of(random_bases(5000, 1))
    first, again, other = (windows.WindowSampler(stream, CPU, seed=s) for s in (3, 3, 4))
    first.batch(0, 4, 65)
    assert np.array_equal(first.plan(7, 16, 65), again.plan(7, 16, 65))
    assert not np.array_equal(first.plan(7, 16, 65), first.plan(8, 16, 65))
    assert not np.array_equal(first.plan(7, 16, 65), other.plan(7, 16, 65))


def test_windows_are_the_text_or_its_reverse_complement() -> None:
    text = mutated(random_bases(300, 1), 0, 0)[:150] + b"N\0" + random_bases(148, 2).lower()
    sampler = windows.WindowSampler(stream_of(text), CPU, seed=0)
    plan = sampler.plan(0, 64, 41)
    tokens, _ = sampler.gather(plan, 41)
    assert set(plan[:, 1]) == {0, 1}
    assert plan[:, 0].min() >= 0 and plan[:, 0].max() + 41 <= len(text)
    for (start, reverse), row in zip(plan, tokens.numpy(), strict=True):
        window = bytes(text[start : start + 41])
        if reverse:  # an end of document is no base and keeps its place among them
            window = b"\0".join(map(reverse_complement, reversed(window.split(b"\0"))))
        assert bytes(row.astype(np.uint8)) == window.upper()


def test_every_window_can_be_drawn() -> None:
    sampler = windows.WindowSampler(stream_of(random_bases(12, 1)), CPU, seed=0)
    assert set(sampler.plan(0, 500, 10)[:, 0]) == {0, 1, 2}


def test_loss_weights_belong_to_the_predicted_base() -> None:
    text = b"ACgtNRA\0CAtG"
    sampler = windows.WindowSampler(stream_of(text), CPU, seed=0)
    plan = np.array([[0, 0], [0, 1]])
    _, weights = sampler.gather(plan, len(text))
    tenth = pytest.approx(0.1)
    #                      A  C  g      t      N  R  A  \0 C  A  t      G
    assert weights[0].tolist() == [0, 1, tenth, tenth, 0, 0, 1, 0, 0, 1, tenth, 1]
    # Reverse: G t A C \0 A R N t g C A; C is before the end of document here and A after it.
    #                      C  a      T  G  \0 T  R  N  a      c      G  T
    assert weights[1].tolist() == [0, tenth, 1, 1, 0, 0, 0, 0, tenth, tenth, 1, 1]


def test_short_records_are_joined_and_nothing_is_lost(tmp_path: Path) -> None:
    packed = packed_of(
        tmp_path,
        {
            "a.fna": {
                "long": random_bases(500, 1),
                "x": random_bases(60, 2),
                "y": random_bases(70, 3),
            },
            "b.fna": {"tiny": random_bases(20, 4)},
            "c.fna": {"tinier": random_bases(9, 5)},
        },
    )
    stream = windows.build_stream(packed, 100)
    record = {r.name: packed.record_bytes(r).tobytes() for r in packed.records}
    segments = [
        stream.text[s : s + n].tobytes() for s, n in zip(stream.start, stream.length, strict=True)
    ]
    pool = record["tiny"] + b"\0" + record["tinier"]
    assert segments[:2] == [record["long"], record["x"] + b"\0" + record["y"]]
    assert segments[2] == b"\0".join([pool] * 4)  # 30 bases, four times to hold 100
    assert stream.weight[:2].tolist() == [1, 1]
    assert stream.weight[2] * len(segments[2]) == pytest.approx(29)


def test_positions_are_drawn_by_weight() -> None:
    stream = windows.Stream(
        text=np.zeros(2000, np.uint8),
        start=np.array([0, 1000]),
        length=np.array([1000, 1000]),
        weight=np.array([1.0, 0.25]),
    )
    plan = windows.WindowSampler(stream, CPU, seed=1).plan(0, 20_000, 10)
    share = (plan[:, 0] < 1000).mean()
    assert abs(share - 0.8) < 5 * math.sqrt(0.8 * 0.2 / 20_000)


def test_every_start_is_as_likely_whatever_the_length_of_its_segment() -> None:
    stream = windows.Stream(
        text=np.zeros(110, np.uint8),
        start=np.array([0, 100]),
        length=np.array([100, 10]),
        weight=np.ones(2),
    )
    plan = windows.WindowSampler(stream, CPU, seed=1).plan(0, 20_000, 10)
    share = (plan[:, 0] == 100).mean()  # one start of 92
    assert abs(share - 1 / 92) < 5 * math.sqrt(1 / 92 / 20_000)


def test_interpolation_by_hand() -> None:
    counts = np.zeros(16)
    counts[[1, 2]] = 3, 1  # AC three times, AG once
    order0, order1 = (np.exp2(-t.astype(float)) for t in markov.interpolated_bits(counts))
    # Order 0: C 3, G 1, two kinds over the uniform quarter: (c + 2/4) / 6.
    assert order0 == pytest.approx([0.5 / 6, 3.5 / 6, 1.5 / 6, 0.5 / 6])
    # After A: two kinds over order 0; after the others nothing was seen, so order 0 stands.
    after_a = [(c + 2 * p) / 6 for c, p in zip((0, 3, 1, 0), order0, strict=True)]
    assert order1.reshape(4, 4)[0] == pytest.approx(after_a)
    assert order1.reshape(4, 4)[2] == pytest.approx(order0)


def test_chain_is_judged_on_both_strands(tmp_path: Path) -> None:
    packed = packed_of(tmp_path, {"a.fna": {"a": random_bases(40, 1) + b"N" + b"ACGTT"}})
    counts = markov.weighted_counts(packed, 2)
    expected = np.zeros(64)
    total, bases = 0.0, 0
    words = []
    for piece in (random_bases(40, 1), b"ACGTT"):
        for strand in (piece, reverse_complement(piece)):
            words += [strand[i : i + 3] for i in range(len(strand) - 2)]
    for word in words:
        expected[int("".join(str(b"ACGT".index(x)) for x in word), 4)] += 1
    assert counts.tolist() == expected.tolist()
    tables = markov.interpolated_bits(counts)
    for word in words:
        total += tables[2][int("".join(str(b"ACGT".index(x)) for x in word), 4)]
        bases += 1
    assert markov.chain_bits(packed, tables)[0, 2] == pytest.approx(total / bases)


def test_a_chain_learns_a_repeat_and_composition_does_not(tmp_path: Path) -> None:
    packed = packed_of(tmp_path, {"a.fna": {"a": b"ACCTG" * 400}})
    result = markov.baseline(packed, packed, 3)
    gc = 3 / 5
    entropy = -(gc * math.log2(gc / 2) + (1 - gc) * math.log2((1 - gc) / 2))
    assert result["composition"] == pytest.approx(entropy)
    assert result["markov_order"] >= 2 and result["markov"] < 0.05


def toy_options(tmp_path: Path, *extra: str) -> list[str]:
    return [
        "--train", str(tmp_path / "train"), "--val", str(tmp_path / "val"),
        "-o", str(tmp_path / "out"), "--device", "cpu", "--steps", "20", "--pattern", "SDH*",
        "--width", "32", "--num-heads", "2", "--mlp-width", "48", "--filter-groups", "4",
        "--context", "192", "--short-context", "96", "--tokens-per-step", "1536",
        "--val-windows", "64,192", "--lr", "0.01", "--log-seconds", "60", *extra,
    ]  # fmt: skip


@pytest.fixture
def repeats(tmp_path: Path) -> Path:
    """Packings of a made genome that is one repeat of 24 bases with some noise."""
    unit = b"ACGGTTAACCGATTTGCGCATGCA"
    for split, seed in (("train", 1), ("val", 2)):
        write_fasta(
            tmp_path / f"{split}_fasta" / "repeat.fna", {"r": mutated(unit * 200, 0.02, seed)}
        )
        packing.pack([tmp_path / f"{split}_fasta"], tmp_path / split, max_bases=10**6)
    folders = ["--train", str(tmp_path / "train"), "--val", str(tmp_path / "val")]
    markov.main([*folders, "-o", str(tmp_path / "val" / "baseline.json"), "--order", "7"])
    return tmp_path


def toy_model(options: argparse.Namespace) -> StripedHyena2:
    config = script.evo_mini_config(options)
    return StripedHyena2(config, policy=script.FP32, generator_seed=1).eval()


def test_the_default_shape_is_within_the_limit() -> None:
    options = script.make_parser().parse_args(["--train", "t", "--val", "v", "-o", "o"])
    config = script.evo_mini_config(options)
    assert config.parameter_count() <= 2_000_000
    assert config.context_length == 8192 and config.default_window == 2048
    assert config.gelu_layers == tuple(range(9)) and config.forbidden_genomes == ("vertebrate",)


def test_windows_get_equal_tokens_by_share() -> None:
    options = argparse.Namespace(context=8192, short_context=2048, long_fraction=0.25)
    drawn = [script.lengths(options, step) for step in range(400)]
    assert drawn.count(8192) == 100 and drawn.count(2048) == 300


def test_rate_follows_progress() -> None:
    assert [script.rate_factor(x) for x in (0.01, 0.02, 0.3, 0.4)] == pytest.approx([0.5, 1, 1, 1])
    assert script.rate_factor(0.7) == pytest.approx(0.5)
    assert script.rate_factor(1.0) == 0 and script.rate_factor(1.2) == 0


def test_only_projections_decay(repeats: Path) -> None:
    options = script.make_parser().parse_args(toy_options(repeats))
    model = toy_model(options)
    with script.trained_by_log_rate(model):
        groups = script.parameter_groups(model, options)
        named = {id(p): name for name, p in model.named_parameters()}
        names = [{named[id(p)] for p in group["params"]} for group in groups]
    assert sum(map(len, names)) == len(named)
    kinds = {name.split(".", 2)[2] for name in names[0]}
    assert kinds == {
        "projections.weight", "out_projection.weight", "mlp.l1.weight", "mlp.l2.weight", "mlp.l3.weight",
    }  # fmt: skip
    assert [g["weight_decay"] for g in groups] == [0.1, 0, 0]
    assert [g["peak"] for g in groups] == [0.01, 0.001, 0.01]
    assert all(".mixer." in name for name in names[1])
    assert any("log_poles" in name for name in names[1])


def test_training_poles_by_their_rate_changes_neither_poles_nor_names(repeats: Path) -> None:
    model = toy_model(script.make_parser().parse_args(toy_options(repeats)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with script.trained_by_log_rate(model):
        poles = model.blocks[2].mixer.log_poles
        assert torch.allclose(poles, before["blocks.2.mixer.log_poles"], rtol=1e-6, atol=0)
        with torch.no_grad():
            for parameter in model.blocks[2].mixer.parameters():
                parameter += 10  # a rate moved anywhere is still a rate
        assert (model.blocks[2].mixer.log_poles < 0).all()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert torch.equal(after["blocks.0.mixer.h"], before["blocks.0.mixer.h"])
    assert isinstance(model.blocks[2].mixer.log_poles, torch.nn.Parameter)


def test_loss_is_the_weighted_mean_of_surprise(repeats: Path) -> None:
    options = script.make_parser().parse_args(toy_options(repeats))
    model = toy_model(options)
    tokens = torch.from_numpy(np.frombuffer(b"ACGTNACA", np.uint8).astype(np.int64))[None]
    weights = torch.tensor([[0, 1, 0.1, 1, 0, 1, 0.1, 0]])
    nats = -model.token_log_probs(tokens)[0].double()
    expected = sum(w * n for w, n in zip(weights[0, 1:], nats[1:], strict=True)) / 3.2
    assert script.weighted_loss(model, tokens, weights).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_evaluation_scores_each_base_once_per_strand(tmp_path: Path, repeats: Path) -> None:
    options = script.make_parser().parse_args(toy_options(repeats))
    model = toy_model(options)
    record = random_bases(64, 1) + b"acgNNt" + random_bases(30, 2)  # windows of 64 and 36
    packed = packed_of(
        tmp_path,
        {
            "a.fna": {"one": record, "rest": random_bases(20, 3)},
            "b.fna": {"x": random_bases(40, 4)},
        },
    )
    total = count = 0.0
    for window in (record[:64], record[64:]):
        for strand in (window.upper(), reverse_complement(window.upper())):
            ids = torch.tensor([list(strand)])
            log_probs = model.token_log_probs(ids)[0].tolist()
            for base, log_prob in list(zip(strand, log_probs, strict=True))[1:]:
                if base in b"ACGT":
                    total -= log_prob / math.log(2)
                    count += 1
    for tokens_per_step in (64, 4096):
        bits = script.evaluate(model, packed, 64, tokens_per_step)
        assert len(bits) == 2
        assert bits[0] == pytest.approx(total / count, rel=1e-5)


def test_toy_training_learns_and_the_saved_model_gives_the_same_logits(
    repeats: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    stored_state = script.stored_state

    def remember(model: StripedHyena2) -> dict[str, torch.Tensor]:
        trained.append(model)
        return stored_state(model)

    monkeypatch.setattr(script, "stored_state", remember)
    script.main(toy_options(repeats, "--steps", "40", "--lr", "0.02"))
    out = repeats / "out"
    printed = capsys.readouterr().out
    provenance = json.loads((out / "provenance.json").read_text())
    training, validation = provenance["training"], provenance["validation"]
    assert training["steps"] == training["curve"][-1]["step"] == 40
    assert training["tokens"] == training["curve"][-1]["tokens"] == 40 * 1536
    # The repeat has its composition's 2 bits to those who do not see that it is one.
    assert validation["baselines"]["composition"] > 1.99
    assert training["curve"][-1]["val_bits"] < 0.5

    # What was trained, rounded by hand as it should be stored, and what is read back.
    config = open_checkpoint(out, verify=True).config
    state = load_file(out / "model.safetensors")
    assert provenance["sha256"] == sha256_file(out / "model.safetensors")
    with torch.no_grad():
        for name, parameter in trained[0].named_parameters():
            if ".mixer." not in name:
                parameter.copy_(parameter.bfloat16())
    model = StripedHyena2(config, policy=resolve_precision("exact", CPU)).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    ids = torch.from_numpy(np.frombuffer(random_bases(150, 9), np.uint8).astype(np.int64))[None]
    assert torch.equal(model(ids), trained[0](ids))
    assert state["blocks.0.projections.weight"].dtype == torch.bfloat16
    assert state["blocks.2.mixer.log_poles"].dtype == torch.float32
    assert (state["blocks.2.mixer.log_poles"] < 0).all()

    # The figures are those of the saved weights, and stand in the configuration.
    val = packing.read_packed(repeats / "val")
    for window, evidence in zip((64, 192), config.evidence, strict=True):
        bits = script.evaluate(model, val, window, 1536)[0]
        saved = validation["bits_per_base"][str(window)]
        assert saved == {"val_fasta/repeat.fna": pytest.approx(bits, abs=2e-5)}
        assert evidence.metric.startswith(
            f"bits per base of validation genomes, windows of {window}"
        )
        assert evidence.value.startswith(f"{bits:.4f} (")
        assert f"{validation['baselines']['markov']:.4f}" in evidence.value
        assert "--steps 40 --seed 0" in evidence.command
        assert f"windows of {window}: {bits:.4f}" in printed
    written = (out / "config.json").read_text() + (out / "provenance.json").read_text()
    assert str(repeats) not in written

    with pytest.raises(SystemExit, match="exists"):
        script.main(toy_options(repeats))


def test_the_same_seed_gives_the_same_weights(repeats: Path) -> None:
    digests = []
    for seed in ("0", "0", "1"):
        script.main(toy_options(repeats, "--force", "--steps", "3", "--seed", seed))
        digests.append(sha256_file(repeats / "out" / "model.safetensors"))
    assert digests[0] == digests[1] != digests[2]


def test_baselines_of_other_data_are_not_used(
    repeats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = (packing.read_packed(repeats / name) for name in ("train", "val"))
    file = repeats / "val" / "baseline.json"
    monkeypatch.setattr(script, "baseline", lambda *data: {"computed from": data})
    assert script.trivial_figures(file, train, val, required=True)["markov_order"] == 7
    assert script.trivial_figures(file, val, val, required=False) == {"computed from": (val, val)}
    with pytest.raises(script.TrainingError, match="about other packings"):
        script.trivial_figures(file, val, val, required=True)


def test_a_loss_that_is_not_finite_stops_the_run(repeats: Path) -> None:
    with pytest.raises(SystemExit, match=r"the loss is not finite within steps \d+ to \d+"):
        script.main(
            toy_options(repeats, "--lr", "1e30", "--filter-lr", "1e30", "--log-seconds", "0")
        )
    assert not (repeats / "out").exists()


def test_too_large_a_model_is_refused(repeats: Path) -> None:
    with pytest.raises(SystemExit, match="at most 2,000,000"):
        script.main(toy_options(repeats, "--width", "512"))
