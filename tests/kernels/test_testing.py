"""The comparison that GPU tests and benchmarks use: it accepts the twin in bfloat16, and nothing less."""

from __future__ import annotations

import pytest
import torch

from evo_kernels import testing
from evo_kernels.errors import KernelError
from evo_kernels.launch import override, select
from evo_kernels.testing import OPERATORS, Case


@pytest.mark.parametrize("prefix", [0, 150])
@pytest.mark.parametrize("length", [1, 129])
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_twin_in_bfloat16_is_within_its_bounds(name: str, length: int, prefix: int) -> None:
    # Its sums are float32 and its output is rounded once, so it is at the rounding itself.
    case = Case(name, length, 2, 240, 15, prefix)
    measured = testing.check(case, "cpu", "reference")
    assert measured["y"].l2 == pytest.approx(1, abs=1e-3)
    assert measured["end.0"].l2 == 0


@pytest.mark.parametrize("name", ["hyena_li", "hyena_mr", "hyena_se"])
def test_a_filter_rounded_to_bfloat16_is_noticed(name: str) -> None:
    """Why the kernels carry filters as pairs: one bfloat16 per tap is outside the bounds."""
    case = Case(name, 257, 2, 64)
    inputs = testing.make_inputs(case, "cpu")
    wanted = testing.exact(case, inputs, {})
    rounded = dict(inputs)
    for key in OPERATORS[name].parameters:
        rounded[key] = inputs[key].bfloat16().float()
    found, _ = testing.run(case, rounded, "reference", gradients=False)
    assert testing.violations(testing.errors(case, {"y": found["y"]}, wanted))


def test_not_a_number_and_missing_signal_are_noticed() -> None:
    case = Case("short_conv", 9)
    nothing = torch.zeros(1, 9, 64)
    bounds = testing.error(nothing * torch.nan, nothing.double(), (1.5, 1.5), rounding=True)
    assert not bounds.ok
    with pytest.raises(AssertionError, match="has scale 0"):
        testing.assert_signal(case, {"y": nothing.double()})


def test_forced_configurations_are_those_of_the_device_class() -> None:
    table = testing.load_configurations()
    for name in OPERATORS:
        for device_class in testing.device_classes(name):
            with testing.forced(device_class):
                for kernel, configs in table.items():
                    expected = configs.get(device_class, configs["default"])
                    assert select(kernel, torch.device("cpu")) is expected
    with pytest.raises(KernelError, match="no kernel is called"), override("none", None):  # type: ignore[arg-type]
        pass
