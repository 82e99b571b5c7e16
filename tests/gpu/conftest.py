"""Comparison of every launch configuration with the exact answer, on a GPU: `make test-gpu`.

Two environment variables make the same tests run elsewhere: `EVO_TEST_DEVICE=cpu` with
`TRITON_INTERPRET=1` takes the interpreter (narrow tensors and wider bounds; minutes all the same), and
`EVO_TEST_LENGTHS=1,7,129` another list of lengths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from evo_kernels.testing import Case, Error

COLUMNS = ("operator", "device class", "L", "output", "input gradient", "float32 gradients")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if "tests/gpu/" in item.path.as_posix()]
    absent = os.environ.get("EVO_TEST_DEVICE", "cuda") == "cuda" and not torch.cuda.is_available()
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if absent:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get("EVO_TEST_DEVICE", "cuda"))


@pytest.fixture(autouse=True)
def _give_memory_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Adds a comparison to the table at the end of the run."""

    def add(case: Case, device_class: str, measured: dict[str, Error]) -> None:
        def worst(select: Callable[[str, Error], bool]) -> float:
            return max((e.l2 for name, e in measured.items() if select(name, e)), default=0.0)

        record_property(
            "comparison",
            [
                case.operator,
                device_class,
                case.length,
                worst(lambda name, e: name == "y"),
                worst(lambda name, e: name.startswith("grad.") and e.unit == "rounding"),
                worst(lambda name, e: name.startswith("grad.") and e.unit == "value"),
            ],
        )

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    worst: dict[tuple[str, str, int], list[float]] = {}
    for outcome in ("passed", "failed"):
        for test in terminalreporter.stats.get(outcome, []):
            for name, row in getattr(test, "user_properties", []):
                if name == "comparison":
                    seen = worst.setdefault((row[0], row[1], row[2]), [0.0, 0.0, 0.0])
                    for index, value in enumerate(row[3:]):
                        seen[index] = max(seen[index], value)
    if not worst:
        return
    terminalreporter.section("kernels against the float64 twin")
    line = terminalreporter.write_line
    if torch.cuda.is_available():
        import triton

        line(
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
        )
    line(
        "Largest over states, group sizes and batches. Output and input gradient: norm of the error"
    )
    line(
        "over that of rounding the exact result (bounds 1.5 and 2); float32: relative (bound 4e-3)."
    )
    line("| " + " | ".join(COLUMNS) + " |")
    line("|---|---|---|---|---|---|")
    for (operator, device_class, length), (output, gradient, parameter) in sorted(worst.items()):
        line(
            f"| {operator} | {device_class} | {length} | {output:.3f} | {gradient:.3f} | {parameter:.1e} |"
        )
