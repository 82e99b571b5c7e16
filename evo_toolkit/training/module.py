"""The LightningModules that recipes name: pre-training from scratch, and continuing from weights.

Nothing within a step waits for the device or copies from the host: losses, weights and norms stay
on the device as scalars, an update with a gradient that is not finite is skipped on the device, and
the host looks at the figures only when they are logged or saved.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from evo_kernels.backend import Backend
from evo_toolkit._version import __version__
from evo_toolkit.errors import CheckpointError, UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.mlp import GatedMLP
from evo_toolkit.model.precision import resolve_precision
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.checkpointing import nonfinite_path
from evo_toolkit.training.errors import NonFiniteLossError
from evo_toolkit.training.loss import NextTokenObjective
from evo_toolkit.training.optim import (
    OptimizerConfig,
    ParameterGroup,
    build_optimizer,
    parameter_groups,
    train_by_log_rate,
)
from evo_toolkit.training.schedules import ScheduleConfig

# Key of our own part of a checkpoint. Not `hyper_parameters`, which Lightning's command line would
# silently put in place of what the user gave.
STATE_KEY = "evo_toolkit"

# Defaults of arguments: frozen, so one of each serves all.
_OPTIMIZER = OptimizerConfig()
_SCHEDULE = ScheduleConfig()

Batch = Mapping[str, Tensor]


class EvoModule(LightningModule):
    """Trains a StripedHyena 2 from scratch by the weighted next-token loss.

    A batch is a mapping with, for B sequences of L bases:

    * `input_ids` `[B, L]` int64 and `targets` `[B, L]` int64, the token after each;
    * `weights` `[B, L]` float32 of the targets: 1, 0.1 where soft-masked, 0 where not scored;
    * `group` `[B]` int64 (optional): group of each genome, for validation;
    * `codon_position` `[B, L]` int64 (optional): 0, 1 or 2 of each target, -1 outside genes.

    Weights are float32; the blocks compute in the dtype of the precision policy. Filters, poles,
    residues and skips are float32 in every product.

    Attributes:
        config: The model's configuration.
        tokens: Targets seen in training so far, over all ranks.
        between_updates: Whether no micro-batch waits for its update.
    """

    def __init__(
        self,
        config: StripedHyena2Config,
        optimizer: OptimizerConfig = _OPTIMIZER,
        schedule: ScheduleConfig = _SCHEDULE,
        precision: Literal["default", "exact"] = "default",
        backend: Backend = "auto",
        compile_blocks: bool | None = None,
        checkpoint_blocks: int = 0,
        mlp_chunk: int = 0,
        total_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        """Describe the training; the model is built when a run starts.

        Args:
            config: Shape of the model; its context length comes from the data.
            optimizer: Optimizer, rates and decay.
            schedule: Learning rate over the run.
            precision: `default` (bfloat16 blocks on GPUs that have it, else float32) or `exact`.
            backend: Operators: `auto`, `triton` or `reference`.
            compile_blocks: Compile every block and the loss with torch.compile, for training steps; by
                default on GPUs alone.
            checkpoint_blocks: Keep activations between segments of so many blocks alone; 0 keeps all.
            mlp_chunk: Run each MLP on so many positions at a time, and compute their activations again in
                the backward pass: for very long sequences. 0 runs all at once.
            total_steps: Updates that the schedule counts with; by default those of the trainer.
            seed: Of the initial weights, which are the same on every device.
        """
        super().__init__()
        if checkpoint_blocks < 0:
            raise UsageError(f"checkpoint_blocks is {checkpoint_blocks}; it must be at least 0")
        if mlp_chunk < 0:
            raise UsageError(f"mlp_chunk is {mlp_chunk}; it must be at least 0")
        # Here as well as where the loss is made: nothing of the run has been written yet.
        config.require_causal("be trained to predict the next base")
        self.config = config
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.precision = precision
        self.backend = backend
        self.compile_blocks = compile_blocks
        self.checkpoint_blocks = checkpoint_blocks
        self.mlp_chunk = mlp_chunk
        self.total_steps = total_steps
        self.seed = seed
        self.tokens = 0
        self.between_updates = True
        self.objective: NextTokenObjective | None = None
        self._groups: list[ParameterGroup] = []
        self._sums: Tensor | None = None
        self._last: Tensor | None = None
        self._halted: Tensor | None = None
        self._saved_nonfinite = False
        self._validation = _GroupSums()
        self._codons = _GroupSums()

    # ---- the model ---------------------------------------------------------------------------

    def build_model(self, device: torch.device) -> StripedHyena2:
        """The model with its first weights, float32, on the CPU; the policy is that of `device`."""
        policy = resolve_precision(self.precision, device, self.backend)
        return StripedHyena2(self.config, policy=policy, generator_seed=self.seed)

    def build_objective(self, model: StripedHyena2) -> NextTokenObjective:
        """The model with the loss that it is trained by."""
        return NextTokenObjective(model, checkpoint_blocks=self.checkpoint_blocks)

    def configure_model(self) -> None:
        if self.objective is not None:
            return
        device = self._root_device()
        # Lightning's context would draw the weights on the device, with other numbers on each kind.
        with torch.device("cpu"):
            model = self.build_model(device)
        train_by_log_rate(model)
        for layer in model.modules():
            if isinstance(layer, GatedMLP):
                layer.chunk = self.mlp_chunk
        self.objective = self.build_objective(model)
        compiled = device.type == "cuda" if self.compile_blocks is None else self.compile_blocks
        if compiled:
            self.objective.compiled = True
            # Blocks share one code, compiled for each kind of layer and for recomputation.
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, 64)
            for block in model.blocks:
                block.compile(dynamic=False)
        shard = getattr(self._strategy(), "shard_model", None)
        if shard is not None:
            shard(self.objective)

    @property
    def model(self) -> StripedHyena2:
        """The model under training."""
        assert self.objective is not None, "the model is built when a run starts"
        return self.objective.model

    def _strategy(self) -> Any:
        return None if self._trainer is None else self.trainer.strategy

    def _root_device(self) -> torch.device:
        strategy = self._strategy()
        return torch.device("cpu") if strategy is None else strategy.root_device

    # ---- a step ------------------------------------------------------------------------------

    def own_part(self, batch: Batch) -> Batch:
        """What this rank computes of a batch: all of it, unless the strategy divides sequences."""
        part_of = getattr(self._strategy(), "part_of", None)
        return batch if part_of is None else part_of(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.objective is not None
        self.tokens += batch["targets"].numel() * num_replicas(self.trainer)
        batch = self.own_part(batch)
        loss, weight = self.objective(batch["input_ids"], batch["targets"], batch["weights"])
        sums = torch.stack([loss.detach(), weight])
        self.between_updates = False
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self._sums = sums if first or self._sums is None else self._sums + sums
        # A constant divisor keeps gradients in range; the true one is known when all of the global
        # batch has been seen, and `configure_gradient_clipping` divides by it.
        return loss / self.config.context_length

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Divide the gradients by the weight of the global batch, clip their norm, note both.

        All ranks and micro-batches count by their weights: the update does not depend on how the
        batch was cut.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise UsageError(
                f"gradient_clip_algorithm is {str(gradient_clip_algorithm)!r}; only norm is supported"
            )
        assert self._sums is not None
        sums = self._sums
        world = self.trainer.world_size
        if world > 1:
            dist.all_reduce(sums)
        loss, weight = sums.unbind()
        # What Lightning and the strategy divided by, and `training_step`.
        divided = self.config.context_length * self.trainer.accumulate_grad_batches * world
        scale = divided / weight.clamp(min=1e-9)
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = _total_norm(gradients).double() * scale
        factor = scale
        if gradient_clip_val:
            factor = scale * (gradient_clip_val / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([_local(g) for g in gradients], factor.float())
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        self._halted = bad if self._halted is None else self._halted | bad
        # Fused optimizers leave weights and state as they are while this is not zero.
        optimizer.found_inf = self._halted.float()  # type: ignore[attr-defined]
        self._last = torch.stack([loss, weight, norm])
        if self._host_may_look(loss):
            self.raise_if_not_finite()

    @staticmethod
    def _host_may_look(value: Tensor) -> bool:
        """Whether a value is at hand without waiting for a device."""
        return value.device.type == "cpu"

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Any = None,
    ) -> None:
        self.set_learning_rate(optimizer)
        optimizer.step(closure=optimizer_closure)
        self.between_updates = True

    def set_learning_rate(self, optimizer: Any) -> None:
        """Give every parameter group its rate for the coming update."""
        share = self.schedule.factor(self.trainer.global_step, self.schedule_steps())
        for group, own in zip(optimizer.param_groups, self._groups, strict=True):
            group["lr"] = own.learning_rate * share

    def schedule_steps(self) -> int:
        """Updates of the whole run, as the schedule counts them."""
        if self.total_steps is not None:
            return self.total_steps
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total) or total < 1:
            if self.schedule.shape == "constant":
                return 1
            raise UsageError(
                f"the schedule {self.schedule.shape!r} needs the length of the run; give --trainer.max_steps"
            )
        return int(total)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self._groups = parameter_groups(self.model, self.optimizer_config)
        return build_optimizer(self._groups, self.optimizer_config)

    def on_train_start(self) -> None:
        # A checkpoint gives the optimizer its state; rates and decay are this run's own.
        optimizer = self.trainer.optimizers[0]
        config = self.optimizer_config
        for group, own in zip(optimizer.param_groups, self._groups, strict=True):
            group["weight_decay"] = own.weight_decay
            group["betas"], group["eps"] = (config.beta1, config.beta2), config.eps
            if "momentum" in group:
                group["momentum"] = config.momentum
        self.schedule_steps()
        loop = self.trainer.fit_loop.epoch_loop
        if self.device.type == "cuda" and hasattr(loop, "_broadcast_sigterm_tensor"):
            # Lightning asks all ranks before each batch whether one was told to end, and waits for
            # the answer. Schedulers tell every rank.
            loop._broadcast_sigterm_tensor = lambda: None

    # ---- what the host may know ------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        """Loss and gradient norm of the last update over the global batch; waits for the device.

        Returns:
            `loss` in nats per unit of weight, `bits_per_base` the same in bits, `grad_norm` before
            clipping, and `scored`, the sum of weights.
        """
        assert self._last is not None
        loss, weight, norm = self._last.tolist()
        mean = loss / max(weight, 1e-9)
        return {
            "loss": mean,
            "bits_per_base": mean / math.log(2),
            "grad_norm": norm,
            "scored": weight,
        }

    def raise_if_not_finite(self) -> None:
        """Stop the run if any update so far had a loss or gradient that is not finite.

        The weights are those before that update: it and those after it were skipped. They are saved
        beside the run's checkpoints. Waits for the device.

        Raises:
            NonFiniteLossError: saying when, and what was saved.
        """
        if self._halted is None or not bool(self._halted):
            return
        # Every rank comes here, since the sums are global. Only once: saving asks again.
        if self._saved_nonfinite:
            return
        self._saved_nonfinite = True
        path = nonfinite_path(self.trainer)
        self.trainer.save_checkpoint(path, weights_only=False)
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite (at or before update {self.trainer.global_step + 1}); the state before it is in {path}: resume from the checkpoint before it with a lower --model.optimizer.learning_rate (now {self.optimizer_config.learning_rate:g}) or more warm-up"
        )

    # ---- validation ----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._validation.reset()
        self._codons.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self.objective is not None
        batch = self.own_part(batch)
        # Without gradients blocks would be compiled once more, for little work.
        with torch.compiler.set_stance("force_eager"):
            nll = self.objective(batch["input_ids"], batch["targets"], None)
        scored = (batch["weights"] > 0).to(nll.dtype)
        nll = nll * scored
        group = batch.get("group")
        if group is None:
            group = torch.zeros(len(nll), dtype=torch.int64, device=nll.device)
        self._validation.add(group, nll.sum(1), scored.sum(1))
        codon = batch.get("codon_position")
        if codon is not None:
            self._codons.add(codon.flatten() + 1, nll.flatten(), scored.flatten())

    def on_validation_epoch_end(self) -> None:
        """Log bits per base: of all, of every group, and by position in the codon.

        Every base with a weight counts the same, soft-masked or not.
        """
        world = self.trainer.world_size
        values = self._validation.bits(world)
        total = values.pop(None, None)
        if total is None:
            return
        names = group_names(self.trainer)
        logged = {"val/bits_per_base": total}
        for index, value in values.items():
            assert index is not None
            name = names[index] if index < len(names) else f"group_{index}"
            logged[f"val/bits_per_base/{name}"] = value
        for index, value in self._codons.bits(world).items():
            if index is not None and index > 0:
                logged[f"val/bits_per_base/codon_position_{index}"] = value
        self.log_validation(logged)

    def log_validation(self, logged: dict[str, float]) -> None:
        """Hand figures of a validation to callbacks and loggers."""
        # Within a run to the loggers with the number of updates: Lightning's own is one behind.
        fitting = self.trainer.state.fn == "fit"
        self.log_dict(logged, logger=not fitting)
        for logger in self.trainer.loggers if fitting else ():
            logger.log_metrics(logged, step=self.trainer.global_step)

    # ---- checkpoints ---------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[STATE_KEY] = {
            "version": __version__,
            "config": _plain(self.config.to_dict()),
            "tokens": self.tokens,
            "seed": self.seed,
            "policy": self.model.policy.describe(),
            "started_from": self.started_from(),
            "data": _described_data(self.trainer),
            "hardware": _described_hardware(self.device, self.trainer.world_size),
            "optimizer": dataclasses.asdict(self.optimizer_config),
            "schedule": dataclasses.asdict(self.schedule),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = checkpoint.get(STATE_KEY)
        if own is None:
            raise CheckpointError("the file is no checkpoint of evo-toolkit train")
        saved, mine = own["config"], _plain(self.config.to_dict())
        # What a model is called or meant for may change, and the length it sees; its function may not.
        words = {
            "context_length",
            "name",
            "domains",
            "not_for",
            "forbidden_genomes",
            "evidence",
            "default_window",
        }
        wrong = [k for k in mine if k not in words and saved.get(k) != mine[k]]
        if wrong:
            key = wrong[0]
            raise CheckpointError(
                f"the checkpoint's model has {key} {saved.get(key)!r}, this run's {mine[key]!r}; give the same configuration, or start a new run from exported weights (ContinuedEvoModule)"
            )
        self.tokens = int(own["tokens"])

    def started_from(self) -> str:
        """Where the first weights came from, for provenance."""
        return f"random weights (seed {self.seed})"


class ContinuedEvoModule(EvoModule):
    """Continues from weights: on other genomes, or to a longer context.

    Attributes:
        init_from: What the weights came from.
    """

    def __init__(
        self,
        init_from: str,
        context_length: int,
        rotary_interpolation: float | None = None,
        name: str | None = None,
        domains: list[str] | None = None,
        not_for: list[str] | None = None,
        forbidden_genomes: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Describe the training; weights are read when a run starts.

        Args:
            init_from: `evo-mini`, a released model's name, a folder made by `train export`, or a
                released `.pt`.
            context_length: Length of training sequences; comes from the data.
            rotary_interpolation: Factor of the rotary positions. By default the model's own, times
                the growth of its context where that grows, as the released models were extended.
            name: What the new model is called; by default the old name with `-continued`.
            domains, not_for, forbidden_genomes: What the new model is for, in words, and the kinds of
                genome that commands refuse; by default as of the old one.
            kwargs: As of `EvoModule`.
        """
        # Training from scratch needs no package that reads weights.
        from evo_toolkit.checkpoint.opening import open_source

        opened = open_source(init_from)
        old = opened.source.config
        if rotary_interpolation is None:
            growth = max(context_length / old.context_length, 1.0)
            rotary_interpolation = old.rotary_interpolation * growth
        config = old.replace(
            name=name or f"{old.name}-continued",
            context_length=max(context_length, old.context_length),
            rotary_interpolation=rotary_interpolation,
            domains=old.domains if domains is None else tuple(domains),
            not_for=old.not_for if not_for is None else tuple(not_for),
            forbidden_genomes=(
                old.forbidden_genomes if forbidden_genomes is None else tuple(forbidden_genomes)
            ),
            evidence=(),
        )
        super().__init__(config=config, **kwargs)
        self.init_from = init_from
        self._source = opened.source
        self._digest: str | None = None

    def build_model(self, device: torch.device) -> StripedHyena2:
        policy = resolve_precision(self.precision, device, self.backend)
        with torch.device("meta"):
            model = StripedHyena2(self.config, policy=policy)
        tensors = dict(self._source.iter_tensors(dtype=lambda name: torch.float32))
        model.load_state_dict(tensors, strict=True, assign=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model

    def started_from(self) -> str:
        return f"{self.init_from} ({self._source.origin().recorded or 'no checksum on record'})"


class _GroupSums:
    """Loss and count by an integer key, float64, on the device."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def reset(self) -> None:
        self.sums = None

    def add(self, key: Tensor, loss: Tensor, count: Tensor) -> None:
        size = int(key.max()) + 1
        if self.sums is None:
            self.sums = torch.zeros(2, size, dtype=torch.float64, device=loss.device)
        if size > self.sums.shape[1]:
            self.sums = nn.functional.pad(self.sums, (0, size - self.sums.shape[1]))
        self.sums.index_add_(1, key, torch.stack([loss, count]).double())

    def bits(self, world: int) -> dict[int | None, float]:
        """Bits per base by key over all ranks; under None of all together."""
        sums = self.sums
        if world > 1:
            sums = _summed_over_ranks(sums)
        if sums is None:
            return {}
        loss, count = (x.tolist() for x in sums)
        result: dict[int | None, float] = {
            k: a / n / math.log(2) for k, (a, n) in enumerate(zip(loss, count, strict=True)) if n
        }
        if sum(count):
            result[None] = sum(loss) / sum(count) / math.log(2)
        return result


def _summed_over_ranks(sums: Tensor | None) -> Tensor | None:
    """Sum tables `[2, keys]` of all ranks, whose widths may differ."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, None if sums is None else sums.cpu())
    tables = [t for t in gathered if t is not None]
    if not tables:
        return None
    width = max(t.shape[1] for t in tables)
    padded = [nn.functional.pad(t, (0, width - t.shape[1])) for t in tables]
    return torch.stack(padded).sum(0)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Norm over all gradients and, where they are sharded, over all ranks; a scalar."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _plain(value: Any) -> Any:
    """Tuples as lists: the same after a checkpoint as before."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _described_data(trainer: Any) -> dict[str, Any]:
    """What a run reads, as far as its data module tells."""
    data = trainer.datamodule
    windows = getattr(data, "windows", None)
    corpus = getattr(windows, "corpus", None)
    described: dict[str, Any] = {"module": type(data).__qualname__}
    for name in ("context_length", "batch_size", "seed"):
        described[name] = getattr(data, name, None)
    if corpus is not None:
        described["corpus"] = corpus.digest
        described["windows"] = getattr(windows, "digest", None)
        described["bases"] = corpus.num_bases
        described["genomes"] = [genome.name for genome in corpus.genomes]
    return described


def num_replicas(trainer: Any) -> int:
    """How many ranks read different samples."""
    dealt = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
    return 1 if dealt is None else int(dealt["num_replicas"])


def _described_hardware(device: torch.device, world: int) -> str:
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    )
    return f"{world} x {name}"


def group_names(trainer: Any) -> Sequence[str]:
    """Names of the genome groups, where the data module tells them (`group_names`)."""
    return getattr(trainer.datamodule, "group_names", None) or ()
