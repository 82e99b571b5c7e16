"""Both baselines of bits per base, made of training genomes (`markov`, `mixture`).

Near-identical genomes count as one (weight 1 / size of their cluster, `evo_data.kmers`). The order
and the weights are chosen on training genomes that are held out of the tables for it: whole
families, genomes that share next to no 31-mers with the others, as the genomes that are judged
later. The final tables are those of all training genomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evo_data.kmers import cluster_weights, clusters, shared_kmers_each, sketch
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.genomes import Genome, GenomeFile, tokens
from evo_toolkit.evaluation.markov import (
    MAX_ORDER,
    MarkovChain,
    interpolated_log2,
    weighted_counts,
)
from evo_toolkit.evaluation.mixture import Mixture, best_order, fit_weights
from evo_toolkit.evaluation.windows import sample_windows

FAMILY_CONTAINMENT = 0.01
"""Genomes that share so many of their 31-mers belong to one family when some are held out."""

HELD_OUT = 0.15
"""Share of the weighted bases that is held out to choose the order and to fit the weights."""

OVERLAP_SCALE = 20
"""One 31-mer in so many is looked up for the overlap with the training genomes."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainingGenomes:
    """Genomes to count, with what is near to what.

    Attributes:
        files: The genomes.
        weights: One over the size of each one's cluster.
        families: Number of the family of each.
        bases: Of each.
    """

    files: Sequence[GenomeFile]
    weights: Sequence[float]
    families: Sequence[int]
    bases: Sequence[int]

    @property
    def effective_bases(self) -> float:
        """Bases, each genome's times its weight."""
        return float(np.dot(self.bases, self.weights))


def training_genomes(files: Sequence[GenomeFile]) -> TrainingGenomes:
    """Read every genome once and find out which are near each other."""
    sketches, bases = [], []
    for genome in (file.read() for file in files):
        sketches.append(sketch([tokens(record) for record in genome.records]))
        bases.append(genome.num_bases)
    return TrainingGenomes(
        files=files,
        weights=cluster_weights(clusters(sketches)),
        families=clusters(sketches, FAMILY_CONTAINMENT, of="smaller"),
        bases=bases,
    )


def held_out_families(train: TrainingGenomes, share: float, seed: int) -> set[int]:
    """Families drawn until they hold `share` of the weighted bases, never more than half of them.

    Raises:
        EvoError: if all genomes are of one family.
    """
    numbers = sorted(set(train.families))
    if len(numbers) < 2:
        raise EvoError(
            "the training genomes are all near to each other, so none can be held out to choose the baseline's order; give at least two unlike genomes"
        )
    mass = dict.fromkeys(numbers, 0.0)
    for family, bases, weight in zip(train.families, train.bases, train.weights, strict=True):
        mass[family] += bases * weight
    total = sum(mass.values())
    held: set[int] = set()
    for family in np.random.default_rng(seed).permutation(numbers).tolist():
        if sum(mass[f] for f in held) >= share * total:
            break
        if sum(mass[f] for f in held) + mass[family] <= total / 2:
            held.add(family)
    return held or {min(numbers, key=lambda f: (mass[f], f))}


def fit_baseline(
    train: TrainingGenomes,
    *,
    context_length: int,
    order: int | None = None,
    max_order: int = MAX_ORDER,
    num_windows: int = 256,
    seed: int = 0,
    say: Say = lambda text: None,
) -> tuple[Mixture, dict[str, Any]]:
    """Count, choose the order, fit the weights.

    Args:
        train: The genomes.
        context_length: Of the windows that the weights are fitted on, in bases.
        order: Of the chain; None chooses the best up to `max_order` on the held-out windows.
        num_windows: Windows drawn from the held-out families.
        seed: Of the choice of families, windows and positions.
        say: Gets a line after each step.

    Returns:
        The mixture over the tables of all genomes, and a record of how it was made.

    Raises:
        EvoError: if no family can be held out.
    """
    top = max_order if order is None else order
    held = held_out_families(train, HELD_OUT, seed)
    pairs = list(zip(train.files, train.weights, train.families, strict=True))
    held_out = [(file.read(), weight) for file, weight, family in pairs if family in held]
    kept = ((file.read(), weight) for file, weight, family in pairs if family not in held)
    held_counts = weighted_counts(held_out, top)
    windows = sample_windows(held_out, context_length, num_windows, seed)
    names = [genome.name for genome, _ in held_out]
    del held_out
    say(f"counted {len(names)} genomes held out for the fit")
    kept_counts = weighted_counts(kept, top)
    say(f"counted the other {len(pairs) - len(names)} genomes")
    rest = MarkovChain(interpolated_log2(kept_counts))
    best, by_order = best_order(rest, windows, range(top + 1))
    used = best if order is None else order
    weights = fit_weights(rest, used, windows, seed=seed)
    del rest
    whole = MarkovChain(interpolated_log2(held_counts + kept_counts))
    say(f"order {used}; weights fitted on {num_windows} windows of {len(names)} held-out genomes")
    record = {
        "num_genomes": len(train.files),
        "bases": int(sum(train.bases)),
        "effective_bases": round(train.effective_bases),
        "held_out": names,
        "order": used,
        "held_out_bits_by_order": [round(x, 5) for x in by_order],
        "weights": [round(float(w), 4) for w in weights],
        "context_length": context_length,
        "num_windows": num_windows,
        "seed": seed,
    }
    return Mixture(whole, used, weights), record


def kmer_overlap(genomes: Sequence[Genome], train: Sequence[GenomeFile]) -> dict[str, float]:
    """Share of each genome's distinct 31-mers that also stand in a training genome, by name.

    Both strands; of one 31-mer in `OVERLAP_SCALE`.
    """
    queries = [[tokens(record) for record in genome.records] for genome in genomes]
    reference = (tokens(record) for file in train for record in file.read().records)
    shares = shared_kmers_each(queries, reference, scale=OVERLAP_SCALE)
    return {genome.name: share for genome, share in zip(genomes, shares, strict=True)}
