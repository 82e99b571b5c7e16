"""Synthetic tasks: right answers, batches, the count of right answers, and learning."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from evo_toolkit.errors import UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training import synthetic_tasks
from evo_toolkit.training.cli import run
from evo_toolkit.training.loss import NextTokenObjective
from evo_toolkit.training.module import EvoModule
from evo_toolkit.training.synthetic_tasks import (
    Sequences,
    associative_recall,
    compression,
    induction_head,
    multi_token_recall,
)
from evo_toolkit.training.synthetics import (
    AnswerObjective,
    AssociativeRecall,
    Compression,
    CompressionModule,
    CompressionObjective,
    InductionHead,
    MultiTokenRecall,
    StopWhenSolved,
    SyntheticData,
    SyntheticModule,
)
from evo_toolkit.training.synthetics_table import MODELS, TASKS, equal_size, plan, read_recipe

ROOT = Path(__file__).resolve().parents[2]
CONFIG = StripedHyena2Config(
    name="toy", pattern="SH", width=16, num_heads=2, mlp_width=32, filter_groups=4,
    context_length=13, vocab_size=256, gelu_layers=(0, 1),
)  # fmt: skip
ALL: dict[str, Callable[..., SyntheticData]] = {
    "induction-head": InductionHead,
    "associative-recall": AssociativeRecall,
    "multi-token-recall": MultiTokenRecall,
    "compression": Compression,
}


# ---- the right answers ---------------------------------------------------------------------------


def test_the_induction_heads_answer_is_what_followed_the_marker() -> None:
    sequences = induction_head(np.random.default_rng(3), 400, length=9, num_symbols=5)
    firsts = set()
    for inputs, targets, answers in zip(*(a.tolist() for a in sequences), strict=True):
        places = [i for i, symbol in enumerate(inputs) if symbol == 4]
        assert len(places) == 2 and places[1] == 8
        assert answers == [False] * 8 + [True]
        assert targets[:-1] == inputs[1:]
        assert targets[-1] == inputs[places[0] + 1] != 4
        firsts.add(places[0])
    # The marker never stands directly before the last one: nothing would follow it.
    assert firsts == set(range(7))


def _check_recall(sequences: Sequences, key_length: int, value_length: int) -> int:
    """Answer every sequence by reading it once with a dictionary; the number of answers."""
    record, count = key_length + value_length, 0
    for inputs, targets, answers in zip(*(a.tolist() for a in sequences), strict=True):
        whole = [*inputs, targets[-1]]
        assert targets == whole[1:]
        seen: dict[tuple[int, ...], list[int]] = {}
        asked = [False] * len(whole)
        for start in range(0, len(whole), record):
            key = tuple(whole[start : start + key_length])
            value = whole[start + key_length : start + record]
            known = seen.get(key)
            if known is not None:
                assert value == known
                for place in range(start + key_length, start + record):
                    asked[place] = True
            seen[key] = value
        assert asked[-1]  # the last key is always one that can be known
        assert answers == asked[1:]
        count += sum(asked)
    return count


def test_associative_recall_asks_for_the_values_of_keys_seen_before() -> None:
    sequences = associative_recall(
        np.random.default_rng(4), 300, length=19, num_keys=4, num_values=3
    )
    assert 300 * 5 < _check_recall(sequences, 1, 1) <= 300 * 9
    keys, values = sequences.input_ids[:, 0::2], sequences.input_ids[:, 1::2]
    assert set(keys.ravel()) == {0, 1, 2, 3} and set(values.ravel()) == {4, 5, 6}
    # Tables differ between sequences, so that no value can be learned by heart.
    assert len({tuple(row) for row in sequences.targets[sequences.answers].reshape(-1, 1)}) == 3
    firsts = values[keys[:, 0] == 0, 0]
    assert len(set(firsts)) == 3


def test_multi_token_recall_asks_for_all_symbols_of_a_value() -> None:
    sequences = multi_token_recall(
        np.random.default_rng(5), 200, length=29, num_entries=3, key_symbols=2, key_length=2,
        value_symbols=6, value_length=3,
    )  # fmt: skip
    _check_recall(sequences, 2, 3)
    records = sequences.input_ids[:, :25].reshape(200, 5, 5)
    assert set(records[..., :2].ravel()) == {0, 1} and set(records[..., 2:].ravel()) == set(
        range(2, 8)
    )
    # One symbol does not tell a key: some sequences have keys that share their first.
    words = [{tuple(word) for word in row} for row in records[..., :2].tolist()]
    assert any(len({word[0] for word in row}) < len(row) for row in words)
    assert max(map(len, words)) == 3


def test_compression_asks_for_every_symbol_in_order() -> None:
    sequences = compression(np.random.default_rng(6), 50, length=7, num_symbols=4)
    assert (sequences.input_ids[:, -1] == 4).all()
    assert (sequences.targets == sequences.input_ids[:, :-1]).all()
    assert sequences.answers.all() and sequences.answers.shape == (50, 6)
    assert set(sequences.targets.ravel()) == {0, 1, 2, 3}


class _Scripted:
    """A generator whose draws are written down."""

    def __init__(self, *draws: Any) -> None:
        self.draws = list(draws)

    def integers(self, low: int, high: int, size: Any) -> Any:
        drawn = np.array(self.draws.pop(0))
        assert drawn.min() >= low and drawn.max() < high
        return drawn


def test_a_sequence_written_by_hand() -> None:
    # Keys a b = 0 1, values x y z = 2 3 4; a means z and b means x: a z b x a z b -> x.
    generator: Any = _Scripted([[[2], [0]]], [[0, 1, 0, 0]], [1])
    sequences = associative_recall(generator, 1, length=7, num_keys=2, num_values=3)
    assert sequences.input_ids.tolist() == [[0, 4, 1, 2, 0, 4, 1]]
    assert sequences.targets.tolist() == [[4, 1, 2, 0, 4, 1, 2]]
    assert sequences.answers.astype(int).tolist() == [[0, 0, 0, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: InductionHead(context_length=2), "context_length is 2; it must be at least 3"),
        (lambda: InductionHead(num_symbols=300), "symbols up to"),
        (lambda: AssociativeRecall(context_length=20), "make 19 or 21"),
        (lambda: AssociativeRecall(num_values=1), "num_values is 1"),
        (lambda: MultiTokenRecall(context_length=48), "make 47 or 51"),
        (lambda: MultiTokenRecall(num_entries=17), "make 16 words"),
        (lambda: Compression(num_symbols=1), "num_symbols is 1"),
        (lambda: Compression(batch_size=0), "batch_size 0 must be 1 or more"),
        (lambda: Compression(seed=-1), "seed -1 must be 0 or more"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(
    made: Callable[[], SyntheticData], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        made().setup("fit")
    assert "\n" not in str(raised.value)


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_a_function_of_seed_and_number(task: str) -> None:
    one, same, other = ALL[task](seed=7), ALL[task](seed=7), ALL[task](seed=8)
    for batch, again in ((one.batch(5), same.batch(5)), (one.validation_batch(), same.validation_batch())):  # fmt: skip
        assert batch.keys() == again.keys()
        for name, value in batch.items():
            assert torch.equal(value, again[name])
    first = one.batch(5)["input_ids"]
    assert first.shape == (32, one.context_length) and first.dtype == torch.int64
    for different in (one.batch(6), other.batch(5)):
        assert not torch.equal(first, different["input_ids"])
    validated = {tuple(row) for row in one.validation_batch()["input_ids"].tolist()}
    assert len(validated) > 500  # of 512
    assert not torch.equal(one.batch(0)["input_ids"], one.validation_batch()["input_ids"][:32])
    assert one.batch(0)["weights"].dtype == torch.float32
    assert set(one.batch(0)["weights"].ravel().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("task", TASKS)
def test_guessing_is_as_good_as_is_said(task: str) -> None:
    data = ALL[task](val_sequences=4000)
    sequences = data.draw(np.random.default_rng(1), 4000)
    answers = sequences.targets[sequences.answers]
    guesses = np.random.default_rng(2).permutation(answers)
    share = float((guesses == answers).mean())
    assert share == pytest.approx(data.chance, abs=4 * np.sqrt(data.chance / len(answers)) + 0.01)


# ---- loss and accuracy ---------------------------------------------------------------------------


def test_the_loss_of_answers_is_the_weighted_loss() -> None:
    model = StripedHyena2(CONFIG, generator_seed=1)
    batch = AssociativeRecall(context_length=13, batch_size=4).batch(0)
    arguments = (batch["input_ids"], batch["targets"], batch["weights"])
    results = []
    for objective in (NextTokenObjective(model), AnswerObjective(model)):
        loss, weight = objective(*arguments)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        results.append((float(loss.detach()), float(weight), gradients))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert results[0][1] == results[1][1] == float(batch["weights"].sum())
    for one, other in zip(results[0][2], results[1][2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class _Told(SyntheticData):
    """Three sequences; with the logits of `_answers`, 3 of 5 answers are right and 1 sequence is."""

    chance = 0.5

    def draw(self, generator: np.random.Generator, number: int) -> Sequences:
        targets = np.array([[7, 7, 7], [8, 7, 8], [7, 8, 7]])
        asked = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]], bool)
        return Sequences(np.zeros((3, 3), np.int64), targets, asked)


def test_right_answers_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = torch.tensor([[7, 0, 7], [8, 7, 0], [7, 8, 0]])
    logits = torch.nn.functional.one_hot(said, 256).float() * 3
    monkeypatch.setattr(StripedHyena2, "head", lambda self, hidden: logits)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = SyntheticModule(config=CONFIG.replace(context_length=3))
    (found,) = trainer.validate(module, datamodule=_Told(3), verbose=False)
    assert found["val/accuracy"] == pytest.approx(3 / 5)
    assert found["val/sequence_accuracy"] == pytest.approx(1 / 3)
    right = -np.log(np.exp(3) / (np.exp(3) + 255))
    assert found["val/loss"] == pytest.approx((3 * right + 2 * (right + 3)) / 5, rel=1e-5)


def test_a_compressed_sequence_is_told_from_the_last_position_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = StripedHyena2(CONFIG, generator_seed=1)
    objective = CompressionObjective(model, seed=0)
    ids = Compression(context_length=13, batch_size=4).batch(0)["input_ids"]
    rows = objective.hidden(ids)
    assert rows.shape == (4, 12, 16)
    # Every place has its own question.
    assert (rows[:, 0] - rows[:, 1]).abs().max() > 1e-3
    true = StripedHyena2.hidden

    def garbled(self: StripedHyena2, *args: Any, **kwargs: Any) -> Any:
        hidden, state = true(self, *args, **kwargs)
        return torch.cat([torch.randn_like(hidden[:, :-1]), hidden[:, -1:]], 1), state

    monkeypatch.setattr(StripedHyena2, "hidden", garbled)
    assert torch.equal(objective.hidden(ids), rows)


def test_the_decoder_is_trained_and_its_weights_follow_from_the_seed() -> None:
    modules = [CompressionModule(config=CONFIG, seed=seed) for seed in (0, 0, 1)]
    for module in modules:
        module.configure_model()
    decoders = [m.objective.decoder[0].weight for m in modules]  # type: ignore[union-attr, index]
    assert torch.equal(decoders[0], decoders[1]) and not torch.equal(decoders[0], decoders[2])
    optimizer = modules[0].configure_optimizers()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in modules[0].parameters()}


# ---- runs ----------------------------------------------------------------------------------------


def _fit(folder: Path, module: EvoModule, data: SyntheticData, steps: int, *more: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, callbacks=list(more),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder, val_check_interval=20, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, use_distributed_sampler=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return trainer


def test_a_short_run_learns_far_above_chance_and_ends_when_it_has(tmp_path: Path) -> None:
    data = InductionHead(context_length=8, num_symbols=6)
    module = SyntheticModule(config=CONFIG.replace(pattern="HH", context_length=8, width=32))
    trainer = _fit(tmp_path, module, data, 400, StopWhenSolved(0.9))
    assert trainer.callback_metrics["val/accuracy"] >= 0.9 > 4 * data.chance
    assert trainer.global_step < 400 and trainer.global_step % 20 == 0


def test_a_compressor_learns(tmp_path: Path) -> None:
    data = Compression(context_length=4, num_symbols=4)
    module = CompressionModule(config=CONFIG.replace(context_length=4, width=32))
    trainer = _fit(tmp_path, module, data, 100)
    assert trainer.callback_metrics["val/accuracy"] > 0.6 > 2 * data.chance


# ---- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_recipes_say_the_same_to_any_reader_of_yaml(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(["fit", "--config", f"recipes/synthetics/{task}.yaml", "--print_config"])
    assert end.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    plain = read_recipe(task)

    def same(mine: Any, full: Any, path: str) -> None:
        if isinstance(mine, dict):
            for key, value in mine.items():
                same(value, full[key], f"{path}.{key}")
        elif isinstance(mine, list) and mine and isinstance(mine[0], dict):
            for one, other in zip(mine, full, strict=True):
                same(one, other, path)
        else:
            assert mine == full and type(mine) is type(full), path

    same(plain, parsed, task)


@pytest.mark.parametrize("model", MODELS)
def test_models_have_equal_numbers_of_parameters(model: str) -> None:
    sizes = set()
    for run_ in plan(TASKS, [model], [0]):
        built = StripedHyena2(run_.config)
        sizes.add(sum(p.numel() for p in built.parameters()))
        assert run_.config.parameter_count() in sizes
    assert all(abs(size - 111_040) <= 384 for size in sizes), sizes


def test_mixers_larger_than_the_model_are_refused() -> None:
    config = CONFIG.replace(context_length=64, long_length=4096, width=16)
    with pytest.raises(UsageError, match="larger mlp_width"):
        equal_size(config, "LL")


def test_the_page_of_recipes_names_the_tasks() -> None:
    text = (ROOT / "recipes" / "README.md").read_text()
    for task in TASKS:
        assert f"synthetics/{task}.yaml" in text, task


def _commands() -> list[str]:
    text = (ROOT / "recipes" / "README.md").read_text()
    return re.findall(r"^evo-toolkit train fit .*recipes/synthetics/.*$", text, re.MULTILINE)


@pytest.mark.parametrize("command", _commands(), ids=lambda c: c.split("/")[-1].split(".")[0])
def test_every_command_of_the_page_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.batch_size=2"]
    run([*shlex.split(command)[2:], *short])
    (metrics,) = tmp_path.rglob("metrics.csv")
    with metrics.open() as file:
        assert any(row.get("val/accuracy") for row in csv.DictReader(file))


def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(
    tmp_path: Path,
    checkpoint_of: Callable[[Path, int], dict[str, Any]],
    same_state: Callable[..., None],
) -> None:
    words = ["fit", "--config", "recipes/synthetics/compression.yaml", "--data.batch_size=4"]
    words += ["--trainer.val_check_interval=2", "--checkpoint.every_n_steps=2", "--model.total_steps=4"]  # fmt: skip
    run([*words, "--trainer.max_steps=4", f"--trainer.default_root_dir={tmp_path / 'whole'}"])
    parts = [*words, f"--trainer.default_root_dir={tmp_path / 'parts'}"]
    run([*parts, "--trainer.max_steps=2"])
    run([*parts, "--trainer.max_steps=4", "--ckpt_path=last"])
    states = [checkpoint_of(tmp_path / name, 4) for name in ("whole", "parts")]
    same_state(states[0]["state_dict"], states[1]["state_dict"])


def test_tasks_need_nothing_but_numpy() -> None:
    source = Path(synthetic_tasks.__file__).read_text()
    assert re.findall(r"^(?:import|from) (\S+)", source, re.MULTILINE) == [
        "__future__", "typing", "numpy", "numpy.typing", "evo_toolkit.errors",
    ]  # fmt: skip


def test_the_table_needs_torch_and_lightning_alone() -> None:
    # Where transformers is installed Lightning's metrics import it, and huggingface_hub with it.
    absent = ("jsonargparse", "click", "pysam", "Bio", "pyarrow")
    code = f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\nimport evo_toolkit.training.synthetics_table"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
