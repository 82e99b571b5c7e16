"""Matching the contig names of a variant file to those of a genome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_MITOCHONDRIAL = frozenset({"m", "mt"})


def map_contigs(
    names: Iterable[str],
    genome: Mapping[str, int],
    declared_lengths: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Return which contig of the genome each name stands for; unknown names are absent.

    The same name wins. Otherwise `1` and `chr1` stand for each other (`chr` in any case), and so
    do M, MT, chrM and chrMT. Such an alias is used only if it fits exactly one contig and, where
    the variant file declares a length, that length is the contig's: hg19's chrM and GRCh37's MT
    are different sequences.

    Args:
        names: Contig names of the variant file.
        genome: Length of each contig of the genome, in bases.
        declared_lengths: Lengths from the variant file's header, where it has them.
    """
    declared = declared_lengths or {}
    by_stem: dict[str, list[str]] = {}
    for contig in genome:
        by_stem.setdefault(_stem(contig), []).append(contig)
    mapping = {}
    for name in names:
        if name in genome:
            mapping[name] = name
            continue
        fitting = by_stem.get(_stem(name), [])
        length = declared.get(name)
        if length is not None:
            fitting = [contig for contig in fitting if genome[contig] == length]
        if len(fitting) == 1:
            mapping[name] = fitting[0]
    return mapping


def length_conflicts(
    mapping: Mapping[str, str], genome: Mapping[str, int], declared_lengths: Mapping[str, int]
) -> list[str]:
    """Return the mapped names whose declared length is not the genome's: a wrong assembly."""
    return [
        name
        for name, contig in mapping.items()
        if name in declared_lengths and declared_lengths[name] != genome[contig]
    ]


def _stem(name: str) -> str:
    """Return the name without `chr`; one common stem for the mitochondrial names."""
    stem = name[3:] if name[:3].lower() == "chr" and len(name) > 3 else name
    return "MT" if stem.lower() in _MITOCHONDRIAL else stem
