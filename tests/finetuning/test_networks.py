"""Heads behind a model: features against `embed`, losses by hand, batches, figures for every base."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.finetuning.examples import Examples
from evo_toolkit.finetuning.network_batches import (
    batch_of,
    binned,
    model_rows,
    other_strand,
    turned,
)
from evo_toolkit.finetuning.network_tasks import NetworkConfig, Task, answers, task_loss, task_of
from evo_toolkit.finetuning.networks import (
    TaskHead,
    affine_of,
    head_from,
    layer_output,
    predict,
)
from evo_toolkit.finetuning.positions import centred_kmers, judged_positions, kmer_baseline
from evo_toolkit.inference.embed import embed
from evo_toolkit.model.striped_hyena import StripedHyena2

SEQUENCES = ("ACGTTGCAAC", "GATTACAGATTACAGATTACACCA", "TTGNCA")


def examples(kind: str, targets: object, names: tuple[str, ...] = ("no", "yes")) -> Examples:
    n = len(SEQUENCES)
    return Examples(
        kind=kind, ids=tuple(f"s{i}" for i in range(n)), sequences=SEQUENCES, targets=targets,  # type: ignore[arg-type]
        label_names=names, places=tuple(f"x:{i}" for i in range(n)),
    )  # fmt: skip


BINARY = examples("binary", np.array([0, 1, 1]))


def features(model: StripedHyena2, head: TaskHead, data: Examples, indices: list[int]) -> torch.Tensor:  # fmt: skip
    batch = batch_of(data, indices, head.config)
    with torch.no_grad():
        hidden, _ = model.hidden(
            model_rows(batch, head.config), num_blocks=head.config.num_blocks(model)
        )
        return head.features(layer_output(model, head.config, hidden), batch)


@pytest.mark.parametrize("layer", ["norm", "blocks.2"])
@pytest.mark.parametrize("strands", ["fwd", "both", "concat"])
@pytest.mark.parametrize("pool", ["mean", "max", "last", "center"])
def test_features_of_sequences_are_their_embeddings(
    toy_model: StripedHyena2, pool: str, strands: str, layer: str
) -> None:
    config = NetworkConfig(pool=pool, strands=strands, layer=layer)  # type: ignore[arg-type]
    task = task_of(BINARY, config, balanced=False)
    found = features(toy_model, TaskHead(task, config, 16), BINARY, [0, 1, 2])
    wanted = embed(toy_model, list(SEQUENCES), layer, pool=pool, strands=strands)[layer]  # type: ignore[call-overload]
    np.testing.assert_allclose(found.numpy(), np.stack(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strands", ["fwd", "concat"])
def test_features_of_bases_are_their_embeddings(toy_model: StripedHyena2, strands: str) -> None:
    data = examples("per_base", tuple(np.zeros(len(s), np.int64) for s in SEQUENCES))
    config = NetworkConfig(strands=strands)  # type: ignore[arg-type]
    head = TaskHead(Task(kind="per_base", label_names=("no", "yes"), loss="classes"), config, 16)
    found = features(toy_model, head, data, [0, 1, 2])
    wanted = embed(toy_model, list(SEQUENCES), "norm", pool="none", strands=strands)["norm"]  # type: ignore[call-overload]
    for row, own, text in zip(found.numpy(), wanted, SEQUENCES, strict=True):
        np.testing.assert_allclose(row[: len(text)], own, rtol=1e-4, atol=1e-5)


def test_bins_are_means_of_the_bases_in_them(toy_model: StripedHyena2) -> None:
    values = tuple(np.arange(len(s), dtype=np.float32)[:, None] for s in SEQUENCES)
    data = examples("track", values, ("signal",))
    config = NetworkConfig(strands="fwd", bin_size=4)
    head = TaskHead(Task(kind="track", label_names=("signal",), loss="squares"), config, 16)
    found = features(toy_model, head, data, [0, 2])
    plain = embed(toy_model, list(SEQUENCES), "norm", pool="none", strands="fwd")["norm"]
    for row, which in ((0, 0), (1, 2)):
        own = binned(np.asarray(plain[which], np.float64), 4)
        np.testing.assert_allclose(found[row, : len(own)].numpy(), own, rtol=1e-4, atol=1e-5)
    targets = batch_of(data, [0, 2], config)["targets"]
    assert targets[0, :3, 0].tolist() == [1.5, 5.5, 8.5] and targets[1, :2, 0].tolist() == [1.5, 4.5]  # fmt: skip
    assert targets[1, 2:].isnan().all()


def test_bins_leave_out_bases_without_a_value() -> None:
    found = binned(np.array([[1.0], [np.nan], [np.nan], [np.nan], [7.0]]), 2)
    assert found[:, 0].tolist()[::2] == [1.0, 7.0] and np.isnan(found[1, 0])


def test_the_other_strand_of_padded_rows() -> None:
    rows = torch.tensor([[*list(b"AACGN"), 1, 1], list(b"GATTACA")])
    found = other_strand(rows, torch.tensor([5, 7]))
    assert bytes(found[0, :5].tolist()) == b"NCGTT" and found[0, 5:].tolist() == [1, 1]
    assert bytes(found[1].tolist()) == b"TGTAATC"
    values = torch.arange(14.0).view(2, 7, 1)
    back = turned(values, torch.tensor([5, 7]))
    assert back[0, :, 0].tolist() == [4, 3, 2, 1, 0, 0, 0]
    assert torch.equal(turned(back, torch.tensor([5, 7]))[1], values[1])


def test_a_row_does_not_depend_on_its_batch(toy_model: StripedHyena2) -> None:
    config = NetworkConfig(hidden=5, strands="concat")
    head = TaskHead(task_of(BINARY, config, balanced=False), config, 16, seed=3)
    with torch.no_grad():
        head.outer.weight.normal_(generator=torch.Generator().manual_seed(0))
    alone = [predict(toy_model, head.eval(), BINARY.subset([i]))[0] for i in range(3)]
    together = predict(toy_model, head, BINARY, batch_size=3)
    np.testing.assert_allclose(np.stack(alone), np.stack(together), rtol=1e-4, atol=1e-6)


def test_what_only_fills_a_batch_counts_nothing() -> None:
    batch = batch_of(BINARY, [1, ~0, 2], NetworkConfig())
    assert batch["weights"].tolist() == [1, 0, 1] and batch["targets"].tolist() == [1, 0, 1]
    task = Task(kind="binary", label_names=("no", "yes"), loss="binary")
    logits = torch.tensor([[0.3], [50.0], [-0.2]])
    loss, weight = task_loss(task, logits, batch["targets"], batch["weights"])
    expected = math.log(1 + math.exp(-0.3)) + math.log(1 + math.exp(0.2))
    assert float(loss) == pytest.approx(expected, rel=1e-6) and float(weight) == 2


def test_losses_by_hand() -> None:
    ones = torch.ones(2)
    # Weights of classes multiply loss and count alike.
    task = Task(kind="binary", label_names=("a", "b"), loss="binary", class_weights=(0.5, 2.0))
    loss, weight = task_loss(task, torch.zeros(2, 1), torch.tensor([0, 1]), ones)
    assert (float(loss), float(weight)) == pytest.approx((2.5 * math.log(2), 2.5))
    # Bases without a label have no weight.
    task = Task(kind="per_base", label_names=("a", "b", "c"), loss="classes")
    logits = torch.zeros(1, 4, 3)
    logits[0, 0, 2] = 1.0
    loss, weight = task_loss(task, logits, torch.tensor([[2, -1, 0, -1]]), torch.ones(1))
    assert float(weight) == 2
    assert float(loss) == pytest.approx(math.log(3) + math.log(2 + math.e) - 1)
    # Of labels those that are there count by their weight, and each label a share.
    task = Task(kind="multilabel", label_names=("a", "b"), loss="labels", class_weights=(3.0, 1.0))
    loss, _ = task_loss(task, torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1))
    assert float(loss) == pytest.approx((3 + 1) / 2 * math.log(2))
    # Numbers in units of their deviation.
    task = Task(kind="regression", label_names=(), loss="squares", target_mean=(10.0,), target_scale=(2.0,))  # fmt: skip
    loss, weight = task_loss(task, torch.tensor([[0.5], [0.0]]), torch.tensor([14.0, 10.0]), ones)
    assert (float(loss), float(weight)) == pytest.approx((2.25, 2))
    assert answers(task, torch.tensor([[0.5]])).tolist() == [11.0]
    # Tracks: a mean over the tracks that have a value, nothing where none has.
    task = Task(kind="track", label_names=("u", "v"), loss="poisson")
    nan = float("nan")
    targets = torch.tensor([[[2.0, nan], [nan, nan], [1.0, 3.0]]])
    logits = torch.zeros(1, 3, 2)
    logits[0, 0, 0] = 1.0
    loss, weight = task_loss(task, logits, targets, torch.ones(1))
    assert (float(loss), float(weight)) == pytest.approx((math.e - 2 + 1, 2))


def test_balanced_classes_weigh_the_same() -> None:
    data = examples("binary", np.array([0, 1, 1]))
    task = task_of(data, NetworkConfig(), balanced=True)
    assert task.class_weights == pytest.approx((1.5, 0.75))
    data = examples("multilabel", np.array([[1, 0], [1, 1], [0, 0]], bool), ("a", "b"))
    assert task_of(data, NetworkConfig(), balanced=True).class_weights == pytest.approx((0.5, 2.0))
    targets = tuple(np.array([0] * (len(s) - 2) + [1, -1]) for s in SEQUENCES)
    weights = task_of(examples("per_base", targets), NetworkConfig(), balanced=True).class_weights
    assert weights[0] * 34 == pytest.approx(weights[1] * 3)


def test_a_standardised_channel_that_never_moves_stays_small() -> None:
    config = NetworkConfig(strands="fwd")
    head = TaskHead(Task(kind="binary", label_names=("a", "b"), loss="binary"), config, 2)
    head.standardise_by(torch.tensor([[1.0, 1000.0], [3.0, 1000.0]]))
    assert head.mean.tolist() == [2, 1000] and head.scale.tolist() == [1, 1]


def test_heads_come_back_from_what_they_say_of_themselves() -> None:
    config = NetworkConfig(hidden=3, strands="concat", features=("alt",))
    task = Task(kind="regression", label_names=(), loss="squares", target_mean=(4.0,), target_scale=(0.5,))  # fmt: skip
    head = TaskHead(task, config, 4, seed=1)
    with torch.no_grad():
        for value in head.state_dict().values():
            value.uniform_(0.1, 1, generator=torch.Generator().manual_seed(2))
    again = head_from(head.about(), head.state_dict())
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = answers(task, head.eval().logits(x)).numpy()
        np.testing.assert_array_equal(wanted, answers(task, again.logits(x)).numpy())
    # The form in which heads are kept gives the same answers.
    np.testing.assert_allclose(affine_of(head)(x.numpy())[:, 0], wanted, rtol=1e-5)
    with pytest.raises(EvoError, match="no complete head"):
        head_from({"task": {}}, {})
    with pytest.raises(EvoError, match="no complete head"):
        head_from(head.about(), {"mean": head.mean})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hidden": -1}, "at least 0"),
        ({"dropout": 1.0}, "below 1"),
        ({"bin_size": 0}, "at least 1"),
        ({"features": ("both",)}, "use some of ref"),
        ({"features": ()}, "nothing"),
    ],
)
def test_configurations_that_cannot_be(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        NetworkConfig(**options)  # type: ignore[arg-type]


def test_counts_below_zero_have_no_poisson_loss() -> None:
    values = tuple(np.full((len(s), 1), -1.0, np.float32) for s in SEQUENCES)
    with pytest.raises(UsageError, match="at least 0"):
        task_of(
            examples("track", values, ("t",)), NetworkConfig(track_loss="poisson"), balanced=False
        )


def test_the_kmer_around_each_base() -> None:
    found = centred_kmers("ACGTN", 3)
    code = {k: i for i, k in enumerate(a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT")}
    assert found.tolist() == [64, code["ACG"], code["CGT"], 64, 64]


def test_figures_of_bases_and_their_baseline() -> None:
    """Labels that the 7-mer decides: its table says them, and a network that says them too is right."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACGT"), 60)) for _ in range(40)]
    labels = tuple(np.array([int(c in "AG") for c in text]) for text in texts)
    data = Examples(
        kind="per_base", ids=tuple(map(str, range(40))), sequences=tuple(texts), targets=labels,
        label_names=("y", "r"), places=("",) * 40,
    )  # fmt: skip
    right = [np.eye(2)[label] for label in labels]
    wrong = [np.eye(2)[1 - label] for label in labels]
    base = kmer_baseline(data, data)
    assert base[0].shape == (60, 2) and np.allclose(base[0].sum(1), 1)
    units = np.arange(40) // 2
    found = judged_positions(data, right, units, baselines={"w": wrong}, resamples=20)
    assert found["metrics"]["mcc"]["value"] == 1 and found["by_name"]["r"]["value"] == 1
    assert found["num_groups"] == 20 and found["baselines"]["w"]["mcc"]["value"] == -1
    assert found["lead"]["w"]["value"] == 2
    assert sum(map(sum, found["confusion"])) == 40 * 60
    # A k-mer that was never seen says the mean of all.
    other = Examples(
        kind="per_base", ids=("n",), sequences=("N" * 9,), targets=(np.zeros(9, np.int64),),
        label_names=("y", "r"), places=("",),
    )  # fmt: skip
    share = np.concatenate(labels).mean()
    # The ends of sequences have no k-mer either.
    np.testing.assert_allclose(kmer_baseline(data, other)[0][0, 1], share, atol=0.05)


def test_figures_of_tracks_leave_out_missing_values() -> None:
    rng = np.random.default_rng(1)
    values = tuple(rng.normal(size=(len(s), 2)).astype(np.float32) for s in SEQUENCES)
    values[1][3:9, 0] = np.nan
    data = examples("track", values, ("u", "v"))
    said = [np.nan_to_num(v) * 3 + 1 for v in values]
    said = [np.stack([row[:, 0], rng.normal(size=len(row))], axis=1) for row in said]
    found = judged_positions(data, said, np.arange(3), resamples=10)
    known = np.concatenate(values)
    guess = np.concatenate(said)
    expected = np.corrcoef(known[:, 1], guess[:, 1])[0, 1]
    assert found["by_name"]["u"]["value"] == pytest.approx(1, abs=1e-6)
    assert found["by_name"]["v"]["value"] == pytest.approx(expected, abs=1e-6)
    assert found["metrics"]["pearson"]["value"] == pytest.approx((1 + expected) / 2, abs=1e-6)
