"""Errors that a file or an argument of the user can cause: one line each, all `ValueError`s."""

from __future__ import annotations


class EvoDataError(ValueError):
    """Base of every error that `evo_data` raises about the user's input or output."""


class FastaError(EvoDataError):
    """A genome file that cannot be used, or a request outside of it."""


class VcfError(EvoDataError):
    """A variant file that cannot be read or written; the message names file and line."""


class ContigError(EvoDataError):
    """A contig that is unknown or too short for what was asked."""


class CorpusError(EvoDataError):
    """A training corpus, or an input to one, that cannot be used."""


class OutputExistsError(EvoDataError):
    """An output path that exists already and was not allowed to be overwritten."""
