"""Parity with the recorded outputs of the reference implementation (tests/fixtures/evo2)."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.model.striped_hyena import StripedHyena2

pytestmark = pytest.mark.parity

FIXTURES = Path(__file__).parents[1] / "fixtures" / "evo2"
LENGTHS = ("L4", "L130", "L257")

BlockOutputs = Callable[[StripedHyena2], AbstractContextManager[list[Tensor]]]

FP32 = 2e-4
"""Absolute, for logits of standard deviation 8 to 10."""
MODAL = 1e-3
"""Relative, of every cache."""


@cache
def expected(name: str) -> dict[str, Any]:
    with lzma.open(FIXTURES / f"{name}.expected.pt.xz") as file:
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def load(name: str, folder: Path, precision: str) -> StripedHyena2:
    """Through the public loader, as a user's released checkpoint."""
    checkpoint = folder / f"{name}.pt"
    if not checkpoint.exists():
        with lzma.open(FIXTURES / f"{name}.pt.xz") as packed, checkpoint.open("wb") as file:
            shutil.copyfileobj(packed, file)
        shutil.copy(FIXTURES / f"{name}.config.json", folder)
    return load_model(checkpoint, device="cpu", precision=precision).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evo2")


@pytest.fixture(scope="module")
def exact(folder: Path) -> StripedHyena2:
    return load("tiny_noscale", folder, "exact")


@pytest.fixture(scope="module")
def vortex(folder: Path) -> StripedHyena2:
    return load("tiny_noscale", folder, "vortex")


def worst_fp32_error(
    model: StripedHyena2, record: dict[str, Any], block_outputs: BlockOutputs
) -> float:
    """Largest absolute difference over logits and every block's output."""
    kept = record["positions"]
    with block_outputs(model) as blocks:
        logits = model(record["input_ids"].long())
    errors = [(logits[:, kept] - record["logits_fp32"]).abs().max()]
    for index, block in enumerate(blocks):
        errors.append((block[:, kept] - record["blocks_fp32"][f"block{index}"]).abs().max())
    return float(torch.stack(errors).max())


@pytest.mark.parametrize("length", LENGTHS)
def test_exact_logits_and_blocks(
    exact: StripedHyena2, length: str, block_outputs: BlockOutputs
) -> None:
    assert worst_fp32_error(exact, expected("tiny_noscale")[length], block_outputs) <= FP32


def test_exact_block_with_interpolated_positions(folder: Path) -> None:
    model = load("tiny_interp128_block3", folder, "exact")
    record = expected("tiny_interp128_block3")
    with torch.no_grad():
        found, _ = model.blocks[0](record["input_fp32"])
    torch.testing.assert_close(
        found[:, record["positions"]], record["output_fp32"], rtol=0, atol=FP32
    )


@pytest.mark.parametrize("length", LENGTHS)
def test_vortex_rounding(vortex: StripedHyena2, length: str, block_outputs: BlockOutputs) -> None:
    record = expected("tiny_noscale")[length]
    with block_outputs(vortex) as blocks:
        logits = vortex(record["input_ids"].long())
    assert logits.dtype == torch.bfloat16
    rows = record["block0_rows"]
    differing = (blocks[0][rows] != record["block0_bf16"]).float().mean()
    assert float(differing) <= 0.002
    error = (logits[:, record["positions"]].float() - record["logits_bf16"].float()).abs().max()
    assert float(error) <= 0.02 * float(record["max_abs_logit_bf16"])
    agreement = (logits.argmax(-1) == record["argmax_bf16"].long()).float().mean()
    assert float(agreement) >= 0.985


def test_decoding_after_prefill(exact: StripedHyena2) -> None:
    record = expected("tiny_noscale")["decode"]
    with torch.no_grad():
        _, state = exact(record["prompt"].long(), return_state=True)
        steps = []
        for token in record["tokens"].long().split(1, dim=1):
            logits, state = exact(token, state, return_state=True)
            steps.append(logits[:, 0])
    found = torch.stack(steps, 1)[..., record["step_columns"]]
    torch.testing.assert_close(found, record["step_logits_fp32"], rtol=0, atol=FP32)


def test_states_after_prefill(vortex: StripedHyena2) -> None:
    record = expected("tiny_noscale")["decode"]
    with torch.no_grad():
        _, state = vortex(record["prompt"].long(), return_state=True)
    width = vortex.config.width
    caches = record["states_after_prefill"]

    def close(layer: int, found: Tensor, wanted: Tensor) -> None:
        relative = (found.float() - wanted.float()).norm() / wanted.float().norm()
        assert float(relative) <= MODAL, layer

    for kind in ("hcs", "hcm", "hcl"):
        for layer, wanted in caches[kind]["fir"].items():
            # Released order: channels interleaved in triples, time last; ours: blocks, time first.
            blocks = wanted.view(-1, width, 3, 2).permute(0, 3, 2, 1).reshape(-1, 2, 3 * width)
            found = state[int(layer)].featurizer  # type: ignore[union-attr]
            close(int(layer), found, blocks)
            if int(layer) == 0:
                assert torch.equal(found, blocks)
    for kind in ("hcs", "hcm"):
        for layer, wanted in caches[kind]["inner"].items():
            close(int(layer), state[int(layer)].gated, wanted.transpose(1, 2))  # type: ignore[union-attr]
    for layer, wanted in caches["hcl"]["state"].items():
        close(int(layer), state[int(layer)].modal, wanted)  # type: ignore[union-attr]


def _flip_taps(model: StripedHyena2) -> None:
    mixer = model.blocks[0].mixer
    mixer.h.data = mixer.h.data.flip(1)


def _flip_mr_taps(model: StripedHyena2) -> None:
    mixer = model.blocks[1].mixer
    mixer.h.data = mixer.h.data.flip(1)


def _drop_skip(model: StripedHyena2) -> None:
    model.blocks[2].mixer.D.data.zero_()


def _interleave_wrongly(model: StripedHyena2) -> None:
    projections = model.blocks[0].projections
    width = model.config.width
    projections.weight.data = torch.cat(
        [
            projections.weight[width : 2 * width],
            projections.weight[:width],
            projections.weight[2 * width :],
        ]
    ).detach()


def _gelu_everywhere(model: StripedHyena2) -> None:
    model.blocks[3].mlp.gelu = True


@pytest.mark.parametrize(
    "mutate", [_flip_taps, _flip_mr_taps, _drop_skip, _interleave_wrongly, _gelu_everywhere]
)
def test_the_comparison_notices(mutate: Any, folder: Path, block_outputs: BlockOutputs) -> None:
    model = load("tiny_noscale", folder, "exact")
    mutate(model)
    assert worst_fp32_error(model, expected("tiny_noscale")["L130"], block_outputs) > 100 * FP32
