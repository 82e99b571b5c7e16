"""Errors that a user can cause. Each message is one line: what was given, what is allowed, what to do next."""

from __future__ import annotations


class EvoError(ValueError):
    """Base of the toolkit's own errors; the command line prints it as one line and exits 1."""


class UsageError(EvoError):
    """The request itself cannot be carried out as asked (the command line exits 2)."""


class ConfigError(EvoError):
    """A model configuration is inconsistent."""


class CheckpointError(EvoError):
    """A checkpoint cannot be read, or does not fit its configuration."""


class InaccurateModelError(UsageError):
    """The model's weights would load, but would not give right numbers on this machine."""


class OutOfDomainError(UsageError):
    """The genome lies outside what the model was trained on."""


class OutOfDomainWarning(UserWarning):
    """Scores were asked for outside the model's domain, with consent."""
