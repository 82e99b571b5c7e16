"""What the manifest says of a corpus whose sources have all been read, or why there can be none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evo_data import kmers
from evo_data.corpus.journal import Entry
from evo_data.corpus.manifest import (
    INTERVALS,
    RECORDS,
    SEQUENCE,
    Encoding,
    FileEntry,
    Genome,
    Manifest,
    Source,
    Unusable,
)
from evo_data.corpus.sources import Input, folder_name, genome_name
from evo_data.errors import CorpusError
from evo_data.files import sha256_file


def check_usable(entries: Sequence[Entry], skip_unusable: bool) -> None:
    """Raise if the sources make no corpus.

    Args:
        entries: Of all sources.
        skip_unusable: Whether some of them may be unusable.

    Raises:
        CorpusError: if one is and may not be, or no record can be used.
    """
    unusable = [entry for entry in entries if entry.unusable is not None]
    if unusable and not skip_unusable:
        raise CorpusError(_refusal(unusable, len(entries)))
    if not any(entry.num_records for entry in entries):
        raise CorpusError(_why_empty(entries))


def make_manifest(
    work: Path,
    encoding: Encoding,
    settings: dict[str, Any],
    inputs: Sequence[Input],
    entries: Sequence[Entry],
    group_of: Mapping[Path, str],
    labels: Sequence[int],
) -> Manifest:
    """Return the manifest of the files in `work`.

    Args:
        inputs, entries: The sources, and what the journal says about each.
        group_of: Group of each source by its path.
        labels: Number of the cluster of each genome (a source of which something was kept).
    """
    weights = kmers.cluster_weights(labels)
    genomes: list[Genome] = []
    sources: list[Source] = []
    names: dict[str, int] = {}
    wanted = [genome_name(item.path) for item in inputs]
    uses = Counter(wanted)
    first = 0
    for item, entry, name in zip(inputs, entries, wanted, strict=True):
        index = len(genomes) if entry.num_records else None
        sources.append(
            Source(
                file=entry.file,
                format=entry.format,
                bytes=entry.bytes,
                sha256=entry.sha256,
                genome=index,
            )
        )
        if index is None:
            continue
        if uses[name] > 1:
            name = f"{folder_name(item.path)}/{name}"
        genomes.append(
            Genome(
                name=unused_name(name, names),
                group=group_of[item.path],
                file=entry.file,
                cluster=labels[index],
                weight=weights[index],
                num_bases=entry.num_bases,
                acgt_bases=entry.acgt_bases,
                soft_masked_bases=entry.soft_masked_bases,
                first_record=first,
                num_records=entry.num_records,
            )
        )
        first += entry.num_records
    return Manifest(
        encoding=encoding,
        settings=settings,
        files={
            name: FileEntry((work / name).stat().st_size, sha256_file(work / name))
            for name in (SEQUENCE, RECORDS, *([INTERVALS] if encoding == "packed" else []))
        },
        sources=sources,
        genomes=genomes,
        totals=_totals(genomes),
        duplicates=[found for entry in entries for found in entry.duplicates],
        left_out=[found for entry in entries for found in entry.left_out],
        renamed=[found for entry in entries for found in entry.renamed],
        unusable=[
            Unusable(file=entry.file, reason=entry.unusable)
            for entry in entries
            if entry.unusable is not None
        ],
    )


def unused_name(name: str, names: dict[str, int]) -> str:
    """Return a name, with ~2, ~3, ... behind it if it is in use, and note that it is."""
    candidate = name
    while candidate in names:
        names[name] += 1
        candidate = f"{name}~{names[name]}"
    names[candidate] = 1
    return candidate


def _why_empty(entries: Sequence[Entry]) -> str:
    """Say why no record can be used."""
    first = entries[0]
    if first.left_out:
        left_out = first.left_out[0]
        reason = f"{first.file}: {left_out.record}: {left_out.reason}"
    else:
        reason = first.unusable or f"{first.file}: holds no sequence"
    more = f" (and so on for {len(entries)} files)" if len(entries) > 1 else ""
    return f"no sequence can be used: {reason}{more}; give genomes"


def _refusal(unusable: Sequence[Entry], num_sources: int) -> str:
    reasons = [entry.unusable or "" for entry in unusable]
    if num_sources == 1:
        return reasons[0]
    shown = "; ".join(reasons[:3])
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return (
        f"{len(reasons)} of {num_sources} files cannot be used: {shown}{more}. Repair or remove them "
        "and run again (what was read is kept), or give --skip-unusable"
    )


def _totals(genomes: Sequence[Genome]) -> dict[str, float]:
    return {
        "genomes": len(genomes),
        "clusters": len({genome.cluster for genome in genomes}),
        "records": sum(genome.num_records for genome in genomes),
        "bases": sum(genome.num_bases for genome in genomes),
        "acgt_bases": sum(genome.acgt_bases for genome in genomes),
        "soft_masked_bases": sum(genome.soft_masked_bases for genome in genomes),
        "effective_bases": sum(genome.effective_bases for genome in genomes),
    }
