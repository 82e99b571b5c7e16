"""BRCA1 saturation genome editing (Findlay et al. 2018): loss of function against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.genomes import Genome, encode
from evo_toolkit.statistics import RESAMPLES, auroc

LABELS = ("LOF", "INT", "FUNC")
FLANK = 70_000
"""Bases kept on either side of the variants: more than any window needs."""

Arrays = dict[str, NDArray[Any]]


def read_assay(genome: Path | str, vcf: Path | str) -> tuple[Genome, Arrays]:
    """The variants of the assay and the piece of the chromosome around them.

    Args:
        genome: FASTA with the contig of the VCF in its coordinates.
        vcf: SNVs with FCLASS (LOF, INT, FUNC) and EXPT (the exon) in INFO.

    Returns:
        A genome of one record, and `position` (0-based in that record), `ref`, `alt` (codes),
        `label` (index in `LABELS`), `exon`, and of INFO the texts of CONS (`consequence`) and the
        numbers of CADD (`cadd`), NaN where there is none.

    Raises:
        EvoDataError: for files that cannot be read.
        EvoError: for a VCF without such variants, or whose REF is not the genome's.
    """
    from evo_data.fasta import Fasta
    from evo_data.vcf import VariantReader

    rows: list[tuple[int, str, str, str, str, str, float]] = []
    contigs: set[str] = set()
    with VariantReader(vcf) as reader:
        for record in reader:
            info = dict(part.partition("=")[::2] for part in record.info.decode().split(";"))
            ref, alt = record.ref.upper(), ",".join(record.alts).upper()
            if info.get("FCLASS") in LABELS and len(ref) == len(alt) == 1:
                contigs.add(record.contig)
                rows.append((record.pos - 1, ref, alt, info["FCLASS"], info.get("EXPT", ""), info.get("CONS", ""), _number(info.get("CADD"))))  # fmt: skip
    if not rows or len(contigs) != 1:
        raise EvoError(
            f"{vcf} has no SNVs of one contig with FCLASS (LOF, INT, FUNC) in INFO; give the VCF of the assay"
        )
    contig = contigs.pop()
    with Fasta(genome) as reference:
        if contig not in reference.lengths:
            raise EvoError(f"{genome} has no contig {contig}, which {vcf} names")
        first = max(0, min(row[0] for row in rows) - FLANK)
        last = min(reference.lengths[contig], max(row[0] for row in rows) + FLANK)
        piece = encode(reference.fetch(contig, first, last))
    # Whole chromosomes in which all but this gene is N keep the coordinates; N tells a model nothing.
    known = np.flatnonzero(piece < 4)
    if known.size:
        first, piece = first + int(known[0]), piece[known[0] : known[-1] + 1]
    arrays: Arrays = {
        "position": np.array([row[0] - first for row in rows]),
        "ref": encode("".join(row[1] for row in rows).encode()),
        "alt": encode("".join(row[2] for row in rows).encode()),
        "label": np.array([LABELS.index(row[3]) for row in rows]),
        "exon": np.unique([row[4] for row in rows], return_inverse=True)[1],
        "consequence": np.array([row[5] for row in rows]),
        "cadd": np.array([row[6] for row in rows]),
    }
    inside = (arrays["position"] >= 0) & (arrays["position"] < piece.size)
    if not inside.all() or (piece[arrays["position"]] != arrays["ref"]).any():
        raise EvoError(f"REF of {vcf} differs from {genome}; give the assembly of the VCF")
    name = f"{contig}:{first + 1}-{first + piece.size}"
    return Genome(name=contig, group="human", names=(name,), records=(piece,)), arrays


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def report(
    arrays: Arrays, scores: NDArray[np.floating], *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """AUROC (more negative is more harmful), intervals over the exons of the assay."""
    label, harm = arrays["label"], -np.asarray(scores, float)
    comparisons: dict[str, Sequence[int]] = {
        "LOF against FUNC and INT": (0, 1, 2),
        "LOF against FUNC": (0, 2),
    }
    result: dict[str, Any] = {"num_snvs": int(label.size)}
    for name, labels in comparisons.items():
        keep = np.isin(label, labels)
        result[name] = auroc(
            harm[keep], label[keep] == 0, arrays["exon"][keep], resamples=resamples
        ).json()
    return result
