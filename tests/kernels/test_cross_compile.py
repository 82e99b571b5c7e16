"""Every kernel compiled for Hopper on a machine without a GPU: registers, spills, memory, instructions.

The public functions run as they would on a GPU, except that a launch compiles for `sm_90` and does
not start. So what is compiled is what would be launched: signature, alignment, constants, warps.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_kernels import backend, testing
from evo_kernels.testing import Case
from tests.kernels.test_hyena_li_backward_compiled import unwritten_uniform_registers

triton = pytest.importorskip("triton")

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)


@dataclass(frozen=True)
class Compiled:
    """What one launch compiled to."""

    name: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    products: str
    miscompiled: tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """What a kernel may use. A thread can have 255 registers; what a limit leaves out is spilled.

    Attributes:
        products: Tensor-core instructions: "wgmma", "mma", or "" for none.
        spilled_bytes: In training without a state, and in calls with one.
    """

    registers: int
    shared_bytes: int
    products: str = ""
    spilled_bytes: tuple[int, int] = (0, 0)


BUDGETS = {
    "short_conv_forward_kernel": Budget(96, 0),
    "short_conv_backward_kernel": Budget(112, 1024),
    # A configuration limits it to 128; the small tile of short chunks has no limit.
    "hyena_se_forward_kernel": Budget(208, 0, "", (16, 416)),
    "hyena_se_backward_kernel": Budget(128, 512),
    "toeplitz64_kernel": Budget(80, 8192),
    "prepare_kernel": Budget(48, 512),
    "hyena_mr_forward_kernel": Budget(168, 40960, "mma", (64, 144)),
    "hyena_mr_step_forward_kernel": Budget(255, 4096),
    "hyena_mr_gate_kernel": Budget(128, 0),
    "hyena_mr_conv_kernel": Budget(168, 81920, "wgmma"),
    "hyena_mr_backward_filter_kernel": Budget(168, 81920, "wgmma"),
    "hyena_mr_backward_inputs_kernel": Budget(168, 1024),
    "hyena_li_forward_kernel": Budget(128, 45056, "wgmma", (32, 128)),
    "hyena_li_backward_kernel": Budget(255, 67584, "wgmma", (288, 448)),
    "hyena_li_step_kernel": Budget(48, 64),
}


class _Hopper:
    """As much of a Triton driver as compiling needs."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def _inspect(name: str, binary: Any, folder: Path) -> Compiled:
    path = folder / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def run(*command: str | Path) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    usage = run(tools / "cuobjdump", "--dump-resource-usage", path)
    number = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    ptx = binary.asm["ptx"]
    products = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else ""
    lost = unwritten_uniform_registers(run(tools / "nvdisasm", path)) if products else []
    return Compiled(
        name, number["REG"], number["STACK"] + number["LOCAL"], binary.metadata.shared, products,
        tuple(lost),
    )  # fmt: skip


@contextmanager
def launches_compile(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[Compiled]]:
    """Inside the block a launch on CPU tensors compiles for Hopper and is added to the list."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction, KernelInterface

    compiled: set[str] = set()
    result: list[Compiled] = []

    def launch(kernel: JITFunction, grid: Any) -> Callable[..., None]:
        def compile_only(*args: Any, **kwargs: Any) -> None:
            binary = kernel.run(*args, grid=grid, warmup=True, **kwargs)
            if binary.hash not in compiled:
                compiled.add(binary.hash)
                result.append(_inspect(kernel.fn.__name__, binary, folder))

        return compile_only

    with monkeypatch.context() as patch:
        patch.setattr(KernelInterface, "__getitem__", launch)
        patch.setattr(backend, "_why_no_triton", lambda x: "")
        patch.setattr(driver, "_active", _Hopper())
        yield result


def _launch(case: Case, *, gradients: bool) -> None:
    """Call an operator as training does without a state, as generation does with one."""
    inputs = testing.make_inputs(case, "cpu")
    with testing.forced("sm_90"):
        if case.prefix:
            state = testing.state_in(case, inputs, "reference")
            testing.run(case, inputs | state, "triton", gradients=gradients)
            return
        operator = testing.OPERATORS[case.operator]
        leaves = [inputs[key].requires_grad_() for key in ("x", *operator.parameters)]
        y, _ = operator.function(*leaves, backend="triton")
        torch.autograd.grad(y, leaves, torch.zeros_like(y))


@pytest.mark.parametrize("name", sorted(testing.OPERATORS))
def test_within_its_budget(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with launches_compile(monkeypatch, tmp_path) as compiled:
        _launch(Case(name, 128, width=4096), gradients=True)
        training = len(compiled)
        _launch(Case(name, 128, width=4096, prefix=150), gradients=False)
        _launch(Case(name, 1, width=4096, prefix=150), gradients=False)
    assert compiled, "nothing was launched"
    problems = []
    for index, kernel in enumerate(compiled):
        print(kernel)
        budget = BUDGETS.get(kernel.name, Budget(0, 0))
        if kernel.registers > budget.registers:
            problems.append(f"{kernel.name}: {kernel.registers} registers")
        if kernel.spilled_bytes > budget.spilled_bytes[index >= training]:
            problems.append(f"{kernel.name}: {kernel.spilled_bytes} bytes spilled")
        if kernel.shared_bytes > budget.shared_bytes:
            problems.append(f"{kernel.name}: {kernel.shared_bytes} bytes of shared memory")
        if kernel.products != budget.products:
            problems.append(f"{kernel.name}: products by {kernel.products or 'no tensor cores'}")
        if kernel.miscompiled:
            problems.append(f"{kernel.name}: uses what was never written: {kernel.miscompiled}")
    assert not problems, "; ".join(problems)
