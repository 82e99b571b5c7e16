"""Small checkpoints of every format, built from recorded random weights."""

from __future__ import annotations

import io
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_toolkit.model.config import StripedHyena2Config, read_config

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "evo2"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    cache = tmp_path / "toolkit-cache"
    monkeypatch.setenv("EVO_TOOLKIT_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released layout as a `.pt` with its configuration beside it; not to be altered."""
    folder = tmp_path_factory.mktemp("released")
    path = folder / "tiny_noscale.pt"
    path.write_bytes(lzma.decompress((FIXTURES / "tiny_noscale.pt.xz").read_bytes()))
    shutil.copy(FIXTURES / "tiny_noscale.config.json", folder)
    return path


@pytest.fixture(scope="session")
def tiny_config() -> StripedHyena2Config:
    return read_config(FIXTURES / "tiny_noscale.config.json")


@pytest.fixture
def tiny_weights(tiny_file: Path) -> dict[str, Any]:
    """The released state dict, the test's own copy."""
    return dict(torch.load(tiny_file, weights_only=True))


@pytest.fixture(scope="session")
def tiny_expected() -> dict[str, Any]:
    data = lzma.decompress((FIXTURES / "tiny_noscale.expected.pt.xz").read_bytes())
    return dict(torch.load(io.BytesIO(data), weights_only=True))


@pytest.fixture
def tiny_state(tiny_file: Path, tiny_config: StripedHyena2Config) -> dict[str, Tensor]:
    """The same weights under our names."""
    from evo_toolkit.checkpoint.opening import open_source

    return dict(open_source(tiny_file).source.iter_tensors())
