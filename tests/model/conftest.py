"""Fixtures of the model's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from evo_toolkit.model.striped_hyena import StripedHyena2


@contextmanager
def _block_outputs(model: StripedHyena2) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []
    handles = [b.register_forward_hook(lambda m, i, o: outputs.append(o[0])) for b in model.blocks]
    try:
        with torch.no_grad():
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="session")
def block_outputs() -> object:
    """A context manager: the residual stream after every block, collected while it is open."""
    return _block_outputs
