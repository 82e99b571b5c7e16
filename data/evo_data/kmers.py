"""What sequences share, by their k-mers: sketches, clusters of near-identical genomes, overlaps.

A k-mer and its reverse complement count as one (the *canonical* k-mer: the smaller of their codes).
K-mers with anything but A, C, G, T (in either case) are passed over. Every canonical k-mer has a
64-bit hash (`evo_data.mixing`) that no two k-mers share, so sets of hashes are exact. A *sketch*
of scale s keeps the hashes below 2^64 / s, one k-mer in s, the same ones in every genome; scale 1
keeps them all. Source: FracMinHash (Irber et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import CODES, OTHER
from evo_data.corpus.packed import Bytes
from evo_data.errors import EvoDataError
from evo_data.mixing import mix_in_place

if TYPE_CHECKING:
    from evo_data.corpus.format import Corpus

K = 31
SCALE = 200
"""Of sketches of genomes: a phage of 5 kb keeps about 25 hashes, a bacterium of 5 Mb 25,000."""
CLUSTER_CONTAINMENT = 0.5
"""Two genomes belong together from here on; it stands for an identity of about 98 % (0.978^31)."""

Hashes = NDArray[np.uint64]

MAX_K = 32
# Arrays of a block stay in the processor's cache; larger ones are slower.
_BLOCK = 1 << 17
# Log2 of the table that tells most absent hashes from present ones by one look (64 MiB).
_FILTER_BITS = 26
_FILTER_SHIFT = np.uint64(64 - _FILTER_BITS)
# Bases of a corpus that are read together.
_PIECE = 1 << 22
# Hashes that are looked up together.
_BATCH = 1 << 22
_UNITS: dict[int, type[np.unsignedinteger]] = {
    1: np.uint8, 2: np.uint8, 4: np.uint8, 8: np.uint16, 16: np.uint32, 32: np.uint64,
}  # fmt: skip


def kmer_hashes(bases: Bytes, k: int = K) -> Hashes:
    """Return the hash of the canonical k-mer at each position that has one, in order.

    Args:
        bases: ASCII bytes `[n]` in either case.
        k: 1 to 32.

    Returns:
        uint64, at most `[n - k + 1]`: positions whose k-mer holds another letter are left out.
    """
    _check_k(k)
    blocks = [_block_hashes(bases[at : at + _BLOCK + k - 1], k) for at in _starts(bases.size, k)]
    return np.concatenate([np.zeros(0, np.uint64), *blocks])


def sketch(sequences: Bytes | Iterable[Bytes], k: int = K, scale: int = SCALE) -> Hashes:
    """Return the sketch of a sequence or of several: sorted hashes, each once.

    Args:
        sequences: ASCII bytes `[n]`, or several such arrays (no k-mer reaches from one into the
            next).
        k: 1 to 32.
        scale: One k-mer in so many is kept; 1 keeps all.
    """
    _check_k(k)
    if scale < 1:
        raise EvoDataError(f"scale {scale} is not possible; give 1 (all k-mers) or more")
    bound = np.uint64((1 << 64) // scale - 1) if scale > 1 else np.uint64(2**64 - 1)
    kept: list[Hashes] = []
    size = limit = 0
    for hashes in _iter_hashes(sequences, k):
        below = hashes if scale == 1 else hashes[hashes <= bound]
        kept.append(below)
        size += below.size
        if size > limit + (1 << 22):
            # Repeats are merged as they come: memory follows the distinct k-mers.
            kept = [union(kept)]
            size = kept[0].size
            limit = size
    return union(kept)


def union(sketches: Sequence[Hashes]) -> Hashes:
    """Return the hashes of all of several sketches (or parts of one), sorted, each once."""
    hashes: Hashes = np.concatenate([np.zeros(0, np.uint64), *sketches])
    # Sorting in place is many times faster than np.unique, which builds a hash table.
    hashes.sort()
    first = np.ones(hashes.size, np.bool_)
    np.not_equal(hashes[1:], hashes[:-1], out=first[1:])
    return hashes[first]


def clusters(
    sketches: Sequence[Hashes],
    threshold: float = CLUSTER_CONTAINMENT,
    *,
    of: Literal["larger", "smaller"] = "larger",
) -> list[int]:
    """Return the number of each genome's cluster, from 0 in order of first members.

    Two genomes belong together if at least `threshold` of the k-mers of the larger one (the one
    with more) are in the other; clusters are what chains of such pairs connect. The larger one
    counts so that a plasmid, or a phage that also stands in the genomes of its hosts, neither
    takes weight from them nor ties different species together; `of="smaller"` is the usual
    maximum containment, which does both.

    Args:
        sketches: One per genome, all of the same k and scale. Genomes without any hash stay alone.
        threshold: Above 0, at most 1.
        of: Whose share counts.
    """
    if not 0 < threshold <= 1:
        raise EvoDataError(f"threshold {threshold} is not within 0 (excluded) to 1")
    n = len(sketches)
    sizes = np.array([s.size for s in sketches], np.int64)
    hashes = np.concatenate([np.zeros(0, np.uint64), *sketches])
    owners = np.repeat(np.arange(n, dtype=np.int32), sizes)
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    del order
    parent = list(range(n))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for i in range(n):
        # One genome against all: memory stays that of the sketches.
        first = np.searchsorted(hashes, sketches[i], "left")
        count = np.searchsorted(hashes, sketches[i], "right") - first
        several = count > 1
        first, count = first[several], count[several]
        before = np.cumsum(count) - count
        where = np.arange(int(count.sum())) + np.repeat(first - before, count)
        shared = np.bincount(owners[where], minlength=n)
        bound = np.maximum(sizes, sizes[i]) if of == "larger" else np.minimum(sizes, sizes[i])
        near = (shared >= threshold * bound) & (shared > 0)
        for j in np.flatnonzero(near[:i]).tolist():
            a, b = sorted((root(i), root(j)))
            parent[b] = a
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(n)]


def cluster_weights(labels: Sequence[int]) -> list[float]:
    """Return one over the size of each genome's cluster."""
    sizes = np.bincount(np.asarray(labels, np.int64)) if labels else np.zeros(0, np.int64)
    return [1.0 / int(sizes[label]) for label in labels]


def shared_kmers(
    query: Bytes | Iterable[Bytes],
    reference: Corpus | Bytes | Iterable[Bytes],
    k: int = K,
    scale: int = 1,
) -> float:
    """Return the share of the query's distinct k-mers that also stand in the reference, 0 to 1.

    Both strands count. Memory follows the distinct k-mers of the query (about 16 bytes each)
    divided by `scale`; the reference is read once, block by block.

    Args:
        query: Sequences as ASCII bytes, either case.
        reference: Sequences, or a corpus.
        k: 1 to 32.
        scale: 1 is exact; more looks at one k-mer in so many, for large queries.

    Returns:
        The share; 0 if the query has no k-mer.
    """
    return shared_kmers_each([query], reference, k, scale)[0]


def shared_kmers_each(
    queries: Sequence[Bytes | Iterable[Bytes]],
    reference: Corpus | Bytes | Iterable[Bytes],
    k: int = K,
    scale: int = 1,
) -> list[float]:
    """Return `shared_kmers` of each of several queries; the reference is read only once."""
    sketches = [sketch(query, k, scale) for query in queries]
    wanted = union(sketches)
    if not wanted.size:
        return [0.0] * len(queries)
    lookup = Lookup(wanted)
    found = np.zeros(wanted.size, np.bool_)
    waiting: list[Hashes] = []
    size = 0
    for hashes in _iter_hashes(_sequences(reference, k), k):
        # No-one asks for hashes that the scale leaves out.
        hashes = hashes[hashes <= wanted[-1]] if scale > 1 else hashes
        waiting.append(lookup.candidates(hashes))
        size += waiting[-1].size
        if size >= _BATCH:
            found[lookup.positions(union(waiting))] = True
            waiting, size = [], 0
    found[lookup.positions(union(waiting))] = True
    return [float(found[lookup.positions(own)].mean()) if own.size else 0.0 for own in sketches]


class Lookup:
    """Which of many hashes are among some that are wanted, in two steps.

    Most absent hashes are told by one look into a table; what it lets through is searched for,
    which is fastest when sorted, because the search then walks through memory instead of jumping.
    """

    def __init__(self, wanted: Hashes) -> None:
        """Take the wanted hashes, sorted, each once."""
        self.wanted = wanted
        self._may_be_wanted = np.zeros(1 << _FILTER_BITS, np.bool_)
        self._may_be_wanted[wanted >> _FILTER_SHIFT] = True

    def candidates(self, hashes: Hashes) -> Hashes:
        """Return the hashes without most of those that are not wanted."""
        return hashes[self._may_be_wanted[hashes >> _FILTER_SHIFT]]

    def positions(self, hashes: Hashes) -> NDArray[np.intp]:
        """Return where in `wanted` those of the hashes stand that are there, in their order."""
        if not self.wanted.size:
            return np.zeros(0, np.intp)
        at = np.minimum(np.searchsorted(self.wanted, hashes), self.wanted.size - 1)
        return at[self.wanted[at] == hashes]


def corpus_sequences(
    corpus: Corpus,
    segments: Iterable[tuple[int, int, int]] | None = None,
    k: int = K,
) -> Iterator[Bytes]:
    """Yield the bases of a corpus in pieces that have each k-mer of it exactly once.

    Args:
        corpus: The corpus.
        segments: (record, start, stop), 0-based half-open; all records if not given.
        k: Pieces of a long segment overlap by k - 1.
    """
    if segments is None:
        segments = ((i, 0, record.length) for i, record in enumerate(corpus.records))
    for record, start, stop in segments:
        for at in range(start, max(start + 1, stop - k + 1), _PIECE):
            yield corpus.read(record, at, min(at + _PIECE + k - 1, stop))


def _sequences(reference: Corpus | Bytes | Iterable[Bytes], k: int) -> Bytes | Iterable[Bytes]:
    from evo_data.corpus.format import Corpus

    return corpus_sequences(reference, k=k) if isinstance(reference, Corpus) else reference


def _iter_hashes(sequences: Bytes | Iterable[Bytes], k: int) -> Iterator[Hashes]:
    for bases in [sequences] if isinstance(sequences, np.ndarray) else sequences:
        for at in _starts(bases.size, k):
            yield _block_hashes(bases[at : at + _BLOCK + k - 1], k)


def _starts(size: int, k: int) -> range:
    return range(0, max(0, size - k + 1), _BLOCK)


def _block_hashes(bases: Bytes, k: int) -> Hashes:
    codes = CODES[bases]
    forward = _forward(codes & np.uint8(3), k)
    canonical = np.minimum(forward, _reverse_complement(forward, k))
    other = codes == OTHER
    if other.any():
        canonical = canonical[_is_whole(other, k)]
    return mix_in_place(canonical)


def kmer_codes(codes: Bytes, k: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the k-mer at each position in base 4, and whether it is whole.

    Args:
        codes: `evo_data.codes` of the bases, `[n]`.
        k: 1 to 32.

    Returns:
        uint64 `[n - k + 1]`, the first base most significant; and False where one of the k bases is
        not A, C, G or T, so that the number means nothing.
    """
    _check_k(k)
    return _forward(codes & np.uint8(3), k), _is_whole(codes == OTHER, k)


def _is_whole(other: NDArray[np.bool_], k: int) -> NDArray[np.bool_]:
    """Return at which positions none of the k bases is another letter."""
    before = np.concatenate(([0], np.cumsum(other)))
    return before[k:] == before[:-k]


def _forward(codes: Bytes, k: int) -> Hashes:
    """Return the k-mer at each position in base 4, its first base most significant."""
    length = 1
    words: NDArray[np.unsignedinteger] = codes
    while length < k:
        # Twice as long where that fits; else two that overlap, whose common bits are the same.
        longer = min(2 * length, k)
        unit = _UNITS[1 << (longer - 1).bit_length()]
        ahead = longer - length
        count = max(0, words.size - ahead)
        grown = words[:count].astype(unit)
        grown <<= unit(2 * ahead)
        grown |= words[ahead : ahead + count]
        words, length = grown, longer
    return words.astype(np.uint64)


def _reverse_complement(words: Hashes, k: int) -> Hashes:
    """Return the codes of the reverse complements of k-mers."""
    out: Hashes = words.byteswap()
    for shift, mask in ((4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333)):
        low = out & np.uint64(mask)
        low <<= np.uint64(shift)
        out >>= np.uint64(shift)
        out &= np.uint64(mask)
        out |= low
    np.invert(out, out=out)
    out >>= np.uint64(64 - 2 * k)
    return out


def _check_k(k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise EvoDataError(f"k {k} is not possible; give 1 to {MAX_K}")
