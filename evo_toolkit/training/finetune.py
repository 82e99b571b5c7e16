"""Modules that train a part of a model: heads for labelled sequences, adapters, or everything.

What is frozen is in no checkpoint of a run: it is read again from where it came.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from evo_toolkit.errors import CheckpointError, UsageError
from evo_toolkit.finetuning.adapters import AdapterConfig, add_adapter
from evo_toolkit.finetuning.network_batches import model_rows
from evo_toolkit.finetuning.network_tasks import NetworkConfig, Task, task_loss, task_of
from evo_toolkit.finetuning.networks import TaskHead, layer_output
from evo_toolkit.model.precision import resolve_precision
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.loss import NextTokenObjective
from evo_toolkit.training.module import STATE_KEY, Batch, ContinuedEvoModule, _plain
from evo_toolkit.training.optim import (
    OptimizerConfig,
    ParameterGroup,
    build_optimizer,
    parameter_groups,
)
from evo_toolkit.training.schedules import ScheduleConfig

_log = logging.getLogger("evo_toolkit")

Method = Literal["head", "lora", "full"]
METHODS: tuple[Method, ...] = ("head", "lora", "full")

# Examples whose features say by what all are standardised.
_MEASURED = 256

# Defaults of arguments: frozen, so one of each serves all.
_NETWORK, _ADAPTER = NetworkConfig(), AdapterConfig()
_OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.0)
_SCHEDULE = ScheduleConfig(shape="cosine", warmup_fraction=0.05)


class PartlyTrainedModule(ContinuedEvoModule):
    """Continues from weights that may stay frozen, whole or but for an adapter.

    Attributes:
        method: `head` freezes the model, `lora` trains an adapter, `full` everything that runs.
        adapter: Of `lora`.
    """

    def __init__(
        self,
        init_from: str,
        method: Method = "lora",
        adapter: AdapterConfig = _ADAPTER,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if method not in METHODS:
            raise UsageError(f"method is {method!r}; use {', '.join(METHODS)}")
        # The model's own length: data that are longer are refused where they are read.
        super().__init__(init_from, context_length=1, name=name, **kwargs)
        self.method: Method = method
        self.adapter = adapter
        # Frozen tensors are in no checkpoint; `on_load_checkpoint` compares the names.
        self.strict_loading = False

    def num_blocks(self, model: StripedHyena2) -> int:
        """Blocks that run; the others are left out."""
        return len(model.blocks)

    def build_model(self, device: torch.device) -> StripedHyena2:
        policy = resolve_precision(self.precision, device, self.backend)
        with torch.device("meta"):
            model = StripedHyena2(self.config, policy=policy)
        # What is not trained needs no master weights in float32.
        full = self.method == "full"
        tensors = dict(
            self._source.iter_tensors(
                dtype=lambda name: torch.float32 if full else model.storage_dtype(name)
            )
        )
        model.load_state_dict(tensors, strict=True, assign=True)
        model.source = self.init_from
        model.blocks = model.blocks[: self.num_blocks(model)]
        for parameter in model.parameters():
            parameter.requires_grad_(full)
        if self.method == "lora":
            add_adapter(model, self.adapter, seed=self.seed)
        return model

    def trained_names(self) -> set[str]:
        """Names of the parameters that are trained, as in `state_dict`."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What is trained, and the head's buffers."""
        trained = self.trained_names()
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {k: v for k, v in state.items() if k in trained or k.startswith("objective.head.")}

    def base_digest(self) -> str:
        """sha256 of the weights that the run starts from."""
        return self._source.origin().sha256()

    def described(self) -> dict[str, Any]:
        """What a run of the same kind must have in common with this one, as plain values."""
        return {
            "method": self.method,
            "adapter": _plain(dataclasses.asdict(self.adapter)),
            "base": {"name": self._source.config.name, "sha256": self.base_digest()},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE_KEY]["finetune"] = self.described()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved, mine = checkpoint[STATE_KEY].get("finetune"), self.described()
        if saved is None:
            raise CheckpointError("the checkpoint is of a run that trained a whole model from its start; give one of this recipe")  # fmt: skip
        for key, value in mine.items():
            if key == "adapter" and self.method != "lora":
                continue
            if saved.get(key) != value:
                raise CheckpointError(
                    f"the checkpoint was trained with {key} {_short(saved.get(key), value)}, this run has {_short(value, saved.get(key))}; give the same, or start a new run"
                )
        if self.objective is not None:
            own = self.state_dict().keys()
            if own != checkpoint["state_dict"].keys():
                odd = sorted(own ^ checkpoint["state_dict"].keys())[0]
                raise CheckpointError(f"the checkpoint's tensors are of another network: {odd}")


class AdaptedEvoModule(PartlyTrainedModule):
    """Continued language modelling through an adapter: on other genomes, the model itself frozen.

    `evo-toolkit train export CHECKPOINT -o FILE.safetensors` writes the adapter.
    """

    def __init__(
        self,
        init_from: str,
        context_length: int,
        adapter: AdapterConfig = _ADAPTER,
        optimizer: OptimizerConfig = _OPTIMIZER,
        **kwargs: Any,
    ) -> None:
        """Describe the training; weights are read when a run starts.

        Args:
            init_from: As of `ContinuedEvoModule`.
            context_length: Length of training sequences, at most the model's own; comes from the data.
            adapter: Which matrices have an adapter, and how large it is.
            optimizer: Optimizer and rates.
            kwargs: As of `EvoModule`.
        """
        super().__init__(init_from, method="lora", adapter=adapter, optimizer=optimizer, **kwargs)
        if context_length > self.config.context_length:
            raise UsageError(
                f"context_length {context_length} is beyond the {self.config.context_length} that {init_from} was trained for, and an adapter extends no context; train the whole model (ContinuedEvoModule), or give a shorter one"
            )


class TaskObjective(NextTokenObjective):
    """A model with a head behind one of its layers.

    Attributes:
        head: From the layer's output to logits.
    """

    def __init__(self, model: StripedHyena2, head: TaskHead, *, checkpoint_blocks: int = 0) -> None:
        super().__init__(model, checkpoint_blocks=checkpoint_blocks)
        self.head = head

    # One forward for all that a run asks for: FSDP gathers the weights for the length of it.
    def forward(self, batch: Batch, *, features: bool = False) -> Tensor:  # type: ignore[override]
        """Logits of a batch, or its features."""
        hidden = self.hidden(model_rows(batch, self.head.config))
        hidden = layer_output(self.model, self.head.config, hidden)
        if features:
            return self.head.features(hidden, batch)
        logits: Tensor = self.head(hidden, batch)
        return logits


class FinetuneModule(PartlyTrainedModule):
    """Trains a head on labelled sequences, with the model frozen, through an adapter, or with all of it.

    Logged in validation: `val/loss`, the loss of an example (of a base, of a value).

    Attributes:
        network: What the head reads, and how large it is.
        task: What is learned; known when a run starts.
    """

    task: Task

    def __init__(
        self,
        init_from: str,
        method: Method = "lora",
        network: NetworkConfig = _NETWORK,
        adapter: AdapterConfig = _ADAPTER,
        balanced: bool = False,
        head_learning_rate: float | None = None,
        optimizer: OptimizerConfig = _OPTIMIZER,
        schedule: ScheduleConfig = _SCHEDULE,
        compile_blocks: bool = False,
        **kwargs: Any,
    ) -> None:
        """Describe the training; weights are read when a run starts.

        Args:
            init_from: The model: `evo-mini`, a released name, a folder, a released `.pt`, or one of these
                with `+FILE.safetensors`.
            method: `head`, `lora` or `full`.
            network: What the head reads, and how large it is.
            adapter: Of `lora`: which matrices have an adapter, and how large it is.
            balanced: Whether all classes count the same in the loss, however many examples they have.
            head_learning_rate: Peak rate of the head; None takes the optimizer's.
            optimizer: Optimizer and rates.
            schedule: Learning rate over the run.
            compile_blocks: Compile every block: worth it where all sequences have one length.
            kwargs: As of `EvoModule`.
        """
        super().__init__(
            init_from, method=method, adapter=adapter, optimizer=optimizer, schedule=schedule,
            compile_blocks=compile_blocks, **kwargs,
        )  # fmt: skip
        self.network = network
        self.balanced = balanced
        self.head_learning_rate = head_learning_rate
        self._losses = torch.zeros(2, dtype=torch.float64)

    # ---- the network -----------------------------------------------------------------------------

    def num_blocks(self, model: StripedHyena2) -> int:
        return self.network.num_blocks(model)

    def build_model(self, device: torch.device) -> StripedHyena2:
        model = super().build_model(device)
        # What the features do not depend on would wait for gradients.
        if self.network.layer != "norm":
            model.norm.requires_grad_(False)
        if not self.config.tie_embeddings:
            model.unembedding.requires_grad_(False)
        return model

    def build_objective(self, model: StripedHyena2) -> NextTokenObjective:
        data: Any = self.trainer.datamodule
        data.examples.require_length(self.config.context_length, f"the context of {self.init_from}")
        train = data.examples.subset(data.parts["train"])
        self.task = task_of(train, self.network, balanced=self.balanced)
        head = TaskHead(self.task, self.network, self.config.width, seed=self.seed)
        return TaskObjective(model, head, checkpoint_blocks=self.checkpoint_blocks)

    @property
    def head(self) -> TaskHead:
        """The head under training."""
        assert isinstance(self.objective, TaskObjective), "the head is built when a run starts"
        return self.objective.head

    def configure_optimizers(self) -> torch.optim.Optimizer:
        config = self.optimizer_config
        rate = self.head_learning_rate or config.learning_rate
        head = {f"head.{k}": p for k, p in self.head.named_parameters()}
        self._groups = [
            *parameter_groups(self.model, config),
            ParameterGroup("head", head, rate, config.weight_decay),
        ]
        return build_optimizer(self._groups, config)

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.trainer.ckpt_path is None:
            self._measure_features()

    def on_train_end(self) -> None:
        # After all callbacks, so that the last checkpoint is that of the last update; and while the
        # strategy still holds the processes together.
        for callback in self.trainer.callbacks:
            finish = getattr(callback, "finish", None)
            if finish is not None:
                finish(self.trainer, self)

    @torch.no_grad()
    def _measure_features(self) -> None:
        """Standardise by examples that are the same on every rank."""
        data: Any = self.trainer.datamodule
        indices = data.parts["train"]
        drawn = torch.randperm(len(indices), generator=torch.Generator().manual_seed(self.seed))
        some = drawn[:_MEASURED].tolist()
        found = []
        # The factors' dropout is for training.
        was = self.training
        self.eval()
        for start in range(0, len(some), data.val_batch_size):
            batch = data.batch(indices, some[start : start + data.val_batch_size])
            batch = {key: value.to(self.device) for key, value in batch.items()}
            assert self.objective is not None
            features = self.objective(batch, features=True)
            if features.dim() == 3:
                features = _of_real_positions(features, batch, self.head)
            found.append(features)
        self.train(was)
        self.head.standardise_by(torch.cat(found))

    # ---- a step ----------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.objective is not None
        self.tokens += batch["input_ids"].numel() * self.trainer.world_size
        logits = self.objective(batch)
        loss, weight = task_loss(self.task, logits, batch["targets"], batch["weights"])
        sums = torch.stack([loss.detach(), weight])
        self.between_updates = False
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self._sums = sums if first or self._sums is None else self._sums + sums
        # As in `EvoModule.training_step`: the true divisor is known when all of the batch has been seen.
        return loss / self.config.context_length

    def figures(self) -> dict[str, float]:
        """Loss and gradient norm of the last update; waits for the device."""
        found = super().figures()
        del found["bits_per_base"]
        return found

    # ---- validation ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._losses = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self.objective is not None
        with torch.compiler.set_stance("force_eager"):
            logits = self.objective(batch)
        loss, weight = task_loss(self.task, logits, batch["targets"], batch["weights"])
        self._losses += torch.stack([loss, weight])

    def on_validation_epoch_end(self) -> None:
        if self.trainer.world_size > 1:
            dist.all_reduce(self._losses)
        loss, weight = self._losses.tolist()
        value = loss / max(weight, 1e-9)
        self.log_validation({"val/loss": value})
        if self.trainer.progress_bar_callback is None and self.trainer.is_global_zero:
            _log.info("step %d  validation loss %.4f", self.trainer.global_step, value)

    # ---- checkpoints -----------------------------------------------------------------------------

    def described(self) -> dict[str, Any]:
        found = super().described() | {"network": _plain(dataclasses.asdict(self.network))}
        if hasattr(self, "task"):
            found["task"] = _plain(dataclasses.asdict(self.task))
        return found


def _of_real_positions(features: Tensor, batch: Batch, head: TaskHead) -> Tensor:
    """Rows of `[n, positions, F]` that are no padding."""
    size = head.config.bin_size if head.task.kind == "track" else 1
    counts = (batch["lengths"] + size - 1) // size
    at = torch.arange(features.shape[1], device=features.device)
    return features[at < counts[:, None]]


def _short(value: Any, other: Any) -> str:
    """A value, or of two mappings the first difference."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        key = next(k for k in value.keys() | other.keys() if value.get(k) != other.get(k))
        return f"{key} {value.get(key)!r}"
    return repr(value)
