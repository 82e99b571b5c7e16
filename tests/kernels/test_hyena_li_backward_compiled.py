"""Backward kernel of Hyena-LI compiled for Hopper on a machine without a GPU.

Besides its budget, one thing that a wrong result on a GPU taught: ptxas 12.8 can drop the
instruction that writes a uniform register, here a matrix descriptor, and still use the register. No
test in the interpreter sees it, and on a GPU the results are garbage. It shows in the machine code.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)

DATA_POINTERS = ("dy", "qkv", "tail", "dqkv")
INTEGERS = (
    "L",
    "num_tiles",
    "dy_batch",
    "dy_channel",
    "qkv_batch",
    "qkv_channel",
    "dqkv_channel",
)


def unwritten_uniform_registers(sass: str) -> list[str]:
    """Instructions that read a uniform register which none before them has written."""
    written: set[int] = set()
    found = []
    for text in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", sass):
        operation, _, rest = re.sub(r"^@!?U?P\w+\s+", "", text).partition(" ")
        operands = [x.strip() for x in rest.split(",")]
        position = 0
        while position < len(operands) and re.fullmatch(r"U?P[T\d]+", operands[position]):
            position += 1
        target = re.fullmatch(r"UR(\d+)", operands[position]) if operands[position:] else None
        read: set[int] = set()
        for operand in operands[position + (target is not None) :]:
            descriptor = re.search(r"gdesc\[UR(\d+)\]", operand)
            if descriptor:
                # Four registers for two matrices; the first two are unused when A is in registers.
                a_in_registers = re.match(r"R\d+", operands[1]) is not None
                first = int(descriptor.group(1))
                read |= set(range(first + (2 if a_in_registers else 0), first + 4))
            else:
                read |= {int(x) for x in re.findall(r"\bUR(\d+)\b", operand)}
        if read - written:
            found.append(text)
        if target:
            wide = re.search(r"\.64\b|\.WIDE\b", operation) is not None
            written |= {int(target.group(1)) + k for k in range(2 if wide else 1)}
    return found


def compile_for_hopper(folder: Path, **flags: object) -> tuple[str, int, str]:
    """PTX, bytes of stack and machine code of the kernel at width 4096 with bfloat16 data."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from evo_kernels.hyena_li.backward import hyena_li_backward_kernel as kernel
    from evo_kernels.hyena_li.configs import BACKWARD
    from evo_kernels.launch import registered

    config = registered()[BACKWARD]["default"]
    sizes = {"D": 4096, "N": 16, "NP": 16, "C": 64, "M": 64, "RAGGED": False, "UPCAST": 0}
    constants = sizes | flags | dict(config.constants)
    signature = {}
    attributes = {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in INTEGERS:
            signature[name] = "i32"
        else:
            signature[name] = "*bf16" if name in DATA_POINTERS else "*fp32"
            attributes[(i,)] = [["tt.divisibility", 16]]
    by_index = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    binary = triton.compile(
        ASTSource(kernel, signature, by_index, attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    path = folder / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])

    def run(*command: str | Path) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    usage = run(tools / "cuobjdump", "--dump-resource-usage", path)
    stack = sum(int(x) for x in re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage))
    return binary.asm["ptx"], stack, run(tools / "nvdisasm", path)


@pytest.mark.parametrize(
    ("needs_weights", "states", "stack_bytes"),
    # 256 threads with 272 bytes each fill half of what a multiprocessor's L1 has left; above 600 the
    # kernel loses a third of its speed.
    [(True, False, 288), (True, True, 448), (False, False, 0)],
)
def test_compiles_within_its_budget(
    tmp_path: Path, needs_weights: bool, states: bool, stack_bytes: int
) -> None:
    ptx, stack, sass = compile_for_hopper(
        tmp_path,
        HAS_TAIL=states,
        HAS_END=states,
        NEED_INPUT=True,
        NEED_TAPS=needs_weights,
        NEED_FILTER=needs_weights,
    )
    assert "wgmma.mma_async" in ptx
    assert stack <= stack_bytes
    assert unwritten_uniform_registers(sass) == []


def test_the_state_alone_costs_little(tmp_path: Path) -> None:
    """With nothing but the adjoint of the state wanted, k, v and their products are left out."""
    wanted = {"HAS_TAIL": True, "HAS_END": False}
    needs = ("NEED_INPUT", "NEED_TAPS", "NEED_FILTER")
    whole, _, _ = compile_for_hopper(tmp_path, **wanted, **dict.fromkeys(needs, True))
    alone, stack, sass = compile_for_hopper(tmp_path, **wanted, **dict.fromkeys(needs, False))
    assert stack == 0
    assert unwritten_uniform_registers(sass) == []
    assert alone.count("wgmma.mma_async") * 6 < whole.count("wgmma.mma_async")
    assert alone.count("ld.global") * 3 < whole.count("ld.global")


def test_an_unwritten_register_is_noticed() -> None:
    good = "/*0000*/ UMOV UR4, 0x10 ;\n/*0010*/ UIADD3 UR6, UR4, 0x20, URZ ;\n"
    bad = "/*0000*/ UMOV UR4, 0x10 ;\n/*0010*/ UIADD3 UR6, UP0, UR44, 0x20, URZ ;\n"
    assert unwritten_uniform_registers(good) == []
    assert unwritten_uniform_registers(bad) == ["UIADD3 UR6, UP0, UR44, 0x20, URZ "]
