"""Fixtures that every part uses."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The reference library that stands beside the project; tests that need it skip without it."""
    path = ROOT.parent / "shared"
    if not (path / "README.md").is_file():
        pytest.skip("needs the reference library ../shared, which is not here")
    return path


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT
