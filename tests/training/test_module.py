"""The module in a run: global normalisation, precision, stops, figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from toy_data import ToyData

import evo_toolkit.model.hyena as hyena
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.errors import UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.precision import PrecisionPolicy
from evo_toolkit.training.callbacks import Monitor
from evo_toolkit.training.checkpointing import Checkpoints
from evo_toolkit.training.errors import NonFiniteLossError
from evo_toolkit.training.module import ContinuedEvoModule, EvoModule
from evo_toolkit.training.optim import OptimizerConfig
from evo_toolkit.training.schedules import ScheduleConfig

DEMO = Path(__file__).resolve().parents[2] / "data" / "evo_data" / "demo" / "NC_000932.fa"
CONFIG = StripedHyena2Config(
    name="toy", pattern="SDH*", width=16, num_heads=2, mlp_width=32, filter_groups=2,
    context_length=32, vocab_size=256, mr_length=16, gelu_layers=(0, 1, 2, 3),
)  # fmt: skip


class Figures(Callback):
    """Keeps what every update reports."""

    def __init__(self) -> None:
        self.updates: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.updates):
            self.updates.append(pl_module.figures())


def train(
    folder: Path,
    module: EvoModule,
    *,
    data: dict[str, Any] | None = None,
    callbacks: tuple[Callback, ...] = (),
    **options: Any,
) -> list[dict[str, float]]:
    """Train on the demo genome; the figures of every update."""
    figures = Figures()
    trainer = Trainer(**{
        "accelerator": "cpu", "max_steps": 3, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, "limit_val_batches": 0,
        "check_val_every_n_epoch": None, "gradient_clip_val": 1.0,
        "enable_checkpointing": any(isinstance(c, Checkpoints) for c in callbacks),
        "use_distributed_sampler": False, **options,
        "callbacks": [figures, *callbacks],
    })  # fmt: skip
    trainer.fit(module, datamodule=ToyData(str(DEMO), **{"context_length": 32, **(data or {})}))
    return figures.updates


def module(**options: Any) -> EvoModule:
    options.setdefault("schedule", ScheduleConfig(warmup_steps=1))
    return EvoModule(CONFIG, **options)


def weights(module: EvoModule) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.model.state_dict().items()}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for key in one:
        # One unit of float32 in a gradient can be a visible part of Adam's first steps.
        torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=2e-5, msg=key)


def test_an_update_does_not_depend_on_how_the_batch_is_cut(tmp_path: Path) -> None:
    whole, parts = module(), module()
    one = train(tmp_path, whole, data={"batch_size": 8})
    two = train(tmp_path, parts, data={"batch_size": 2}, accumulate_grad_batches=4)
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=2e-5)
    assert_close(weights(whole), weights(parts))
    assert whole.tokens == parts.tokens == 3 * 8 * 32


def test_the_gradient_is_that_of_the_weighted_mean_clipped(tmp_path: Path) -> None:
    kept: dict[str, torch.Tensor] = {}

    class Keep(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            kept.update({k: p.grad.clone() for k, p in pl_module.named_parameters() if p.grad is not None})  # fmt: skip

    own = module()
    data = ToyData(str(DEMO), context_length=32, batch_size=8)
    updates = train(tmp_path, own, data={"batch_size": 8}, callbacks=(Keep(),), max_steps=2)
    batch = torch.utils.data.default_collate([data.sample(i) for i in range(8)])
    fresh = module()
    fresh.configure_model()
    assert fresh.objective is not None
    loss, weight = fresh.objective(batch["input_ids"], batch["targets"], batch["weights"])
    mean = loss / weight
    names, parameters = zip(*fresh.named_parameters(), strict=True)
    gradients = torch.autograd.grad(mean, parameters)
    norm = torch.stack([g.norm() for g in gradients]).norm()
    assert norm > 1  # or nothing is clipped
    assert updates[0]["loss"] == pytest.approx(mean.item(), rel=1e-6)
    assert updates[0]["bits_per_base"] == pytest.approx(mean.item() / math.log(2), rel=1e-6)
    assert updates[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(kept[name], gradient / norm, rtol=1e-4, atol=1e-7)


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    one = module(seed=3)
    one.configure_model()
    torch.manual_seed(6)
    two, three = module(seed=3), module(seed=4)
    two.configure_model()
    three.configure_model()
    assert torch.equal(one.model.embedding.weight, two.model.embedding.weight)
    assert not torch.equal(one.model.embedding.weight, three.model.embedding.weight)


def test_recomputed_activations_give_the_same_run(tmp_path: Path) -> None:
    kept, again = module(), module(checkpoint_blocks=2)
    assert train(tmp_path, kept) == train(tmp_path, again)


def test_mlps_in_chunks_of_the_sequence_give_the_same_run(tmp_path: Path) -> None:
    whole, chunked = module(), module(mlp_chunk=7, checkpoint_blocks=1)
    for one, other in zip(train(tmp_path, whole), train(tmp_path, chunked), strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    assert all(block.mlp.chunk == 7 for block in chunked.model.blocks)
    assert all(block.mlp.chunk == 0 for block in whole.model.blocks)


@pytest.mark.parametrize("blocks", [0, 2])
def test_compiled_blocks_give_the_same_run(tmp_path: Path, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    import torch._dynamo

    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    original = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kw: original(self, backend=backend, **kw)
    )
    eager = train(tmp_path, module(checkpoint_blocks=blocks), max_steps=2)
    built = train(tmp_path, module(compile_blocks=True, checkpoint_blocks=blocks), max_steps=2)
    assert compiled
    for a, b in zip(eager, built, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    torch._dynamo.reset()


def test_operators_see_bfloat16_activations_and_float32_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[str, torch.dtype]] = set()

    def spy(name: str) -> None:
        original = getattr(hyena, name)

        def called(qkv: torch.Tensor, *filters: Any, **options: Any) -> Any:
            seen.add(("activations", qkv.dtype))
            seen.update((name, f.dtype) for f in filters if isinstance(f, torch.Tensor))
            return original(qkv, *filters, **options)

        monkeypatch.setattr(hyena, name, called)

    for name in ("hyena_se", "hyena_mr", "hyena_li"):
        spy(name)
    monkeypatch.setattr(
        "evo_toolkit.training.module.resolve_precision",
        lambda *_: PrecisionPolicy(name="default", compute_dtype=torch.bfloat16),
    )
    own = module()
    train(tmp_path, own, max_steps=1)
    assert seen == {
        ("activations", torch.bfloat16),
        ("hyena_se", torch.float32),
        ("hyena_mr", torch.float32),
        ("hyena_li", torch.float32),
    }
    assert {p.dtype for p in own.parameters()} == {torch.float32}
    state = own.trainer.optimizers[0].state
    assert {t.dtype for s in state.values() for t in s.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_with_the_state_before_it(tmp_path: Path) -> None:
    own = module()
    checkpoints = Checkpoints(every_n_steps=1)
    with pytest.raises(NonFiniteLossError, match=r"update 3.*learning_rate") as error:
        train(tmp_path, own, data={"batch_size": 4, "poison_from": 8}, callbacks=(checkpoints,), max_steps=6)  # fmt: skip
    saved = tmp_path / "checkpoints" / "nonfinite-step-00000002.ckpt"
    assert str(saved) in str(error.value)
    kept = torch.load(saved, weights_only=True)["state_dict"]
    last = torch.load(tmp_path / "checkpoints" / "step-00000002.ckpt", weights_only=True)
    for key, value in last["state_dict"].items():
        assert torch.equal(kept[key], value)
        assert torch.isfinite(value).all()
    assert checkpoints._find_last_checkpoints(own.trainer) == {
        str(tmp_path / "checkpoints" / "step-00000002.ckpt")
    }


def test_where_the_host_looks_later_nothing_after_a_bad_update_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the host hears of it when figures are logged."""
    own = module()
    honest = own.raise_if_not_finite
    monkeypatch.setattr(own, "_host_may_look", lambda value: False)
    train(tmp_path, own, data={"batch_size": 4, "poison_from": 8, "poison_count": 4}, max_steps=5)
    clean = module(total_steps=5)
    train(tmp_path, clean, data={"batch_size": 4}, max_steps=2)
    for key, value in weights(own).items():
        assert torch.equal(value, weights(clean)[key]), key
    with pytest.raises(NonFiniteLossError):
        honest()


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for a device, or copy to it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_step_waits_for_the_device_between_the_lines_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Any
) -> None:
    own = module(optimizer=OptimizerConfig(name=optimizer))
    monkeypatch.setattr(own, "_host_may_look", lambda value: False)
    counts: list[list[str]] = []

    class Watch(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            self.mode = Reads()
            self.mode.__enter__()

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.mode.__exit__(None, None, None)
            counts.append(self.mode.found)

    # The monitor comes before the watch ends: its reads at updates 3 and 6 are seen.
    trainer = Trainer(
        accelerator="cpu", max_steps=6, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
        check_val_every_n_epoch=None, gradient_clip_val=1.0, enable_checkpointing=False,
        log_every_n_steps=3, callbacks=[Monitor(), Watch()],
    )  # fmt: skip
    trainer.fit(own, datamodule=ToyData(str(DEMO), context_length=32))
    # The reference twins of attention's rotary and of the fused optimizer read nothing either.
    assert [bool(found) for found in counts] == [False, False, True, False, False, True], counts


def test_figures_are_logged_and_the_rate_follows_the_schedule(fit: Callable[..., Path], tmp_path: Path) -> None:  # fmt: skip
    import csv

    folder = fit(tmp_path, "--trainer.limit_val_batches", 2, "--trainer.val_check_interval", 3, "--data.codons", "true", "--trainer.log_every_n_steps", 2)  # fmt: skip
    with (folder / "csv" / "version_0" / "metrics.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    trained = [line for line in lines if line["train/loss"]]
    assert [int(line["step"]) for line in trained] == [2, 4, 6]
    # 6 updates: 2 of warm-up, and the last two on the way down.
    rates = [float(line["train/learning_rate"]) for line in trained]
    assert rates == pytest.approx([3e-3, 3e-3, 1.5e-3])
    assert [int(line["train/tokens"]) for line in trained] == [256, 512, 768]
    assert all(float(line["speed/tokens_per_second"]) > 0 for line in trained)
    assert all(float(line["memory/peak_gib"]) > 0.01 for line in trained)
    validated = [line for line in lines if line["val/bits_per_base"]]
    assert [int(line["step"]) for line in validated] == [3, 6]
    for line in validated:
        total = float(line["val/bits_per_base"])
        for parts in (
            ("even", "odd"),
            ("codon_position_1", "codon_position_2", "codon_position_3"),
        ):
            values = [float(line[f"val/bits_per_base/{part}"]) for part in parts]
            assert min(values) <= total <= max(values)
    events = list((folder / "tensorboard" / "version_0").glob("events*"))
    assert events and events[0].stat().st_size > 500


def test_validation_is_the_mean_over_scored_bases(tmp_path: Path) -> None:
    own = module()
    data = ToyData(str(DEMO), context_length=32, batch_size=4)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, enable_model_summary=False, enable_checkpointing=False)  # fmt: skip
    (result,) = trainer.validate(own, datamodule=data, verbose=False)
    expected: dict[str, list[float]] = {"even": [0.0, 0], "odd": [0.0, 0]}
    for number in range(10**6, 10**6 + 4):
        sample = data.sample(number)
        whole = torch.cat([sample["input_ids"], sample["targets"][-1:]])[None]
        with torch.no_grad():
            nll = -own.model.token_log_probs(whole)[0, 1:].double()
        scored = sample["weights"] > 0
        entry = expected["odd" if number % 2 else "even"]
        entry[0] += nll[scored].sum().item() / math.log(2)
        entry[1] += int(scored.sum())
    for name, (bits, count) in expected.items():
        assert result[f"val/bits_per_base/{name}"] == pytest.approx(bits / count, rel=1e-5)
    total = sum(b for b, _ in expected.values()) / sum(n for _, n in expected.values())
    assert result["val/bits_per_base"] == pytest.approx(total, rel=1e-5)


def test_a_run_continues_from_weights_with_a_longer_context(
    tmp_path: Path, toy_model_dir: Path
) -> None:
    old = load_model(toy_model_dir, device="cpu")
    own = ContinuedEvoModule(str(toy_model_dir), 2048, schedule=ScheduleConfig(warmup_steps=1))
    assert own.config.rotary_interpolation == 4.0
    assert own.config.context_length == 2048
    own.configure_model()
    assert own.model.blocks[3].mixer.interpolation == 4.0  # type: ignore[union-attr]
    for key, value in own.model.state_dict().items():
        name = key.replace("parametrizations.log_poles.original", "log_poles")
        wanted = old.state_dict()[name].float()
        found = -value.exp() if name != key else value
        torch.testing.assert_close(found, wanted, msg=key)
    train(tmp_path, own, data={"context_length": 64})
    shorter = ContinuedEvoModule(str(toy_model_dir), 64, domains=["plastids"])
    assert shorter.config.domains == ("plastids",)
    assert (shorter.config.rotary_interpolation, shorter.config.context_length) == (1.0, 512)


def test_a_schedule_needs_an_end(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_steps"):
        train(tmp_path, module(), max_steps=-1, max_epochs=-1, limit_train_batches=None)


def test_rates_and_decay_of_a_resumed_run_are_its_own(tmp_path: Path) -> None:
    train(tmp_path, module(total_steps=4), callbacks=(Checkpoints(every_n_steps=2),), max_steps=2)
    rates: list[float] = []

    class Rates(Callback):
        def on_before_optimizer_step(
            self, trainer: Trainer, pl_module: Any, optimizer: Any
        ) -> None:
            rates.extend(g["lr"] for g in optimizer.param_groups)
            rates.append(optimizer.param_groups[0]["weight_decay"])

    config = OptimizerConfig(learning_rate=7e-4, weight_decay=0.2)
    own = module(total_steps=4, optimizer=config)
    trainer = Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
        check_val_every_n_epoch=None, callbacks=[Rates(), Checkpoints(every_n_steps=2)],
    )  # fmt: skip
    trainer.fit(own, datamodule=ToyData(str(DEMO), context_length=32), ckpt_path="last")
    assert rates == pytest.approx([7e-4, 7e-4, 7e-4, 0.2])


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path, module(), callbacks=(Checkpoints(every_n_steps=3),))
    other = EvoModule(CONFIG.replace(pattern="SHD*"), schedule=ScheduleConfig(warmup_steps=1))
    trainer = Trainer(accelerator="cpu", max_steps=4, logger=False, enable_progress_bar=False, default_root_dir=tmp_path, check_val_every_n_epoch=None, callbacks=[Checkpoints()])  # fmt: skip
    with pytest.raises(ValueError, match=r"pattern 'SDH\*'.*'SHD\*'"):
        trainer.fit(other, datamodule=ToyData(str(DEMO), context_length=32), ckpt_path="last")


def test_monitor_keeps_what_it_logged_last(tmp_path: Path) -> None:
    monitor = Monitor()
    train(tmp_path, module(), callbacks=(monitor,), log_every_n_steps=1)
    assert monitor.latest["train/tokens"] == 3 * 4 * 32
    assert json.dumps(monitor.latest)
