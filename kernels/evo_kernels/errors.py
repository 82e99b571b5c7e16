"""Errors of the operators."""

from __future__ import annotations


class KernelError(ValueError):
    """Shapes or dtypes do not fit the operator."""


class KernelUnavailableError(KernelError):
    """The backend asked for does not exist for this operator on this device."""
