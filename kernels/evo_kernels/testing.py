"""Is a kernel right on this device? Inputs, the exact answer, and bounds computed from it.

The exact answer is the plain PyTorch twin in float64 on the very inputs that the kernel saw. A bound
is never a constant of taste where it can be computed: an output may be off by 1.5 times what
rounding the exact answer to the output's dtype costs (the kernels round once more, where a value
enters a tensor-core product), a gradient of an input by 2 times. The GPU tests and the benchmarks
share this module; a benchmark refuses to time what fails here.
"""

from __future__ import annotations

import importlib
import pkgutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import evo_kernels
from evo_kernels import (
    LIState,
    MRState,
    SEState,
    hyena_li,
    hyena_mr,
    hyena_se,
    short_conv,
)
from evo_kernels.backend import Backend, interpreting
from evo_kernels.launch import KernelConfig, override, registered

OUTPUT_BOUND = 1.5
"""Error of an output over the rounding of the exact output; relative L2, and largest error."""
INPUT_GRADIENT_BOUND = 2.0
"""The same for gradients in the dtype of the inputs."""
FLOAT32_BOUND = 4e-3
"""Relative L2 of float32 gradients and of states that hold rounded products."""
EXACT_STATE_BOUND = 1e-5
"""Relative L2 of states that hold float32 sums of a few products."""
INTERPRETER_SLACK = 6.0
"""What Triton's interpreter needs on top: it cuts bfloat16 off instead of rounding, always one way."""


@dataclass(frozen=True, slots=True)
class Operator:
    """How an operator is called: `function(x, *parameters, state)`."""

    name: str
    function: Callable[..., Any]
    parameters: tuple[str, ...]
    blocks: int = 3
    taps: int = 3
    state_bound: float = FLOAT32_BOUND


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("short_conv", short_conv, ("taps",), blocks=1),
        Operator("hyena_se", hyena_se, ("featurizer", "h"), taps=7, state_bound=EXACT_STATE_BOUND),
        Operator("hyena_mr", hyena_mr, ("featurizer", "h", "skip"), taps=128),
        Operator("hyena_li", hyena_li, ("featurizer", "log_poles", "residues", "skip")),
    )
}


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes of one comparison. `prefix` positions leave the state that comes in; 0 is none."""

    operator: str
    length: int
    batch: int = 1
    width: int = 64
    group_size: int = 16
    prefix: int = 0
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        state = f"-after{self.prefix}" if self.prefix else ""
        return (
            f"{self.operator}-L{self.length}-B{self.batch}-D{self.width}-g{self.group_size}{state}"
        )


Tensors = dict[str, Tensor]


def make_inputs(case: Case, device: torch.device | str) -> Tensors:
    """Random inputs whose outputs have a scale near one: `x`, the parameters, and `prefix`."""
    operator = OPERATORS[case.operator]
    generator = torch.Generator(device).manual_seed(zlib.crc32(str(case).encode()))
    B, D, poles = case.batch, case.width, 16

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def positions(length: int) -> Tensor:
        if case.operator == "hyena_li":  # channel-first memory
            return randn(B, operator.blocks * D, length).to(case.dtype).transpose(1, 2)
        return randn(B, length, operator.blocks * D).to(case.dtype)

    made = {"x": positions(case.length)}
    # Time constants from one position to about ten thousand, and signs that do not cancel to zero.
    rates = 10 ** (-4 * torch.rand(D, poles, generator=generator, device=device))
    every = {
        "taps": randn(D, operator.taps) * operator.taps**-0.5,
        "featurizer": randn(operator.blocks * D, 3) * 3**-0.5,
        "h": randn(D // case.group_size, operator.taps) * operator.taps**-0.5,
        "log_poles": -rates,
        "residues": randn(D, poles) * (rates / poles).sqrt(),
        "skip": randn(D),
    }
    made |= {name: every[name] for name in operator.parameters}
    if case.prefix:
        made["prefix"] = positions(case.prefix)
    return made


def state_in(case: Case, inputs: Mapping[str, Tensor], backend: Backend) -> Tensors:
    """The state that `prefix` leaves, as tensors named `state.0`, `state.1`."""
    if "prefix" not in inputs:
        return {}
    operator = OPERATORS[case.operator]
    with torch.no_grad():
        _, state = operator.function(
            inputs["prefix"],
            *(inputs[name] for name in operator.parameters),
            return_state=True,
            backend=backend,
        )
    return _named(state)


def _named(state: Any) -> Tensors:
    tensors = (state,) if isinstance(state, Tensor) else tuple(state)
    return {f"state.{index}": tensor.detach() for index, tensor in enumerate(tensors)}


_STATES: dict[str, Callable[..., Any]] = {
    "short_conv": lambda tail: tail,
    "hyena_se": SEState,
    "hyena_mr": MRState,
    "hyena_li": LIState,
}


def call(case: Case, tensors: Mapping[str, Tensor], backend: Backend) -> tuple[Tensor, Any]:
    """Call the operator; returns its output and its end state."""
    operator = OPERATORS[case.operator]
    incoming = [tensors[f"state.{i}"] for i in range(2) if f"state.{i}" in tensors]
    state = _STATES[case.operator](*incoming) if incoming else None
    output, end = operator.function(
        tensors["x"],
        *(tensors[name] for name in operator.parameters),
        state,
        return_state=True,
        backend=backend,
    )
    return output, end


def cotangents(case: Case, outputs: Mapping[str, Tensor]) -> Tensors:
    """Random gradients of the outputs, in their dtypes."""
    device = outputs["y"].device
    generator = torch.Generator(device).manual_seed(case.length + 1)
    return {
        name: torch.randn(value.shape, generator=generator, device=device).to(value.dtype)
        for name, value in outputs.items()
    }


def run(
    case: Case,
    tensors: Mapping[str, Tensor],
    backend: Backend,
    weights: Tensors | None = None,
    *,
    gradients: bool = True,
) -> tuple[Tensors, Tensors]:
    """Outputs and gradients of one call: `y`, `end.0`, `end.1`, and `grad.NAME` of every input.

    Args:
        case: What is called.
        tensors: `x`, parameters, and `state.N` if a state comes in.
        backend: Which implementation.
        weights: Gradients of `y`, `end.0` and `end.1`; None makes random ones.
        gradients: Whether to compute any.

    Returns:
        The tensors, and the weights.
    """
    names = ["x", *OPERATORS[case.operator].parameters]
    names += [name for name in tensors if name.startswith("state.")]
    leaves = {name: tensors[name].detach().requires_grad_(gradients) for name in names}
    with torch.set_grad_enabled(gradients):
        y, end = call(case, leaves, backend)
    ends = (end,) if isinstance(end, Tensor) else tuple(end)
    outputs = {"y": y, **{f"end.{i}": tensor for i, tensor in enumerate(ends)}}
    found = {name: value.detach() for name, value in outputs.items()}
    if not gradients:
        return found, {}
    weights = cotangents(case, outputs) if weights is None else weights
    grads = torch.autograd.grad(
        list(outputs.values()),
        list(leaves.values()),
        [weights[name].to(value.dtype) for name, value in outputs.items()],
        allow_unused=True,
    )
    for (name, leaf), gradient in zip(leaves.items(), grads, strict=True):
        found[f"grad.{name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return found, weights


def exact(case: Case, tensors: Mapping[str, Tensor], weights: Tensors) -> Tensors:
    """The float64 twin on the same numbers; without weights no gradients."""
    as_double = {name: value.double() for name, value in tensors.items()}
    return run(case, as_double, "reference", weights, gradients=bool(weights))[0]


@dataclass(frozen=True, slots=True)
class Error:
    """How far one tensor is from the exact one.

    Attributes:
        l2: Norm of the error over that of the rounding, or over that of the exact tensor.
        largest: Largest error over the largest rounding, or over the largest exact value.
        l2_bound: What `l2` may be.
        largest_bound: What `largest` may be; infinite for float32 tensors.
        unit: What the errors are relative to: "rounding" or "value".
    """

    l2: float
    largest: float
    l2_bound: float
    largest_bound: float
    unit: str

    @property
    def ok(self) -> bool:
        """Whether the tensor is within its bounds. NaN is not."""
        return self.l2 <= self.l2_bound and self.largest <= self.largest_bound


def _over(error: float, scale: float) -> float:
    """error / scale, where 0 / 0 is 0 and anything else over 0 is infinite."""
    if error != error:
        return float("nan")
    return error / scale if scale else (0.0 if error == 0 else float("inf"))


def error(found: Tensor, wanted: Tensor, bounds: tuple[float, float], *, rounding: bool) -> Error:
    """Compare one tensor with the exact one, relative to its rounding or to its value."""
    if found.shape != wanted.shape:
        raise AssertionError(f"shape {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    difference = found.double() - wanted
    scale = wanted.to(found.dtype).double() - wanted if rounding else wanted
    return Error(
        _over(float(difference.norm()), float(scale.norm())),
        _over(float(difference.abs().max()), float(scale.abs().max())),
        *bounds,
        "rounding" if rounding else "value",
    )


def errors(
    case: Case, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Error]:
    """Compare every output and gradient with the exact one."""
    slack = INTERPRETER_SLACK if interpreting() else 1.0
    result = {}
    for name, value in found.items():
        rounded = value.dtype == case.dtype
        if rounded and name.startswith("grad."):
            # A handful of elements, each summed from several rounded terms, decides the largest.
            l2, largest = INPUT_GRADIENT_BOUND, 2 * INPUT_GRADIENT_BOUND
        elif rounded:
            l2, largest = OUTPUT_BOUND, OUTPUT_BOUND
        elif name.startswith("grad."):
            l2, largest = FLOAT32_BOUND, float("inf")
        else:
            l2, largest = OPERATORS[case.operator].state_bound, float("inf")
        bounds = l2 * slack, largest * slack
        result[name] = error(value, wanted[name], bounds, rounding=rounded)
    return result


def violations(measured: Mapping[str, Error]) -> list[str]:
    """One line for every tensor outside its bounds."""
    return [
        f"{name}: {e.l2:.3g} (l2, bound {e.l2_bound:g}), {e.largest:.3g} (largest, bound"
        f" {e.largest_bound:g}), relative to the {e.unit}"
        for name, e in measured.items()
        if not e.ok
    ]


def check(
    case: Case, device: torch.device | str, backend: Backend = "triton", *, gradients: bool = True
) -> dict[str, Error]:
    """Compare one case with the exact answer.

    Raises:
        AssertionError: if a tensor is outside its bound, or the inputs give no signal to compare.
    """
    inputs = make_inputs(case, device)
    tensors = inputs | state_in(case, inputs, backend)
    found, weights = run(case, tensors, backend, gradients=gradients)
    wanted = exact(case, tensors, weights)
    assert_signal(case, wanted)
    measured = errors(case, found, wanted)
    wrong = violations(measured)
    if wrong:
        raise AssertionError(f"{case}: " + "; ".join(wrong))
    return measured


def assert_signal(case: Case, wanted: Mapping[str, Tensor]) -> None:
    """Outputs and gradients of a scale at which a relative bound means something."""
    for name in ("y", "grad.x"):
        if name in wanted:
            scale = float(wanted[name].square().mean().sqrt())
            assert 0.02 < scale < 50, f"{case}: {name} has scale {scale:.3g}; change the inputs"


def load_configurations() -> dict[str, dict[str, KernelConfig]]:
    """The whole launch table, after importing every operator's configurations."""
    for module in pkgutil.walk_packages(evo_kernels.__path__, "evo_kernels."):
        if module.name.endswith("configs"):
            importlib.import_module(module.name)
    return registered()


def device_classes(operator: str) -> list[str]:
    """Device classes whose configurations for an operator differ from those of the ones before."""
    table = {k: v for k, v in load_configurations().items() if k.startswith(operator)}
    seen: list[dict[str, KernelConfig]] = []
    classes = []
    for name in sorted({c for configs in table.values() for c in configs}, reverse=True):
        chosen = {
            kernel: configs.get(name, configs["default"]) for kernel, configs in table.items()
        }
        if chosen not in seen:
            seen.append(chosen)
            classes.append(name)
    return classes


@contextmanager
def forced(device_class: str) -> Iterator[None]:
    """Launch every kernel as on another device class."""
    with ExitStack() as stack:
        for kernel, configs in load_configurations().items():
            chosen = configs.get(device_class, configs["default"])
            stack.enter_context(override(kernel, chosen))
        yield
