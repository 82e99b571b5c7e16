"""Single-base substitutions in genes: nonsense and missense against synonymous.

Most of what separates these classes needs no model: which base becomes which, between which
neighbours, tells nonsense from synonymous almost completely, since only some substitutions can make
a stop codon. So AUROC is taken within strata of equal substitution and equal neighbours (-1, +1,
all on the coding strand), and the raw figure is only ever printed beside it and beside that of a
table of substitution and neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.genes import AMINO_ACIDS, STOPS, Gene, coding_sequence, codons
from evo_toolkit.evaluation.genomes import Genome, encode
from evo_toolkit.statistics import RESAMPLES, Estimate, auroc

CLASSES = ("synonymous", "missense", "nonsense")
_FOLDS = 5
_STOP = ord("*")

Arrays = dict[str, NDArray[Any]]


def substitutions(genome: Genome, genes: Sequence[Gene]) -> Arrays:
    """Every substitution in the genes but for first and last codons and bases of two genes.

    Returns:
        Arrays of equal length:
        `record`; `position`, 0-based, forward strand; `ref`, `alt`, codes on the forward strand;
        `gene`, index; `codon_position`, 1 to 3; `third`, of the gene, 0 to 2; `kind`, index in
        `CLASSES`; `stop`, index in `STOPS` of the codon that arises, else -1; `stratum`, number of
        (base before, ref, alt, base behind), all on the coding strand.
    """
    covered = [np.zeros(record.size, np.uint8) for record in genome.records]
    for gene in genes:
        covered[gene.record][gene.start : gene.stop] += 1
    stop_number = np.full(64, -1, np.int8)
    for number, codon in enumerate(STOPS):
        stop_number[codons(encode(codon.encode()))] = number
    parts: dict[str, list[NDArray[Any]]] = {}
    for index, gene in enumerate(genes):
        codes = coding_sequence(genome, gene).astype(np.int64)
        inside = np.arange(3, codes.size - 3)
        forward = gene.start + inside if gene.strand == "+" else gene.stop - 1 - inside
        alone = covered[gene.record][forward] == 1
        inside, forward = np.repeat(inside[alone], 3), np.repeat(forward[alone], 3)
        ref = codes[inside]
        alt = (ref + np.tile([1, 2, 3], inside.size // 3)) % 4
        old = codons(codes.astype(np.uint8))[inside // 3]
        new = old + (alt - ref) * np.array([16, 4, 1])[inside % 3]
        same = AMINO_ACIDS[old] == AMINO_ACIDS[new]
        kind = np.where(same, 0, np.where(AMINO_ACIDS[new] == _STOP, 2, 1))
        ref_forward, alt_forward = (ref, alt) if gene.strand == "+" else (3 - ref, 3 - alt)
        columns = {
            "record": np.full(inside.size, gene.record, np.int32),
            "position": forward.astype(np.int64),
            "ref": ref_forward.astype(np.uint8),
            "alt": alt_forward.astype(np.uint8),
            "gene": np.full(inside.size, index, np.int32),
            "codon_position": (inside % 3 + 1).astype(np.uint8),
            "third": (inside * 3 // codes.size).astype(np.uint8),
            "kind": kind.astype(np.uint8),
            "stop": stop_number[new],
            "stratum": (((codes[inside - 1] * 4 + ref) * 4 + alt) * 4 + codes[inside + 1]).astype(
                np.int16
            ),
        }
        for name, column in columns.items():
            parts.setdefault(name, []).append(column)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def draw(every: Arrays, count: int, seed: int) -> Arrays:
    """Draw substitutions without replacement, a third of each class as far as there are so many.

    Returns:
        In order of record and position.

    Raises:
        EvoError: when a class has none.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for kind, name in enumerate(CLASSES):
        own = np.flatnonzero(every["kind"] == kind)
        if not own.size:
            raise EvoError(f"the genes have no {name} substitution; give more genes")
        wanted = count // len(CLASSES) + (kind < count % len(CLASSES))
        chosen.append(random.choice(own, min(wanted, own.size), replace=False))
    index = np.concatenate(chosen)
    index = index[
        np.lexsort((every["alt"][index], every["position"][index], every["record"][index]))
    ]
    return {name: column[index] for name, column in every.items()}


def table_scores(snvs: Arrays, positive: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Log odds of a class against synonymous by substitution and neighbours, fitted on other genes.

    The genes are dealt into five folds; a fold's substitutions are scored by counts of the other
    four (one half added to each). What this reaches needs no model.
    """
    _, gene = np.unique(snvs["gene"], return_inverse=True)
    fold = np.random.default_rng(seed).permutation(gene.max() + 1)[gene] % _FOLDS
    result = np.zeros(gene.size)
    for number in range(_FOLDS):
        other = fold != number
        counts = [
            np.bincount(snvs["stratum"][other & (snvs["kind"] == kind)], minlength=256) + 0.5
            for kind in (positive, 0)
        ]
        odds = np.log(counts[0] / counts[1])
        result[fold == number] = odds[snvs["stratum"][fold == number]]
    return result


def report(
    snvs: Arrays, scores: NDArray[np.floating], *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """AUROC of scores (more negative is more harmful) for nonsense and missense.

    Args:
        snvs: As of `draw`.
        scores: Alternate minus reference, `[n]`; NaN is left out and counted.
        resamples: Of the bootstrap over genes.

    Returns:
        JSON by class: `within_strata`, `raw`, `table` (raw AUROC of substitution and neighbours),
        and the same within strata for parts of the data. Positives of one codon position or with
        one stop codon stand against all synonymous ones; those of a third of the gene against the
        synonymous ones of that third; `equal_codon_position` has the codon position in the stratum.
    """
    fine = np.isfinite(scores)
    result: dict[str, Any] = {
        "num_snvs": int(fine.sum()),
        "num_without_score": int((~fine).sum()),
        "num_genes": len(np.unique(snvs["gene"][fine])),
    }
    for kind in (2, 1):
        use = fine & ((snvs["kind"] == kind) | (snvs["kind"] == 0))
        part = {name: column[use] for name, column in snvs.items()}
        harm = -np.asarray(scores, np.float64)[use]
        result[CLASSES[kind]] = _class_report(part, harm, kind, resamples)
    return result


def _class_report(part: Arrays, harm: NDArray[Any], kind: int, resamples: int) -> dict[str, Any]:
    positive = part["kind"] == kind

    def figure(
        keep: NDArray[np.bool_] | slice = slice(None),
        strata: NDArray[Any] | None = part["stratum"],
        scores: NDArray[Any] = harm,
    ) -> dict[str, Any]:
        groups = None if strata is None else strata[keep]
        found: Estimate = auroc(
            scores[keep], positive[keep], part["gene"][keep], groups, resamples=resamples
        )
        return {**found.json(), "positives": int(positive[keep].sum())}

    parts: dict[str, Any] = {}
    for number in (1, 2, 3):
        keep = ~positive | (part["codon_position"] == number)
        parts[f"codon position {number}"] = figure(keep)
    for number, name in enumerate(("first", "middle", "last")):
        parts[f"{name} third of the gene"] = figure(part["third"] == number)
    if kind == 2:
        for number, codon in enumerate(STOPS):
            parts[f"stop {codon}"] = figure(~positive | (part["stop"] == number))
    parts["equal codon position too"] = figure(
        strata=part["stratum"].astype(np.int64) * 4 + part["codon_position"]
    )
    return {
        "within_strata": figure(),
        "raw": figure(strata=None),
        "table": figure(strata=None, scores=table_scores(part, kind)),
        "negatives": int((~positive).sum()),
        "parts": parts,
    }
