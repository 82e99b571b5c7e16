"""Training windows of a corpus by arithmetic: nothing is stored but where segments begin.

A window is L + 1 tokens: L inputs and, one further on, L targets. A segment (a record, or the part
of it that a split leaves) of n bases holds (n - 1) // L whole windows, neighbours sharing one base,
and a rest. Rests, and records shorter than a window, are packed several to a window with EOD
between them and padding behind, so that within an epoch every base but the first of its segment is
a target once. (Read in reverse, a window's targets are one base further upstream, so a base on the
border of two windows of different strands can be a target twice or not at all.)

Only the loss knows of the borders within a packed window: the first base behind an EOD is not
scored. The model's state and its attention run across EOD, as in the training of Evo 2.

Tokens are upper-case bytes; what was lower-case (soft-masked) in the corpus shows in the weights.

Legend: L context length in tokens, V windows of an epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import complement_table
from evo_data.corpus import Corpus
from evo_data.errors import EvoDataError
from evo_data.mixing import GOLDEN, MASK
from evo_data.packing import pack_stretches
from evo_data.permutation import keyed_hash, permute
from evo_data.splits import Segment, whole_records
from evo_data.tags import has_control_letters, tag_mask
from evo_data.tokenizer import ByteTokenizer

EOD = ByteTokenizer.eod_id
PAD = ByteTokenizer.pad_id

SOFT_MASK_WEIGHT = 0.1
"""Loss weight of a soft-masked base, as in the training of Evo 2 (`lowercase_loss_reweighting`)."""

Strands = Literal["forward", "random", "both"]
STRANDS = ("forward", "random", "both")

# A weight is a whole number of these, so that which window comes is exact integer arithmetic.
_UNIT = 2**40
_MOST_WINDOWS = 2**48
_GREATEST_WEIGHT = 1_000_000
# What a keyed number is for; part of the key, and so never to be changed.
_FOR_ORDER, _FOR_STRAND, _FOR_CHOICE, _FOR_GRID = 1, 2, 3, 4

_COMPLEMENT = np.frombuffer(complement_table(), np.uint8)
_UPPER = np.frombuffer(bytes(range(256)).upper(), np.uint8)


class Piece(NamedTuple):
    """A stretch of the genome within a window.

    Attributes:
        record: Index in `Corpus.records`.
        start, stop: 0-based half-open, forward strand of the record.
        at: Index in `Window.tokens` of the base that is read first.
    """

    record: int
    start: int
    stop: int
    at: int


@dataclass(frozen=True, slots=True)
class Window:
    """What one row of a batch is made of.

    Attributes:
        tokens: uint8 `[L + 1]`; inputs are `tokens[:-1]`, targets `tokens[1:]`.
        target_weight: float32 `[L]`, that of `tokens[1:]` in the loss: 1 for A, C, G and T, less
            for a soft-masked one; 0 for everything else (other letters, tags, EOD, padding) and
            for a base that nothing of its own stretch stands before.
        pieces: Where the bases come from, in the order of reading.
        strand: "+", or "-" if every piece is read as its reverse complement.
        group: Index in `TrainingWindows.groups`.
    """

    tokens: NDArray[np.uint8]
    target_weight: NDArray[np.float32]
    pieces: tuple[Piece, ...]
    strand: str
    group: int


class _Stratum(NamedTuple):
    """Windows of equal weight and group: whole ones of a range of segments, then packs.

    Attributes:
        group: Index of the group.
        first_segment: Index of the first segment.
        whole_before: Whole windows in the segments before each, and in all of them, `[S + 1]`.
        first_pack: Index of the first pack.
        num_windows: Whole windows and packs.
        step: Weight of a window, in `_UNIT`s.
    """

    group: int
    first_segment: int
    whole_before: NDArray[np.int64]
    first_pack: int
    num_windows: int
    step: int


class TrainingWindows:
    """The windows of a corpus, V to an epoch; `window(epoch, i)` is a pure function.

    Which windows an epoch holds follows their weight: each comes as often as its weight says, with
    a keyed choice for the fraction, spread evenly over the genome and over the epochs (systematic
    sampling with an offset that steps by the golden ratio). V is the same in every epoch.

    Attributes:
        groups: Names of the groups; `Window.group` counts in them.
        digest: SHA-256 of everything that decides which window has which number.
        num_targets: Bases that are targets when every window comes once (whatever their weights).
        num_windows: Different windows.
        num_packed: Of these, those of more than one piece or with padding.
        num_left_out: Segments of less than two bases, in which nothing can be predicted, and
            segments of genomes of weight 0.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        context_length: int,
        segments: Sequence[Segment] | None = None,
        cluster_weights: bool = True,
        weights: Mapping[str, float] | None = None,
        strands: Strands = "forward",
        seed: int = 0,
        shuffle: bool = True,
        shift: bool = False,
        pack_short: bool = True,
        soft_mask_weight: float = SOFT_MASK_WEIGHT,
        tags: Mapping[str, str] | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Plan the windows.

        Args:
            corpus: Where the bases are.
            context_length: Tokens that a model reads at once, L.
            segments: The parts of it to use, such as `Split.train`; None means all of it.
            cluster_weights: Whether a genome of a cluster of n near strains counts 1/n.
            weights: Factors of the weight by name of genome or of group (a genome's own comes
                first). A window of weight 2 comes twice in an epoch, one of 0.25 in one of four.
            strands: "forward"; "random" for a keyed choice per window; "both" for every window on
                either strand.
            seed: Chooses order, strands, and which windows stand for fractions of weights.
            shuffle: Whether `i` is a position in a keyed order that is new in every epoch, or that
                of the corpus.
            shift: Whether a keyed number of a segment's windows, new in every epoch, lies behind
                its rest instead of before it, so that windows do not always begin alike.
            pack_short: Whether rests and short records share windows; else each has its own.
            soft_mask_weight: Weight of a lower-case target.
            tags: Text by name of genome that is put before each of its stretches, without weight,
                such as a lineage between bars (upper-cased like all tokens). Whole windows hold that
                many bases less.
            groups: Names in which `Window.group` counts; None means those of the corpus, sorted.

        Raises:
            EvoDataError: if an argument is out of range, names something that is not there, or
                leaves no window.
        """
        if context_length < 1:
            raise EvoDataError(
                f"context_length {context_length} is too small; at least 1 is needed"
            )
        if strands not in STRANDS:
            raise EvoDataError(f"strands {strands!r} is not known; use {', '.join(STRANDS)}")
        if not 0 <= soft_mask_weight <= 1:
            raise EvoDataError(f"soft_mask_weight {soft_mask_weight} is not within 0 to 1")
        keyed_hash((seed,))  # refuses what is no 64-bit number
        self.corpus = corpus
        self.context_length = context_length
        self.strands = strands
        self.seed = seed
        self.shuffle = shuffle
        self.shift = shift
        own_groups = {genome.group for genome in corpus.genomes}
        self.groups = sorted(own_groups) if groups is None else list(groups)
        missing = sorted(own_groups.difference(self.groups))
        if missing:
            raise EvoDataError(f"groups {self.groups} do not name {missing[0]!r} of the corpus")
        self._weight_of = _byte_weights(soft_mask_weight)
        self._tags = _tag_bytes(corpus, tags)
        longest = max((tag.size for tag in self._tags), default=0)
        self._stride = context_length - longest
        if self._stride < 1:
            raise EvoDataError(
                f"a tag of {longest} letters leaves no room in a context of {context_length}; "
                "shorten it or take a longer context"
            )
        self._plan(
            segments if segments is not None else whole_records(corpus),
            _genome_weights(corpus, cluster_weights, weights),
            pack_short,
        )
        self.digest = self._digest()

    def __len__(self) -> int:
        """V, the windows of an epoch."""
        return self._epoch_length * (2 if self.strands == "both" else 1)

    def window(self, epoch: int, i: int) -> Window:
        """Return the window at position `i` of an epoch.

        Args:
            epoch: From 0.
            i: From 0 to V - 1.

        Raises:
            EvoDataError: if there is no such position, or the corpus cannot be read.
        """
        if epoch < 0 or not 0 <= i < len(self):
            raise EvoDataError(f"no window {i} of epoch {epoch}; there are {len(self)}, from 0")
        k = permute(i, len(self), (self.seed, epoch, _FOR_ORDER)) if self.shuffle else i
        if self.strands == "both":
            k, reverse = k >> 1, bool(k & 1)
        else:
            reverse = self.strands == "random" and bool(
                keyed_hash((self.seed, epoch, i, _FOR_STRAND)) >> 63
            )
        group, stretches = self._stretches(epoch, k)
        return self._assemble(stretches, reverse, group)

    def sample(self, number: int) -> Window:
        """Return window `number % V` of epoch `number // V`: the samples of a run, counted on."""
        return self.window(*divmod(number, len(self)))

    # ---- planning

    def _plan(
        self, segments: Sequence[Segment], genome_weights: list[float], pack_short: bool
    ) -> None:
        """Lay out the strata, each with its whole windows before its packs."""
        chosen = self._by_weight(segments, genome_weights)
        kept = [segment for part in chosen.values() for segment in part]
        self.num_left_out = len(segments) - len(kept)
        if not kept:
            raise EvoDataError(
                f"no window can be cut: of {len(segments)} stretches of bases none has two or more "
                "and a weight above 0; give more genomes"
            )
        self._record = np.array([segment.record for segment in kept], np.int64)
        self._start = np.array([segment.start for segment in kept], np.int64)
        targets = np.array([segment.stop - segment.start - 1 for segment in kept], np.int64)
        self._whole, self._rest = targets // self._stride, targets % self._stride
        self.num_targets = int(targets.sum())

        self._strata: list[_Stratum] = []
        self._stratum_ends: list[int] = []
        pack_sizes: list[int] = []
        packed: list[int] = []  # segments whose rests lie in the packs, pack after pack
        first = end = 0
        for (group, weight), part in chosen.items():
            whole = self._whole[first : first + len(part)]
            rests = first + np.flatnonzero(self._rest[first : first + len(part)])
            sizes = self._rest[rests] + 1 + self._tag_sizes(rests)
            if pack_short:
                packs = pack_stretches(sizes.tolist(), self.context_length + 1)
            else:
                packs = [[at] for at in range(rests.size)]
            step = max(1, round(weight * _UNIT))
            num_windows = int(whole.sum()) + len(packs)
            self._strata.append(
                _Stratum(
                    group=group,
                    first_segment=first,
                    whole_before=np.concatenate(([0], np.cumsum(whole))),
                    first_pack=len(pack_sizes),
                    num_windows=num_windows,
                    step=step,
                )
            )
            pack_sizes += [len(pack) for pack in packs]
            packed += [int(rests[at]) for pack in packs for at in pack]
            end += num_windows * step
            self._stratum_ends.append(end)
            first += len(part)
        self._pack_before = np.concatenate(([0], np.cumsum(np.array(pack_sizes, np.int64))))
        self._packed = np.array(packed, np.int64)
        self.num_packed = len(pack_sizes)
        self.num_windows = sum(stratum.num_windows for stratum in self._strata)
        self._total = end
        self._epoch_length = max(1, (end + _UNIT // 2) // _UNIT)
        if self._epoch_length > _MOST_WINDOWS:
            raise EvoDataError(
                f"the weights make an epoch of {self._epoch_length:.2g} windows; a weight says how "
                "often a window comes in an epoch: give smaller ones"
            )

    def _by_weight(
        self, segments: Sequence[Segment], genome_weights: list[float]
    ) -> dict[tuple[int, float], list[Segment]]:
        """Return the segments that windows can be cut from, by group and weight."""
        group_of = {name: at for at, name in enumerate(self.groups)}
        chosen: dict[tuple[int, float], list[Segment]] = {}
        for segment in segments:
            record = self.corpus.records[segment.record]
            weight = genome_weights[record.genome]
            if not 0 <= segment.start <= segment.stop <= record.length:
                raise EvoDataError(
                    f"segment [{segment.start}, {segment.stop}) is not within record "
                    f"{record.name} of {record.length} bases"
                )
            if segment.stop - segment.start >= 2 and weight > 0:
                group = group_of[self.corpus.genomes[record.genome].group]
                chosen.setdefault((group, weight), []).append(segment)
        return chosen

    def _digest(self) -> str:
        settings = (self.context_length, self._stride, self.strands, self.seed, self.shuffle, self.shift)  # fmt: skip
        digest = sha256(repr((_content(self.corpus), settings, self._total)).encode())
        for stratum in self._strata:
            digest.update(repr((stratum.num_windows, stratum.step)).encode())
        for array in (self._record, self._start, self._whole, self._rest, self._packed):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _tag_sizes(self, segments: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self._tags:
            return np.zeros(segments.size, np.int64)
        sizes = np.array([tag.size for tag in self._tags], np.int64)
        genomes = [self.corpus.records[record].genome for record in self._record[segments]]
        return sizes[genomes] if genomes else np.zeros(0, np.int64)

    # ---- one window

    def _stretches(self, epoch: int, k: int) -> tuple[int, list[Segment]]:
        """Group and stretches of the genome of the k-th choice of an epoch, on no strand yet."""
        # Points at equal distances on a line on which each window takes as much as it weighs.
        offset = keyed_hash((self.seed, _FOR_CHOICE)) + epoch * GOLDEN & MASK
        point = (k * self._total + (offset * self._total >> 64)) // self._epoch_length
        at = bisect_right(self._stratum_ends, point)
        stratum = self._strata[at]
        index = (point - (self._stratum_ends[at - 1] if at else 0)) // stratum.step
        num_whole = int(stratum.whole_before[-1])
        if index < num_whole:
            below = int(np.searchsorted(stratum.whole_before, index, side="right")) - 1
            segment, number = stratum.first_segment + below, index - stratum.whole_before[below]
            return stratum.group, [self._whole_window(epoch, segment, int(number))]
        pack = stratum.first_pack + index - num_whole
        members = self._packed[self._pack_before[pack] : self._pack_before[pack + 1]]
        return stratum.group, [self._rest_of(epoch, int(segment)) for segment in members]

    def _windows_before_rest(self, epoch: int, segment: int) -> int:
        whole = int(self._whole[segment])
        if not self.shift or not whole:
            return whole
        return keyed_hash((self.seed, epoch, segment, _FOR_GRID)) * (whole + 1) >> 64

    def _whole_window(self, epoch: int, segment: int, index: int) -> Segment:
        start = int(self._start[segment]) + index * self._stride
        if index >= self._windows_before_rest(epoch, segment):
            start += int(self._rest[segment])
        return Segment(int(self._record[segment]), start, start + self._stride + 1)

    def _rest_of(self, epoch: int, segment: int) -> Segment:
        before = self._windows_before_rest(epoch, segment)
        start = int(self._start[segment]) + before * self._stride
        return Segment(int(self._record[segment]), start, start + int(self._rest[segment]) + 1)

    def _assemble(self, stretches: list[Segment], reverse: bool, group: int) -> Window:
        bases = [self.corpus.read(*stretch) for stretch in stretches]
        # A tag within the sequence has no reverse complement.
        tagged = [has_control_letters(raw) for raw in bases]
        reverse = reverse and not any(tagged)
        if reverse:
            stretches, bases = stretches[::-1], [_COMPLEMENT[raw[::-1]] for raw in bases[::-1]]
        tokens = np.full(self.context_length + 1, PAD, np.uint8)
        weights = np.zeros(self.context_length + 1, np.float32)
        pieces = []
        at = 0
        for stretch, raw, has_tags in zip(stretches, bases, tagged, strict=True):
            if at:
                tokens[at] = EOD
                at += 1
            if self._tags:
                tag = self._tags[self.corpus.records[stretch.record].genome]
                tokens[at : at + tag.size] = tag
                at += tag.size
            end = at + raw.size
            tokens[at:end] = _UPPER[raw]
            weights[at:end] = self._weight_of[raw]
            weights[at] = 0
            if has_tags:
                weights[at:end][tag_mask(raw)] = 0
                weights[at + 1 : end][raw[:-1] == EOD] = 0
            pieces.append(Piece(*stretch, at))
            at = end
        return Window(
            tokens=tokens,
            target_weight=weights[1:],
            pieces=tuple(pieces),
            strand="-" if reverse else "+",
            group=group,
        )


def _content(corpus: Corpus) -> str:
    """A checksum of the records that does not depend on how they are stored, where they have one."""
    if not all(record.sha256 for record in corpus.records):
        return corpus.digest
    text = "".join(f"{record.sha256} {record.length}\n" for record in corpus.records)
    return sha256(text.encode()).hexdigest()


def _byte_weights(soft_mask_weight: float) -> NDArray[np.float32]:
    table = np.zeros(256, np.float32)
    table[[*b"ACGT"]] = 1.0
    table[[*b"acgt"]] = soft_mask_weight
    return table


def _tag_bytes(corpus: Corpus, tags: Mapping[str, str] | None) -> list[NDArray[np.uint8]]:
    """Tag of each genome, or an empty list when there is none at all."""
    if not tags:
        return []
    names = [genome.name for genome in corpus.genomes]
    _refuse_unknown(tags, names, "tags")
    for name, tag in tags.items():
        if not tag.isascii() or any(ord(letter) <= PAD for letter in tag):
            raise EvoDataError(f"tag of {name} is {tag!r}; only printable ASCII is possible")
    return [_UPPER[np.frombuffer(tags.get(name, "").encode(), np.uint8)] for name in names]


def _genome_weights(
    corpus: Corpus, cluster_weights: bool, factors: Mapping[str, float] | None
) -> list[float]:
    factors = factors or {}
    groups = {genome.group for genome in corpus.genomes}
    _refuse_unknown(factors, [*(g.name for g in corpus.genomes), *sorted(groups)], "weights")
    for name, factor in factors.items():
        if not 0 <= factor <= _GREATEST_WEIGHT:  # neither is NaN
            raise EvoDataError(
                f"weight of {name} is {factor}; give a number from 0 to {_GREATEST_WEIGHT}"
            )
    weights = []
    for genome in corpus.genomes:
        factor = factors.get(genome.name, factors.get(genome.group, 1.0))
        weights.append(factor * (genome.weight if cluster_weights else 1.0))
    return weights


def _refuse_unknown(given: Mapping[str, object], known: Sequence[str], what: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise EvoDataError(f"{what}: {unknown[0]!r} is not in the corpus, which has {some}")
