"""The model with its kernels on: as near to the recorded outputs as bf16 blocks are without them."""

from __future__ import annotations

import itertools
import lzma
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.model.striped_hyena import StripedHyena2

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="bfloat16 models need a GPU"
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "evo2"
BOUND = 1.5
"""Deviation with kernels over the deviation of the reference operators, both with bf16 blocks."""


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    with lzma.open(FIXTURES / "tiny_noscale.expected.pt.xz") as file:
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StripedHyena2]:
    """The same weights with the reference operators, with what a user gets, and with Triton alone."""
    folder = tmp_path_factory.mktemp("evo2")
    checkpoint = folder / "tiny_noscale.pt"
    with lzma.open(FIXTURES / "tiny_noscale.pt.xz") as packed, checkpoint.open("wb") as file:
        shutil.copyfileobj(packed, file)
    shutil.copy(FIXTURES / "tiny_noscale.config.json", folder)
    return {
        backend: load_model(checkpoint, device="cuda", backend=backend).eval()  # type: ignore[arg-type]
        for backend in ("reference", "auto", "triton")
    }


def _deviation(found: Tensor, wanted: Tensor) -> float:
    return float((found.double().cpu() - wanted.double()).norm() / wanted.double().norm())


class _Operators(TorchDispatchMode):
    """Names of our custom operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "evo_kernels":
            self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def test_kernels_are_on_by_default(models: dict[str, StripedHyena2], record: Any) -> None:
    ids = record["L130"]["input_ids"].long().cuda()
    with torch.no_grad(), _Operators() as seen:
        models["auto"](ids)
    assert {"hyena_se", "hyena_mr", "hyena_li"} <= seen.names
    with torch.no_grad(), _Operators() as seen:
        models["reference"](ids)
    assert not {"hyena_se", "hyena_mr", "hyena_li"} & seen.names


@pytest.mark.parametrize("length", ["L4", "L130", "L257"])
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_parity_with_the_recorded_logits(
    models: dict[str, StripedHyena2], record: Any, length: str, backend: str
) -> None:
    entry = record[length]
    ids = entry["input_ids"].long().cuda()
    deviations = {}
    with torch.no_grad():
        for name in ("reference", backend):
            logits = models[name](ids)[:, entry["positions"].tolist()]
            deviations[name] = _deviation(logits, entry["logits_fp32"])
    assert deviations[backend] <= BOUND * deviations["reference"], deviations
    assert deviations[backend] < 0.05, deviations


def test_parity_while_decoding(models: dict[str, StripedHyena2], record: Any) -> None:
    entry = record["decode"]
    prompt, tokens = entry["prompt"].long().cuda(), entry["tokens"].long().cuda()
    deviations = {}
    for name in ("reference", "auto"):
        steps = []
        with torch.no_grad():
            _, state = models[name](prompt, return_state=True)
            for token in tokens.split(1, dim=1):
                logits, state = models[name](token, state, return_state=True)
                steps.append(logits[:, 0])
        found = torch.stack(steps, 1)[..., entry["step_columns"].cuda()]
        deviations[name] = _deviation(found, entry["step_logits_fp32"])
    assert deviations["auto"] <= BOUND * deviations["reference"], deviations


@pytest.mark.parametrize("seed", range(3))
def test_any_split_of_the_model(models: dict[str, StripedHyena2], record: Any, seed: int) -> None:
    entry = record["L257"]
    ids = entry["input_ids"].long().cuda()
    kept = entry["positions"].tolist()
    cuts = sorted(random.Random(seed).sample(range(1, ids.shape[1]), 5))
    with torch.no_grad():
        one_pass = _deviation(models["reference"](ids)[:, kept], entry["logits_fp32"])
        state, parts = None, []
        for start, stop in itertools.pairwise([0, *cuts, ids.shape[1]]):
            logits, state = models["auto"](ids[:, start:stop], state, return_state=True)
            parts.append(logits)
    split = _deviation(torch.cat(parts, 1)[:, kept], entry["logits_fp32"])
    assert split <= BOUND * one_pass, (split, one_pass, cuts)
