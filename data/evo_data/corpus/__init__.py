"""Genomes as training data: one folder of flat files with random access, and how it is made."""

from __future__ import annotations

from evo_data.corpus.format import Corpus, Record, is_corpus
from evo_data.corpus.manifest import Duplicate, Genome, LeftOut, Manifest, Source
from evo_data.corpus.megatron import open_megatron
from evo_data.corpus.prepare import prepare, read_groups

__all__ = [
    "Corpus",
    "Duplicate",
    "Genome",
    "LeftOut",
    "Manifest",
    "Record",
    "Source",
    "is_corpus",
    "open_megatron",
    "prepare",
    "read_groups",
]
