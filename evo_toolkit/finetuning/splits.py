"""Folds that no group straddles, clusters of near copies, and what training and test share.

Two sequences are near copies if a k-mer of theirs, on either strand, is the same; clusters are what
chains of such pairs connect. What is in one cluster is in one fold, so that nothing in a test part
has a copy of k bases in the training part.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import reverse_complement
from evo_data.codes import CODES
from evo_data.corpus.sources import detect_format, find_sources, read_source
from evo_data.kmers import MAX_K, Hashes, Lookup, kmer_codes, kmer_hashes, union
from evo_data.mixing import mix_in_place
from evo_toolkit.errors import UsageError
from evo_toolkit.finetuning.examples import Examples, ExamplesError

Indices = NDArray[np.int64]
SplitBy = Literal["auto", "group", "cluster", "site", "block", "none"]
SPLIT_BY: tuple[SplitBy, ...] = ("auto", "group", "cluster", "site", "block", "none")

CLUSTER_K = 31
"""Two unrelated genomes of bacterial size share a 31-mer by chance about once in 10^5 pairs."""

BLOCK = 1000
"""Length of the blocks of `block`, in bases."""

_LONGEST_K = 64
# Bases of a training genome that are hashed together.
_PIECE = 1 << 24


class Fold(NamedTuple):
    """Indices of what is trained on and of what is held out, each sorted."""

    train: Indices
    test: Indices


def sequence_hashes(sequence: str, k: int) -> Hashes:
    """Hashes of the distinct canonical k-mers of a sequence; of a shorter one, of the whole.

    A k-mer with an N has none.

    Args:
        k: 1 to 64. Beyond 32 two words of a k-mer are mixed into one, so that two different
            k-mers have one hash with probability 2^-64.
    """
    if not 1 <= k <= _LONGEST_K:
        raise UsageError(f"k-mers of {k} bases are not possible; give 1 to {_LONGEST_K}")
    bases = np.frombuffer(sequence.encode(), np.uint8)
    if not bases.size:
        return np.zeros(0, np.uint64)
    if bases.size < k:
        # Told from k-mers by its length: only copies of the whole match.
        return mix_in_place(sequence_hashes(sequence, bases.size) ^ np.uint64(bases.size))
    if k <= MAX_K:
        return union([kmer_hashes(bases, k)])
    codes = CODES[bases]
    forward, whole = _long_words(codes, k)
    turned_codes = CODES[np.frombuffer(reverse_complement(sequence.encode()), np.uint8)]
    backward, _ = _long_words(turned_codes, k)
    backward = backward[::-1]
    first = (forward[:, 0] < backward[:, 0]) | (
        (forward[:, 0] == backward[:, 0]) & (forward[:, 1] <= backward[:, 1])
    )
    chosen = np.where(first[:, None], forward, backward)[whole]
    return union([mix_in_place(chosen[:, 0].copy()) ^ chosen[:, 1]])


def _long_words(codes: NDArray[np.uint8], k: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """k-mers longer than 32 bases as two words `[n, 2]`, and which are whole."""
    head, whole_head = kmer_codes(codes, MAX_K)
    tail, whole_tail = kmer_codes(codes, k - MAX_K)
    n = codes.size - k + 1
    words = np.stack([head[:n], tail[MAX_K : MAX_K + n]], axis=1)
    return words, whole_head[:n] & whole_tail[MAX_K : MAX_K + n]


def cluster_sequences(sequences: Sequence[str], k: int = CLUSTER_K) -> Indices:
    """The cluster of each sequence, `[n]`, numbered from 0 in order of first members.

    Args:
        sequences: Upper-case.
        k: Length of the k-mer that two share, on either strand; sequences shorter than that belong
            together if they are the same.
    """
    hashes = [sequence_hashes(sequence, k) for sequence in sequences]
    owners = np.repeat(np.arange(len(sequences)), [h.size for h in hashes])
    joined = np.concatenate([np.zeros(0, np.uint64), *hashes])
    order = np.argsort(joined, kind="stable")
    same = joined[order[1:]] == joined[order[:-1]]
    return _components(len(sequences), owners[order[:-1]][same], owners[order[1:]][same])


def join_groups(*labels: Sequence[Hashable] | NDArray[np.generic]) -> Indices:
    """Groups in which whatever is together by any of several labellings is together, `[n]`."""
    size = len(labels[0])
    left, right = [], []
    for labelling in labels:
        first: dict[Hashable, int] = {}
        values = labelling.tolist() if isinstance(labelling, np.ndarray) else labelling
        for index, value in enumerate(values):
            left.append(first.setdefault(value, index))
            right.append(index)
    return _components(size, np.array(left, np.int64), np.array(right, np.int64))


def _components(size: int, left: Indices, right: Indices) -> Indices:
    """Connected components of pairs, numbered by first members."""
    label: Indices = np.arange(size)
    while True:
        low = np.minimum(label[left], label[right])
        lower = label.copy()
        # What stands for a component learns of the lower one, so chains halve at every turn.
        np.minimum.at(lower, label[left], low)
        np.minimum.at(lower, label[right], low)
        while (lower[lower] != lower).any():
            lower = lower[lower]
        if np.array_equal(lower, label):
            break
        label = lower
    numbers: Indices = np.unique(label, return_inverse=True)[1]
    return numbers


def split_groups(
    examples: Examples, by: SplitBy = "auto", *, k: int = CLUSTER_K, block: int = BLOCK
) -> tuple[Indices, str]:
    """What must stay together, `[n]`, and in words why.

    Args:
        by: "group" the examples' own groups; "cluster" sequences that share a k-mer, joined with the groups
            where there are any that are not contigs; "site" variants of the same bases; "block" stretches of
            the genome; "none" every example for itself; "auto" the groups where the user named some, else
            "site" for variants and "cluster" for all others, joined with the groups.
        k: Length of the k-mers of "cluster".
        block: Length of the stretches of "block", in bases.

    Raises:
        UsageError: where the examples lack what `by` needs.
    """
    grouped = examples.groups is not None and not _are_contigs(examples)
    if by == "auto":
        by = "cluster" if examples.kind != "variant" else "group" if grouped else "site"
    if by == "none":
        return np.arange(len(examples)), "no grouping"
    if by == "group":
        if examples.groups is None:
            raise UsageError(
                "the examples have no groups; name their column with --group, or split by cluster"
            )
        return join_groups(examples.groups), "contigs" if not grouped else "the given groups"
    if by == "cluster":
        found = cluster_sequences(examples.sequences, k)
        if grouped and examples.groups is not None:
            return join_groups(found, examples.groups), f"the given groups, joined where sequences share a {k}-mer"  # fmt: skip
        return found, f"clusters of sequences that share a {k}-mer"
    if examples.loci is None:
        raise UsageError(
            f"the examples have no places in a genome, which splitting by {by} needs; split by cluster or group"
        )
    if by == "site":
        keys: list[Hashable] = [(x.contig, x.start, x.end) for x in examples.loci]
        return join_groups(keys), "variants of the same bases"
    if block < 1:
        raise UsageError(f"blocks of {block} bases are not possible; give 1 or more")
    keys = [(x.contig, (x.start + x.end) // 2 // block) for x in examples.loci]
    return join_groups(keys), f"blocks of {block:,} bases"


def _are_contigs(examples: Examples) -> bool:
    return examples.loci is not None and examples.groups == tuple(x.contig for x in examples.loci)


def grouped_folds(
    groups: Indices, folds: int, *, strata: Indices | None = None, seed: int = 0
) -> list[Fold]:
    """Folds of nearly equal size that no group straddles, with about equal shares of each stratum.

    Groups are taken one after the other, the largest first (equals in drawn order), each into the
    fold in which it leaves the counts of the strata most even.

    Args:
        groups: The group of each example, `[n]`.
        folds: How many, 2 or more.
        strata: What is to be spread evenly (the class), integers from 0, `[n]`; None is one stratum.
        seed: Of the draw.

    Raises:
        UsageError: with fewer groups than folds.
    """
    if folds < 2:
        raise UsageError(f"{folds} folds cannot be; give 2 or more")
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if sizes.size < folds:
        raise UsageError(
            f"{sizes.size:,} groups cannot be spread over {folds} folds; give fewer folds, a finer grouping or more data"
        )
    of = np.zeros(index.size, np.int64) if strata is None else np.asarray(strata, np.int64)
    counts = np.zeros((sizes.size, int(of.max()) + 1))
    np.add.at(counts, (index, of), 1)
    total = counts.sum(axis=0)
    shares = counts / np.where(total, total, 1)
    drawn = np.random.default_rng(seed).permutation(sizes.size)
    fold_of = np.empty(sizes.size, np.int64)
    filled = np.zeros((folds, counts.shape[1]))
    for group in drawn[np.argsort(-sizes[drawn], kind="stable")]:
        # What is in a fold beyond its share counts squared, so the emptiest fold of these classes wins.
        cost = ((filled + shares[group]) ** 2 - filled**2).sum(axis=1)
        chosen = int(np.argmin(cost))
        fold_of[group] = chosen
        filled[chosen] += shares[group]
    assigned = fold_of[index]
    if np.unique(assigned).size < folds:
        raise UsageError(
            f"one group holds so many of the {groups.size:,} examples that {folds} folds would be empty; give fewer folds or a finer grouping"
        )
    everything = np.arange(groups.size)
    return [Fold(everything[assigned != f], everything[assigned == f]) for f in range(folds)]


def strata_of(examples: Examples) -> Indices:
    """What folds are balanced by: the class, the rarest label, or the quarter of the values."""
    targets = examples.targets
    if isinstance(targets, tuple):
        return np.zeros(len(examples), np.int64)
    if examples.kind == "multilabel":
        order = np.argsort(targets.sum(axis=0), kind="stable")
        found = np.zeros(len(examples), np.int64)
        for rank, label in enumerate(order[::-1].tolist()):
            found[targets[:, label]] = rank + 1
        return found
    if examples.is_classification:
        return np.asarray(targets, np.int64)
    cuts = np.quantile(targets, [0.25, 0.5, 0.75])
    return np.searchsorted(cuts, targets).astype(np.int64)


# What two sets of sequences share


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """What test sequences share with those that were trained on.

    Attributes:
        against: What they were compared with, in words.
        k: Length of the k-mers; either strand counts. 0: changed bases of variants were compared instead.
        kmers: Share of the test's distinct k-mers (or of its variants) that stand there too, 0 to 1.
        sequences: Number of test sequences with at least one.
        identical: Number of test sequences all of whose k-mers stand there.
        total: Number of test sequences.
    """

    against: str
    k: int
    kmers: float
    sequences: int
    identical: int
    total: int

    @property
    def found(self) -> bool:
        return self.sequences > 0

    def __str__(self) -> str:
        if not self.k:
            return f"{self.sequences:,} of {self.total:,} test variants are of bases that change in {self.against} too ({self.identical:,} are the same variant)"
        return (
            f"{self.sequences:,} of {self.total:,} test sequences share a {self.k}-mer with {self.against} "
            f"({self.identical:,} of them all they have; {self.kmers:.2%} of distinct {self.k}-mers)"
        )

    def json(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("against", "k", "kmers", "sequences", "identical", "total")}  # fmt: skip


def leak_report(
    train: Sequence[str],
    test: Sequence[str],
    *,
    k: int = CLUSTER_K,
    against: str = "the training part",
) -> Leak:
    """What test sequences share with training sequences.

    Args:
        k: Length of the k-mers, 1 to 64.
    """
    wanted = [sequence_hashes(sequence, k) for sequence in test]
    known = union([sequence_hashes(sequence, k) for sequence in train])

    def is_known(hashes: Hashes) -> NDArray[np.bool_]:
        if not known.size:
            return np.zeros(hashes.size, np.bool_)
        at = np.minimum(np.searchsorted(known, hashes), known.size - 1)
        return known[at] == hashes

    return _leak(wanted, is_known, k, against)


def corpus_leak_report(
    test: Sequence[str],
    genomes: Iterable[Path | str],
    *,
    k: int = CLUSTER_K,
    against: str = "the model's training genomes",
    report: Callable[[int], None] = lambda size: None,
) -> Leak:
    """What test sequences share with genomes, such as those that a model was trained on.

    The genomes are read once, a piece at a time; memory follows the test.

    Args:
        genomes: Files (FASTA, GenBank, EMBL; gzip) and folders of them.
        k: Length of the k-mers, 1 to 32.
        report: Called with the number of bases read since the last call.

    Raises:
        UsageError: for a longer k.
        EvoDataError: for a file that cannot be read.
    """
    if not 1 <= k <= MAX_K:
        raise UsageError(f"k-mers of {k} bases cannot be looked up in genomes; give 1 to {MAX_K}")
    wanted = [sequence_hashes(sequence, k) for sequence in test]
    distinct = union(wanted)
    found = np.zeros(distinct.size, np.bool_)
    if distinct.size:
        lookup = Lookup(distinct)
        for source in find_sources([*genomes]):
            for record in read_source(source.path, detect_format(source.path)):
                bases = np.frombuffer(record.letters, np.uint8)
                for start in range(0, max(1, bases.size - k + 1), _PIECE):
                    hashes = kmer_hashes(bases[start : start + _PIECE + k - 1], k)
                    found[lookup.positions(union([lookup.candidates(hashes)]))] = True
                report(bases.size)

    def is_known(hashes: Hashes) -> NDArray[np.bool_]:
        return found[np.searchsorted(distinct, hashes)]

    return _leak(wanted, is_known, k, against)


def _leak(
    wanted: Sequence[Hashes], is_known: Callable[[Hashes], NDArray[np.bool_]], k: int, against: str
) -> Leak:
    known = [is_known(hashes) for hashes in wanted]
    distinct = union(wanted)
    return Leak(
        against=against,
        k=k,
        kmers=float(is_known(distinct).mean()) if distinct.size else 0.0,
        sequences=sum(bool(values.any()) for values in known),
        identical=sum(bool(values.size and values.all()) for values in known),
        total=len(wanted),
    )


def require_same_classes(train: Examples, test: Examples) -> None:
    """Raise unless a test set has the task and the classes of what is trained on, in the same order.

    Raises:
        UsageError: with the classes of both.
    """
    if (test.kind, test.label_names) != (train.kind, train.label_names):
        raise UsageError(
            f"the test set has the classes {', '.join(test.label_names)} and the training set {', '.join(train.label_names)}; give both the same"
        )


def require_trainable(examples: Examples, folds: Sequence[Fold]) -> None:
    """Raise unless every class is in the training part of every fold.

    Raises:
        ExamplesError: naming the class.
    """
    if not examples.is_classification:
        return
    targets = np.asarray(examples.targets)
    for fold in folds:
        counts = np.bincount(targets[fold.train], minlength=len(examples.label_names))
        if not counts.all():
            name = examples.label_names[int(counts.argmin())]
            raise ExamplesError(
                f"class {name!r} stands in one group alone, so it cannot be both trained on and held out; leave it out, or give a finer grouping"
            )
