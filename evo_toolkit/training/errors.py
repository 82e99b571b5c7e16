"""Errors of training that a user meets."""

from __future__ import annotations

from evo_toolkit.errors import EvoError


class NonFiniteLossError(EvoError):
    """The loss or its gradient became infinite or not a number; the run stopped."""
