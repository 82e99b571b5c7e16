"""Parity with the uncut recordings of the reference implementation, where ../shared is at hand.

The cut copy in tests/fixtures/evo2 is what test_parity.py needs; here are all positions of both
models, every state and every decode step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.model.striped_hyena import StripedHyena2

LENGTHS = ("L4", "L130", "L257")
BlockOutputs = Callable[[StripedHyena2], AbstractContextManager[list[Tensor]]]

FP32 = 2e-4
"""Absolute, for logits of standard deviation 8 to 10."""
MODAL = 1e-3
"""Relative, of every cache."""


@pytest.mark.parametrize("name", ["tiny_noscale", "tiny_interp128"])
@pytest.mark.parametrize("length", LENGTHS)
def test_full_vortex_recordings(
    name: str, length: str, shared_dir: Path, block_outputs: BlockOutputs
) -> None:
    source = shared_dir / "fixtures" / "evo2"
    record = torch.load(source / f"{name}.expected.pt", weights_only=True)[length]
    model = load_model(source / f"{name}.pt", device="cpu", precision="vortex")
    with block_outputs(model) as blocks:
        logits = model(record["input_ids"])
    assert float((blocks[0] != record["blocks"]["block0"]).float().mean()) <= 0.002
    wanted = record["logits"].float()
    assert float((logits.float() - wanted).abs().max() / wanted.abs().max()) <= 0.02
    assert float((logits.argmax(-1) == wanted.argmax(-1)).float().mean()) >= 0.985


@pytest.mark.parametrize("name", ["tiny_noscale", "tiny_interp128"])
@pytest.mark.parametrize("length", LENGTHS)
def test_full_recordings(
    name: str, length: str, shared_dir: Path, block_outputs: BlockOutputs
) -> None:
    """All positions of both models, where the uncut recordings are at hand."""
    source = shared_dir / "fixtures" / "evo2"
    record = torch.load(source / f"{name}.expected.pt", weights_only=True)
    model = load_model(source / f"{name}.pt", device="cpu", precision="exact")
    with block_outputs(model) as blocks:
        logits = model(record[length]["input_ids"])
    torch.testing.assert_close(logits, record[length]["logits_fp32"], rtol=0, atol=FP32)
    for index, block in enumerate(blocks):
        wanted = record[length]["blocks_fp32"][f"block{index}"]
        torch.testing.assert_close(block, wanted, rtol=0, atol=FP32)


@pytest.mark.parametrize("name", ["tiny_noscale", "tiny_interp128"])
def test_full_states(name: str, shared_dir: Path) -> None:
    """Every Hyena layer's cache after a prefill in the released rounding."""
    source = shared_dir / "fixtures" / "evo2"
    record = torch.load(source / f"{name}.expected.pt", weights_only=True)["decode"]
    model = load_model(source / f"{name}.pt", device="cpu", precision="vortex")
    with torch.no_grad():
        _, state = model(record["prompt"], return_state=True)
    caches = record["states_after_prefill"]
    compared = 0
    for index, symbol in enumerate(model.config.pattern):
        if symbol == "*":
            continue
        kind = {"S": "hcs", "D": "hcm", "H": "hcl"}[symbol]
        inner = caches[kind]["state"] if symbol == "H" else caches[kind]["inner"]
        found = state[index].modal if symbol == "H" else state[index].gated.transpose(1, 2)
        assert float((found - inner[index]).norm() / inner[index].norm()) <= MODAL, index
        compared += 1
    assert compared == sum(s != "*" for s in model.config.pattern)


@pytest.mark.parametrize("name", ["tiny_noscale", "tiny_interp128"])
def test_full_decoding(name: str, shared_dir: Path) -> None:
    source = shared_dir / "fixtures" / "evo2"
    record = torch.load(source / f"{name}.expected.pt", weights_only=True)["decode"]
    model = load_model(source / f"{name}.pt", device="cpu", precision="exact")
    with torch.no_grad():
        _, state = model(record["prompt"], return_state=True)
        for step in range(record["tokens"].shape[1]):
            logits, state = model(record["tokens"][:, step : step + 1], state, return_state=True)
            torch.testing.assert_close(
                logits[:, 0], record["step_logits_fp32"][:, step], rtol=0, atol=FP32
            )
