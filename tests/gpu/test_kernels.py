"""Every operator with every launch configuration against its float64 twin."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evo_kernels import hyena_li_adjoint_state, testing
from evo_kernels.testing import OPERATORS, Case

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPE = torch.bfloat16
LENGTHS = [
    int(text)
    for text in os.environ.get("EVO_TEST_LENGTHS", "1,7,127,128,129,1000,8192,131072").split(",")
]
SHORT = [length for length in LENGTHS if length <= 1000]
MEDIUM = max(SHORT)
WIDTH = 16 if INTERPRETED else 256
NAMES = sorted(OPERATORS)
GROUPED = ("hyena_mr", "hyena_se")


def _cases(operator: str) -> Iterator[Case]:
    for index, length in enumerate(LENGTHS):
        batch = 1 if length > 8192 else 1 + index % 3
        for prefix in (0, 150):
            yield Case(operator, length, batch, WIDTH, 16, prefix, DTYPE)
    if operator in GROUPED:
        # Group sizes: one channel, odd (the released 1B), all channels.
        for (width, group), length in itertools.product(
            ((WIDTH, 1), (240, 15), (WIDTH, WIDTH)), (7, MEDIUM)
        ):
            yield Case(operator, length, 2, width, group, 150 if length == 7 else 0, DTYPE)
    yield Case(operator, min(129, MEDIUM), 1, 16, 16, 0, DTYPE)
    if not INTERPRETED:
        yield Case(operator, 1000, 1, 4096, 16, 150, DTYPE)


def _configured() -> Iterator[Any]:
    for name in NAMES:
        for device_class in testing.device_classes(name):
            for case in _cases(name):
                yield pytest.param(case, device_class, id=f"{device_class}-{case}")


@pytest.mark.parametrize("name", NAMES)
def test_has_kernels(name: str) -> None:
    assert testing.device_classes(name), "no launch configuration is registered"


@pytest.mark.parametrize(("case", "device_class"), list(_configured()))
def test_equals_the_float64_twin(
    case: Case, device_class: str, device: torch.device, report: Callable[..., None]
) -> None:
    with testing.forced(device_class):
        report(case, device_class, testing.check(case, device))


@pytest.mark.parametrize("name", NAMES)
def test_float16(name: str, device: torch.device) -> None:
    """Products take bfloat16 operands, so float16 inputs give bfloat16 accuracy."""
    case = Case(name, MEDIUM, 2, WIDTH, dtype=torch.float16)
    inputs = testing.make_inputs(case, device)
    found, weights = testing.run(case, inputs, "triton")
    for key, wanted in testing.exact(case, inputs, weights).items():
        error = (found[key].double() - wanted).norm() / wanted.norm().clamp(min=1e-30)
        assert float(error) < testing.FLOAT32_BOUND, key


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", NAMES)
def test_another_gpu_than_the_current_one(name: str) -> None:
    with torch.cuda.device(0):
        testing.check(_case(name), "cuda:1")


def _tensors(case: Case, device: torch.device) -> dict[str, Tensor]:
    inputs = testing.make_inputs(case, device)
    return inputs | testing.state_in(case, inputs, "triton")


def _case(name: str, length: int = 0, batch: int = 2) -> Case:
    return Case(name, length or MEDIUM, batch, WIDTH, 16, 150, DTYPE)


# --- The comparison notices mistakes ---------------------------------------------------------


def _roll_taps(tensors: dict[str, Tensor]) -> None:
    name = "h" if "h" in tensors else "taps" if "taps" in tensors else "featurizer"
    tensors[name] = tensors[name].roll(1, dims=1)


def _next_channel(tensors: dict[str, Tensor]) -> None:
    name = "taps" if "taps" in tensors else "featurizer"
    tensors[name] = tensors[name].roll(1, dims=0)


def _swap_k_and_v(tensors: dict[str, Tensor]) -> None:
    q, k, v = tensors["x"].chunk(3, dim=-1)
    tensors["x"] = torch.cat([q, v, k], dim=-1)


def _swap_q_and_k(tensors: dict[str, Tensor]) -> None:
    q, k, v = tensors["x"].chunk(3, dim=-1)
    tensors["x"] = torch.cat([k, q, v], dim=-1)


def _drop_skip(tensors: dict[str, Tensor]) -> None:
    tensors["skip"] = torch.zeros_like(tensors["skip"])


def _drop_state(tensors: dict[str, Tensor]) -> None:
    tensors["state.0"] = torch.zeros_like(tensors["state.0"])


def _drop_second_state(tensors: dict[str, Tensor]) -> None:
    tensors["state.1"] = torch.zeros_like(tensors["state.1"])


def _next_group(tensors: dict[str, Tensor]) -> None:
    tensors["h"] = tensors["h"].roll(1, dims=0)


def _shift_poles(tensors: dict[str, Tensor]) -> None:
    tensors["log_poles"] = tensors["log_poles"] * 1.01


MUTATIONS = {
    "short_conv": [_roll_taps, _next_channel, _drop_state],
    "hyena_se": [
        _roll_taps, _next_channel, _swap_k_and_v, _swap_q_and_k, _drop_state, _drop_second_state,
        _next_group,
    ],
    "hyena_mr": [
        _roll_taps, _next_channel, _swap_k_and_v, _swap_q_and_k, _drop_state, _drop_second_state,
        _next_group, _drop_skip,
    ],
    "hyena_li": [
        _roll_taps, _next_channel, _swap_k_and_v, _swap_q_and_k, _drop_state, _drop_second_state,
        _shift_poles, _drop_skip,
    ],
}  # fmt: skip


@pytest.mark.skipif(INTERPRETED, reason="the interpreter's bounds are too wide")
@pytest.mark.parametrize("name", NAMES)
def test_the_comparison_notices(name: str, device: torch.device) -> None:
    case = _case(name, min(129, MEDIUM))
    tensors = _tensors(case, device)
    found, weights = testing.run(case, tensors, "triton")
    wanted = testing.exact(case, tensors, weights)
    assert not testing.violations(testing.errors(case, found, wanted))

    def noticed(tampered: dict[str, Tensor]) -> bool:
        return bool(testing.violations(testing.errors(case, tampered, wanted)))

    for mutate in MUTATIONS[name]:
        mutated = dict(tensors)
        mutate(mutated)
        outputs, _ = testing.run(case, mutated, "triton", gradients=False)
        assert noticed({"y": outputs["y"]}), mutate.__name__
    for key, value in found.items():
        assert noticed({key: torch.zeros_like(value)}), f"{key} zeroed"
        assert noticed({key: value * 1.02}), f"{key} scaled"
        if value.dtype == DTYPE:
            one = value.clone(memory_format=torch.contiguous_format)
            one.view(-1)[one.abs().argmax()] *= 1.05
            assert noticed({key: one}), f"one element of {key}"
        nan = value.clone(memory_format=torch.contiguous_format)
        nan.view(-1)[-1] = torch.nan
        assert noticed({key: nan}), f"a NaN in {key}"
    late = found["y"].clone()
    late[:, -1] = late[:, -2]
    assert noticed({"y": late}), "the last row"


# --- Memory -----------------------------------------------------------------------------------


@contextmanager
def _poisoned() -> Iterator[None]:
    """Every uninitialised tensor starts as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


def _between_nan(x: Tensor, pad: int) -> Tensor:
    """The same values in one contiguous piece of a buffer that holds NaN before and after it."""
    buffer = x.new_full((x.numel() + 2 * pad,), torch.nan)
    return buffer[pad : pad + x.numel()].view(x.shape).copy_(x)


def _framed_by_nan(x: Tensor, pad: int) -> Tensor:
    """The same values with NaN around every row of the last two axes."""
    if x.dim() != 3:
        return _between_nan(x, pad)
    buffer = x.new_full((x.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad), torch.nan)
    return buffer[:, pad : pad + x.shape[1], pad : pad + x.shape[2]].copy_(x)


@pytest.mark.parametrize("pad", [16, 1])
@pytest.mark.parametrize("length", [1, 7, MEDIUM])
@pytest.mark.parametrize("name", NAMES)
def test_reads_and_writes_what_it_should(
    name: str, length: int, pad: int, device: torch.device
) -> None:
    """NaN around every input and in every fresh tensor: no bit changes, and none of it is read."""
    case = _case(name, length, batch=1)
    tensors = _tensors(case, device)
    expected, weights = testing.run(case, tensors, "triton")
    wanted = testing.exact(case, tensors, weights)
    for surround in (_between_nan, _framed_by_nan):
        padded = {key: surround(value, pad) for key, value in tensors.items()}
        if name == "hyena_li":
            padded["x"] = surround(tensors["x"].transpose(1, 2), pad).transpose(1, 2)
        with _poisoned():
            found, _ = testing.run(case, padded, "triton", weights)
        if pad == 16:
            _same(found, expected)
        else:  # loads of another width, and with them another order of the sums
            assert not testing.violations(testing.errors(case, found, wanted))


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key], value, rtol=0, atol=0, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_any_memory_layout(name: str, device: torch.device) -> None:
    """Channel-first, channel-last and sliced inputs give the same bits."""
    case = _case(name)
    tensors = _tensors(case, device)
    expected, weights = testing.run(case, tensors, "triton")
    x = tensors["x"]
    wide = torch.cat([x, x], dim=2)
    layouts = {
        "channel-last": x.contiguous(),
        "channel-first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "slice of channels": wide[..., : x.shape[2]],
        "slice of positions": torch.cat([x, x], dim=1)[:, : x.shape[1]],
    }
    for layout, value in layouts.items():
        found, _ = testing.run(case, tensors | {"x": value}, "triton", weights)
        for key in expected:
            assert torch.equal(found[key], expected[key]), f"{layout}: {key}"


def test_more_elements_than_int32_counts(device: torch.device) -> None:
    """Rows of tensors beyond 2^31 elements, forward and backward, against slices around them."""
    D, L, context = (128, 3000, 300) if INTERPRETED else (4096, 2**19 + 80, 1024)
    for name in NAMES:
        blocks, parameters = OPERATORS[name].blocks, OPERATORS[name].parameters
        case = Case(name, L, 1, D, 16, 0, DTYPE)
        tensors = testing.make_inputs(Case(name, 1, 1, D, 16, 0, DTYPE), device)
        if "log_poles" in tensors:  # what lies `context` positions back must not matter
            tensors["log_poles"] = tensors["log_poles"].clamp(max=-0.1)
        if name == "hyena_li":
            x = torch.randn(1, blocks * D, L, device=device, dtype=DTYPE).transpose(1, 2)
        else:
            x = torch.randn(1, L, blocks * D, device=device, dtype=DTYPE)
        weight = torch.randn(1, L, D, device=device, dtype=DTYPE)
        leaves = {"x": x, **{key: tensors[key] for key in parameters}}
        leaves = {key: value.detach().requires_grad_() for key, value in leaves.items()}
        y, _ = testing.call(case, leaves, "triton")
        grads = dict(
            zip(leaves, torch.autograd.grad(y, list(leaves.values()), weight), strict=True)
        )
        y, gradient = y.detach(), grads.pop("x")

        # Whole groups of channels at both ends, in each of the blocks.
        ends = [torch.arange(D // 8), torch.arange(D - D // 8, D)]
        channels = torch.cat(ends).to(device)
        columns = torch.cat([channels + block * D for block in range(blocks)])
        chosen = {"h": channels[::16] // 16, "featurizer": columns, "taps": columns}
        for row in (0, min(2**31 // (blocks * D), L // 2), 2**31 // D, L):
            start, stop = max(min(row, L) - 100, 0), min(row + 100, L)
            low, high = max(start - context, 0), min(stop + context, L)
            small = Case(name, high - low, 1, len(channels), 16, 0, DTYPE)
            part = {key: tensors[key][chosen.get(key, channels)].double() for key in parameters}
            leaf = x[:, low:high, columns].double().requires_grad_()
            exact, _ = testing.call(small, part | {"x": leaf}, "reference")
            (exact_gradient,) = torch.autograd.grad(
                exact, leaf, weight[:, low:high, channels].double()
            )
            inside = slice(start - low, stop - low)
            measured = testing.errors(
                small,
                {"y": y[:, start:stop, channels], "grad.x": gradient[:, start:stop, columns]},
                {"y": exact[:, inside].detach(), "grad.x": exact_gradient[:, inside]},
            )
            for key, value in measured.items():
                # Over few rows, a single element decides the largest error.
                within = value.l2 <= value.l2_bound and value.largest <= 2 * value.largest_bound
                assert within, (name, row, key, value)
        del y, gradient, leaf

        # Sums over all rows: the same through eight chunks, none of which has 2^31 elements.
        state: dict[str, Tensor] = {}
        fixed = {key: value for key, value in leaves.items() if key != "x"}
        parts = []
        for part_of_x in x.split(L // 8, dim=1):
            y, end = testing.call(case, fixed | {"x": part_of_x} | state, "triton")
            after = (end,) if isinstance(end, Tensor) else tuple(end)
            state = {f"state.{i}": tensor for i, tensor in enumerate(after)}
            parts.append(y)
        summed = torch.autograd.grad(parts, list(fixed.values()), weight.split(L // 8, dim=1))
        for (key, value), other in zip(grads.items(), summed, strict=True):
            relative = float((value - other).norm() / other.norm())
            assert relative < testing.FLOAT32_BOUND, (name, key, relative)
        del parts, summed, state
        del x, weight, leaves, y
        torch.cuda.empty_cache()


# --- Splits, batches, repetition --------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_any_split(name: str, seed: int, device: torch.device) -> None:
    """Chunk after chunk is as near to the exact result as one pass: forward and every gradient."""
    case = _case(name)
    inputs = {k: v for k, v in testing.make_inputs(case, device).items() if k != "prefix"}
    _, weights = testing.run(case, inputs, "triton")
    wanted = testing.exact(case, inputs, weights)
    cuts = sorted(random.Random(seed).sample(range(1, case.length), 4 if case.length > 8 else 2))
    if seed == 0:
        cuts = sorted({1, 2, 17, *cuts} & set(range(1, case.length)))
    leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    state: dict[str, Tensor] = {}
    parts = []
    for start, stop in itertools.pairwise([0, *cuts, case.length]):
        part, end = testing.call(case, leaves | {"x": leaves["x"][:, start:stop]} | state, "triton")
        ends = (end,) if isinstance(end, Tensor) else tuple(end)
        state = {f"state.{i}": tensor for i, tensor in enumerate(ends)}
        parts.append(part)
    outputs = {"y": torch.cat(parts, dim=1), **{f"end.{i}": t for i, t in enumerate(ends)}}
    grads = torch.autograd.grad(
        list(outputs.values()), list(leaves.values()), [weights[key] for key in outputs]
    )
    found = {key: value.detach() for key, value in outputs.items()}
    found |= {f"grad.{key}": value for key, value in zip(leaves, grads, strict=True)}
    assert not testing.violations(testing.errors(case, found, wanted))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [7, MEDIUM])
def test_twice_the_same_bits(name: str, length: int, device: torch.device) -> None:
    case = _case(name, length)
    tensors = _tensors(case, device)
    first, weights = testing.run(case, tensors, "triton")
    second, _ = testing.run(case, tensors, "triton", weights)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [7, MEDIUM])
def test_rows_do_not_depend_on_each_other(name: str, length: int, device: torch.device) -> None:
    case = _case(name, length, batch=3)
    tensors = _tensors(case, device)
    together, weights = testing.run(case, tensors, "triton")
    per_row = ["x", *(key for key in tensors if key.startswith("state."))]
    for row in range(case.batch):
        own = tensors | {key: tensors[key][row : row + 1] for key in per_row}
        alone, _ = testing.run(
            case, own, "triton", {key: value[row : row + 1] for key, value in weights.items()}
        )
        for key in ("y", "end.0", "end.1", "grad.x", "grad.state.0", "grad.state.1"):
            if key in alone:
                assert torch.equal(alone[key], together[key][row : row + 1]), f"{key} of row {row}"


@pytest.mark.parametrize("length", [MEDIUM, max(LENGTHS)])
def test_adjoint_of_hyena_lis_state_alone(length: int, device: torch.device) -> None:
    """What the whole backward says of the state before a chunk, from its first half alone."""
    case = Case("hyena_li", length, 1, WIDTH, 16, 150, DTYPE)
    inputs = testing.make_inputs(case, device)
    tensors = inputs | testing.state_in(case, inputs, "triton")
    weights = {"y": torch.randn(1, length, WIDTH, device=device).to(DTYPE)}
    leaves = {name: tensors[name].detach().requires_grad_() for name in ("x", "state.1")}
    y, _ = testing.call(case, tensors | leaves, "triton")
    _, wanted = torch.autograd.grad(y, list(leaves.values()), weights["y"])
    parameters = [tensors[name] for name in ("featurizer", "log_poles", "residues")]
    found = hyena_li_adjoint_state(
        weights["y"], tensors["x"], *parameters, tensors["state.0"], backend="triton"
    )
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_nobody_wants_are_not_computed(name: str, device: torch.device) -> None:
    """Frozen parameters: the gradient of the input is as right as before."""
    case = _case(name)
    tensors = _tensors(case, device)
    _, weights = testing.run(case, tensors, "triton")
    exact = testing.exact(case, tensors, weights)
    leaf = tensors["x"].detach().requires_grad_()
    y, end = testing.call(case, tensors | {"x": leaf}, "triton")
    ends = (end,) if isinstance(end, Tensor) else tuple(end)
    outputs = {"y": y, **{f"end.{i}": tensor for i, tensor in enumerate(ends)}}
    (gradient,) = torch.autograd.grad(
        list(outputs.values()), leaf, [weights[key] for key in outputs]
    )
    assert not testing.violations(testing.errors(case, {"grad.x": gradient}, exact))


# --- PyTorch ----------------------------------------------------------------------------------


class _Recorder(TorchDispatchMode):
    """Remembers every call of our custom operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "evo_kernels":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @property
    def names(self) -> list[str]:
        return [func.__name__.split(".")[0] for func, _, _ in self.calls]


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, device: torch.device) -> None:
    for prefix in (0, 150):
        case = Case(name, min(129, MEDIUM), 1, WIDTH, 16, prefix, DTYPE)
        tensors = _tensors(case, device)
        with _Recorder() as recorder:
            testing.run(case, tensors, "triton")
        assert recorder.calls, "no custom operator was called"
        for func, args, kwargs in recorder.calls:
            backward = "backward" in func.__name__
            copies = [
                value.detach().clone().requires_grad_(value.is_floating_point() and not backward)
                if isinstance(value, Tensor)
                else value
                for value in args
            ]
            torch.library.opcheck(func, tuple(copies), kwargs)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter reads tensors while compiling")
def test_compiles_without_a_graph_break(device: torch.device) -> None:
    """All operators in one graph, forward and backward."""
    cases = [_case(name) for name in NAMES]
    everything = [_tensors(case, device) for case in cases]

    def loss(xs: list[Tensor]) -> Tensor:
        total = torch.zeros((), device=device)
        for case, tensors, x in zip(cases, everything, xs, strict=True):
            y, _ = testing.call(case, tensors | {"x": x}, "triton")
            total = total + y.float().square().mean()
        return total

    def gradients(function: Callable[[list[Tensor]], Tensor]) -> list[Tensor]:
        xs = [tensors["x"].detach().requires_grad_() for tensors in everything]
        return list(torch.autograd.grad(function(xs), xs))

    expected = gradients(loss)
    found = gradients(torch.compile(loss, fullgraph=True))
    for name, mine, theirs in zip(NAMES, found, expected, strict=True):
        # Only the pointwise loss around the operators is compiled.
        error = (mine.double() - theirs.double()).norm() / theirs.double().norm()
        assert float(error) < 1e-2, name


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_graph(name: str, device: torch.device) -> None:
    case = _case(name)
    tensors = _tensors(case, device)
    expected, weights = testing.run(case, tensors, "triton")
    static = {key: torch.empty_like(value) for key, value in tensors.items()}
    for key, value in static.items():
        value.copy_(tensors[key]) if key in OPERATORS[name].parameters else value.zero_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        testing.run(case, static, "triton", weights)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found, _ = testing.run(case, static, "triton", weights)
    for key, value in static.items():
        value.copy_(tensors[key])
    graph.replay()
    torch.cuda.synchronize()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_selective_checkpointing_by_name(name: str, device: torch.device) -> None:
    """A policy that saves our operator's output runs it once; one that does not runs it twice."""
    from torch.utils.checkpoint import (
        CheckpointPolicy,
        checkpoint,
        create_selective_checkpoint_contexts,
    )

    case = _case(name)
    tensors = _tensors(case, device)

    def gradient(keep: bool | None) -> tuple[Tensor, list[str]]:
        def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            ours = getattr(op, "namespace", "") == "evo_kernels"
            return (
                CheckpointPolicy.MUST_SAVE if ours and keep else CheckpointPolicy.PREFER_RECOMPUTE
            )

        def function(x: Tensor) -> Tensor:
            y, _ = testing.call(case, tensors | {"x": x.sin()}, "triton")
            return y.float().square()

        x = tensors["x"].detach().requires_grad_()
        with _Recorder() as recorder:
            if keep is None:
                y = function(x)
            else:
                y = checkpoint(
                    function,
                    x,
                    use_reentrant=False,
                    context_fn=lambda: create_selective_checkpoint_contexts(policy),
                )
            (found,) = torch.autograd.grad(y.sum(), x)
        return found, recorder.names

    plain, names = gradient(None)
    forwards = [n for n in names if "backward" not in n]
    saved, names_saved = gradient(True)
    again, names_again = gradient(False)
    assert torch.equal(saved, plain)
    assert torch.equal(again, plain)
    assert [n for n in names_saved if "backward" not in n] == forwards
    assert [n for n in names_again if "backward" not in n] == forwards * 2
