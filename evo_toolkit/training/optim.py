"""Parameter groups and optimizers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from evo_toolkit.errors import UsageError
from evo_toolkit.model.hyena import HyenaLI


# Without slots: jsonargparse reads defaults with vars().
@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and its rates.

    Attributes:
        name: `adamw`, or `muon` for the projection matrices with AdamW for the rest (experimental:
            no result for Hyena layers is published).
        learning_rate: Peak rate of embedding, projections and norms.
        filter_learning_rate: Peak rate of filters, poles, residues and skips; None takes
            `learning_rate`.
        butterfly_learning_rate: Peak rate of the learned butterflies of long convolutions.
        muon_learning_rate: Peak rate of the matrices under `muon`; its updates are scaled so that
            rates of AdamW fit.
        weight_decay: Of projection matrices alone: filters, poles, residues, skips, featurizers,
            norms, biases and the embedding have none.
        beta1, beta2, eps: Of AdamW.
        momentum: Of Muon.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-3
    filter_learning_rate: float | None = None
    butterfly_learning_rate: float = 1e-3
    muon_learning_rate: float | None = None
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95

    def __post_init__(self) -> None:
        for name in (
            "learning_rate", "filter_learning_rate", "butterfly_learning_rate",
            "muon_learning_rate",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"optimizer.{name} is {value}; it must be above 0")
        if self.weight_decay < 0:
            raise UsageError(
                f"optimizer.weight_decay is {self.weight_decay}; it must be at least 0"
            )


class NegativeExponential(nn.Module):
    """Trains `log(-log_pole)` in place of `log_pole`.

    Rates span two orders of magnitude, from 0.004 per base up: a step of Adam is about one learning
    rate, which would throw a slow pole across zero, where the filter grows without bound. In the
    logarithm a step is a few per mille of any rate and the pole stays negative. The released models
    were trained in the same logarithm.
    """

    def forward(self, log_rate: Tensor) -> Tensor:
        return -log_rate.exp()

    def right_inverse(self, log_poles: Tensor) -> Tensor:
        return (-log_poles).log()


def train_by_log_rate(model: nn.Module) -> None:
    """Let the poles of every Hyena-LI be trained through `NegativeExponential`, in place.

    Frozen poles stay as they are, to the last bit.
    """
    for module in model.modules():
        if not isinstance(module, HyenaLI) or parametrize.is_parametrized(module, "log_poles"):
            continue
        if module.log_poles.requires_grad:
            parametrize.register_parametrization(module, "log_poles", NegativeExponential())


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a rate and a decay.

    Attributes:
        name: `matrices`, `filters`, `butterflies` or `others`.
        parameters: By name.
        learning_rate: Peak.
        weight_decay: Per unit of learning rate.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    learning_rate: float
    weight_decay: float


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[ParameterGroup]:
    """Divide the trainable parameters of a StripedHyena 2, empty groups left out.

    `matrices` are the weights of projections and MLPs; `filters` whatever a mixer owns
    (featurizers, explicit filters, poles, residues, skips) but for the learned `butterflies` of long
    convolutions; `others` embedding, norms and biases.
    Unlike the released training, which decayed poles, residues and the taps of Hyena-SE by an
    omission, only `matrices` decay.
    """
    matrices: dict[str, nn.Parameter] = {}
    filters: dict[str, nn.Parameter] = {}
    butterflies: dict[str, nn.Parameter] = {}
    others: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if re.search(r"\.mixer\.(input|filter)_factors\.", name):
            butterflies[name] = parameter
        elif ".mixer." in name:
            filters[name] = parameter
        elif ".blocks." in f".{name}" and parameter.dim() == 2:
            matrices[name] = parameter
        else:
            others[name] = parameter
    rate = config.learning_rate
    matrix_rate = rate
    if config.name == "muon" and config.muon_learning_rate is not None:
        matrix_rate = config.muon_learning_rate
    filter_rate = rate if config.filter_learning_rate is None else config.filter_learning_rate
    groups = [
        ParameterGroup("matrices", matrices, matrix_rate, config.weight_decay),
        ParameterGroup("filters", filters, filter_rate, 0.0),
        ParameterGroup("butterflies", butterflies, config.butterfly_learning_rate, 0.0),
        ParameterGroup("others", others, rate, 0.0),
    ]
    return [group for group in groups if group.parameters]


def build_optimizer(
    groups: Iterable[ParameterGroup], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """AdamW in one fused kernel, or Muon beside it; one of torch's groups for each group given."""
    described = [
        {
            "params": list(group.parameters.values()),
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
            "orthogonal": config.name == "muon" and group.name == "matrices",
        }
        for group in groups
    ]
    betas = (config.beta1, config.beta2)
    if config.name == "adamw":
        return torch.optim.AdamW(described, betas=betas, eps=config.eps, fused=True)
    return MuonWithAdamW(described, betas=betas, eps=config.eps, momentum=config.momentum)


class MuonWithAdamW(torch.optim.AdamW):
    """Muon for the groups marked `orthogonal`, fused AdamW for the others, as one optimizer.

    Muon moves a matrix by its momentum with all singular values made about equal, scaled to the
    size that updates of AdamW have, so that rates and decay carry over. Source: Jordan et al.,
    "Muon", 2024; the scale 0.2 sqrt(max(rows, columns)) is that of Liu et al., arXiv 2502.16982.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Any,
        *,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
    ) -> None:
        super().__init__(params, betas=betas, eps=eps, fused=True)
        for group in self.param_groups:
            group["momentum"] = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; nothing moves while the tensor `found_inf` is not zero."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        for group in every:
            if group["orthogonal"]:
                for alike in _by_shape(group["params"]):
                    self._orthogonal_step(alike, group)
        self.param_groups = [group for group in every if not group["orthogonal"]]
        try:
            super().step()
        finally:
            self.param_groups = every
        return loss

    def _orthogonal_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move matrices of one shape, whose products are made as a batch."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                # AdamW, whose class this is, expects a count in every state.
                state["step"] = torch.zeros((), device=parameter.device)
                state["momentum_buffer"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        buffers = [state["momentum_buffer"] for state in states]
        gradients = _stacked([p.grad for p in parameters if p.grad is not None])  # all have one
        old, old_momentum = _stacked(parameters), _stacked(buffers)
        momentum, rate = group["momentum"], group["lr"]
        new_momentum = old_momentum.lerp(gradients, 1 - momentum)
        updates = orthogonalised(gradients.lerp(new_momentum, momentum))
        scale = 0.2 * max(parameters[0].shape) ** 0.5 * rate
        new = old * (1 - rate * group["weight_decay"]) - scale * updates
        taken: Tensor | float = 1.0
        if self.found_inf is not None:
            taken = 1.0 - self.found_inf
            skip = self.found_inf.bool()
            new = torch.where(skip, old, new)
            new_momentum = torch.where(skip, old_momentum, new_momentum)
        for index, (parameter, state) in enumerate(zip(parameters, states, strict=True)):
            state["step"] += taken
            state["momentum_buffer"].copy_(new_momentum[index])
            parameter.copy_(new[index])


def _stacked(tensors: list[Tensor]) -> Tensor:
    # A sharded tensor comes alone, and is not for stacking.
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]


def _by_shape(parameters: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Parameters with a gradient in lists of one shape; sharded ones by themselves."""
    found: dict[Any, list[Tensor]] = {}
    for index, parameter in enumerate(parameters):
        if parameter.grad is not None:
            alone = index if isinstance(parameter, DTensor) else None
            found.setdefault((alone, parameter.shape), []).append(parameter)
    return found.values()


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """`[..., rows, columns]` with about the same singular vectors and singular values of 0.7 to 1.2.

    Newton-Schulz iterations with a quintic, in bfloat16 on a GPU.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
