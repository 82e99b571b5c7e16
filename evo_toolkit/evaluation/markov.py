"""The first baseline: a Markov chain of order k, interpolated by Witten and Bell's rule.

After a context h that was seen c(h) times with T(h) different bases behind it,

    p_k(x | h) = (c(hx) + T(h) p_{k-1}(x | h')) / (c(h) + T(h)),   h' = h without its oldest base,

and p_{-1} is 1/4. Counts come from both strands of the training genomes, each genome with a weight.
Tables go by the k-mer in base 4, its first (oldest) base most significant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import OTHER
from evo_data.kmers import kmer_codes
from evo_toolkit.errors import UsageError
from evo_toolkit.evaluation.genomes import Bytes, Genome, reverse_complement

MAX_ORDER = 12
"""The largest order: its table has 4^13 entries, 512 MB in float64."""

_BATCH = 1 << 24  # bases counted at a time: the indices of a batch take 128 MB

Floats = NDArray[np.float64]
Log2Table = NDArray[np.float32]


def _batches(
    genomes: Iterable[tuple[Genome, float]], limit: int
) -> Iterator[tuple[Bytes, NDArray[np.float32]]]:
    """Records one after the other, `OTHER` between them, and the weight of every base."""
    pieces: list[Bytes] = []
    weights: list[tuple[float, int]] = []
    size = 0
    separator = np.array([OTHER], np.uint8)
    for genome, weight in genomes:
        for record in genome.records:
            pieces += [record, separator]
            weights.append((weight, record.size + 1))
            size += record.size + 1
            if size >= limit:
                yield _joined(pieces, weights)
                pieces, weights, size = [], [], 0
    if pieces:
        yield _joined(pieces, weights)


def _joined(
    pieces: list[Bytes], weights: list[tuple[float, int]]
) -> tuple[Bytes, NDArray[np.float32]]:
    values = np.array([weight for weight, _ in weights], np.float32)
    return np.concatenate(pieces), np.repeat(values, [length for _, length in weights])


def weighted_counts(
    genomes: Iterable[tuple[Genome, float]], order: int, *, batch: int = _BATCH
) -> Floats:
    """Counts of the (order + 1)-mers of both strands, each genome's with its weight.

    Args:
        genomes: Genomes with their weights, read once.
        order: Order of the chain that will be made of them, 0 to `MAX_ORDER`.
        batch: Bases counted at a time (a whole record at least).

    Returns:
        `[4 ** (order + 1)]` float64.

    Raises:
        UsageError: for an order outside of the range.
    """
    if not 0 <= order <= MAX_ORDER:
        raise UsageError(f"Markov order {order} is out of range; use 0 to {MAX_ORDER}")
    size = 4 ** (order + 1)
    forward = np.zeros(size)
    for codes, weights in _batches(genomes, batch):
        found, good = kmer_codes(codes, order + 1)
        kmers = found[good].view(np.int64)
        forward += np.bincount(kmers, weights[: good.size][good], minlength=size)
    # The other strand has each k-mer's reverse complement as often: axes in reverse, A with T.
    shape = (4,) * (order + 1)
    return (
        forward + forward.reshape(shape).transpose()[(slice(None, None, -1),) * len(shape)].ravel()
    )


def interpolated_log2(counts: Floats) -> list[Log2Table]:
    """`log2 p_k(x | h)` for every k from 0 up to the order of the counts.

    Args:
        counts: Of all (order + 1)-mers hx, `[4 ** (order + 1)]`.

    Returns:
        For each k, `[4 ** k, 4]` float32: row h, column x.
    """
    by_order = [counts]
    while by_order[0].size > 4:
        by_order.insert(0, by_order[0].reshape(4, -1).sum(axis=0))  # over the oldest base
    shorter = np.full((1, 4), 0.25)
    tables = []
    for level in by_order:
        table = level.reshape(-1, 4)
        kinds = (table > 0).sum(axis=1, keepdims=True)
        seen = table.sum(axis=1, keepdims=True)
        # The rows of h' repeat for each oldest base that h adds.
        below = np.tile(shorter, (table.shape[0] // shorter.shape[0], 1))
        total = seen + kinds
        mixed = np.divide(table + kinds * below, total, out=below, where=total > 0)
        tables.append(np.log2(mixed).astype(np.float32))
        shorter = mixed
    return tables


@dataclass(frozen=True)
class MarkovChain:
    """Interpolated chains of every order up to a largest one.

    Attributes:
        tables: For each order k, `log2 p_k(x | h)`, `[4 ** k, 4]`.
    """

    tables: Sequence[Log2Table]

    @property
    def max_order(self) -> int:
        """The largest order."""
        return len(self.tables) - 1

    def log2_probs(self, codes: Bytes, order: int) -> NDArray[np.float32]:
        """`log2 p(x | context)` of all four bases at every position of windows.

        The context is what the window itself holds: at its start, and after a base that is not
        ACGT, the order is as large as the number of bases seen since.

        Args:
            codes: `[W, L]`, windows in reading direction.
            order: Largest order used.

        Returns:
            `[W, L, 4]` float32.
        """
        flat = codes.reshape(-1)
        run = context_lengths(codes).reshape(-1)
        result = np.empty((flat.size, 4), np.float32)
        key = np.zeros(flat.size, np.int64)
        values = np.where(flat < OTHER, flat, 0).astype(np.int64)
        for lag in range(1, order + 1):
            key[lag:] |= values[:-lag] << (2 * (lag - 1))
        for k in range(order):
            at = np.flatnonzero(run == k)
            result[at] = self.tables[k][key[at] & (4**k - 1)]
        at = np.flatnonzero(run >= order)
        result[at] = self.tables[order][key[at]]
        return result.reshape(*codes.shape, 4)

    def substitution_scores(
        self,
        records: Sequence[Bytes],
        record: NDArray[np.integer],
        position: NDArray[np.integer],
        alt: NDArray[np.integer],
        order: int,
    ) -> Floats:
        """Log-likelihood of the alternate minus the reference in nats, mean of both strands, `[n]`.

        Args:
            records: Codes of the records.
            record, position: Of each substitution; 0-based, forward strand.
            alt: Code of the new base, forward strand.
            order: Of the chain.
        """
        around = np.full((record.size, 2 * order + 1), OTHER, np.uint8)
        for offset in range(-order, order + 1):
            for index, sequence in enumerate(records):
                at = position + offset
                use = (record == index) & (at >= 0) & (at < sequence.size)
                around[use, order + offset] = sequence[at[use]]
        changed = around.copy()
        changed[:, order] = alt
        result = np.zeros(record.size)
        for sign, windows in ((1, changed), (-1, around)):
            for codes in (windows, reverse_complement(windows)):
                observed = of_bases(self.log2_probs(codes, order), codes)[:, order:]
                known = codes[:, order:] < OTHER
                result += sign * np.where(known, observed, 0).sum(axis=1) / 2
        return result * np.log(2)


def of_bases(values: NDArray[np.float32], codes: Bytes) -> NDArray[np.float32]:
    """Pick from `[..., 4]` what belongs to each base of `[...]`; anything where it is not ACGT."""
    column = np.minimum(codes, 3)[..., None].astype(np.int64)
    return np.take_along_axis(values, column, axis=-1)[..., 0]


def context_lengths(codes: Bytes) -> NDArray[np.int64]:
    """How many ACGT bases stand directly before each position of windows `[W, L]`."""
    place = np.arange(codes.shape[1])
    last_other = np.maximum.accumulate(np.where(codes >= OTHER, place, -1), axis=1)
    before = np.concatenate([np.full((codes.shape[0], 1), -1), last_other[:, :-1]], axis=1)
    return place - before - 1
