"""Genomes, variants and windows: everything about data that needs no model.

Names are imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "AlleleStatus": "variant",
    "ByteTokenizer": "tokenizer",
    "ContigError": "errors",
    "Corpus": "corpus",
    "CorpusError": "errors",
    "Edit": "variant",
    "EvoDataError": "errors",
    "Fasta": "fasta",
    "FastaError": "errors",
    "Interval": "interval",
    "OutputExistsError": "errors",
    "StrandWindow": "windows",
    "Variant": "variant",
    "VariantReader": "vcf",
    "VcfError": "errors",
    "VcfHeader": "vcf",
    "VcfRecord": "vcf",
    "VcfWriter": "vcf",
    "annotate": "vcf",
    "atomic_output": "files",
    "check_reference": "variant",
    "classify_allele": "variant",
    "edit_of": "variant",
    "hgvs_g": "variant",
    "ContigAliases": "contigs",
    "normalise": "variant",
    "reverse_complement": "alphabet",
    "sha256_file": "files",
    "variant_windows": "windows",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"evo_data.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
