"""Labelled sequences: what every way to learn from them takes.

A task is of one kind, which says what the targets are:

    binary      one of two classes               int64 [n], 0 or 1
    multiclass  one of K classes                 int64 [n], 0 to K - 1
    multilabel  any of K classes                 bool [n, K]
    regression  a number                         float64 [n]
    per_base    one of K classes for every base  n times int64 [L]; -1 is a base without a label
    track       K numbers for every base         n times float32 [L, K]; NaN is a base without a value
    variant     a class or a number for an alternate allele: int64 [n] with label names, float64 [n] without

Sequences are upper-case A, C, G, T and N, in reading direction: an interval on "-" is read as its
reverse complement, and so are its targets. Everything is checked when it is made, and each message
names the file and line of the row it is about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import is_iupac
from evo_data.interval import Interval
from evo_data.windows import StrandWindow
from evo_toolkit.errors import EvoError

TaskKind = Literal[
    "binary", "multiclass", "multilabel", "regression", "per_base", "track", "variant"
]
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)

Targets = NDArray[Any] | tuple[NDArray[Any], ...]

UNLABELLED = -1
"""The target of a base without a label in `per_base`."""

NO_CLASS = "none"
"""The first class of per-base labels made of features: a base in none of them."""

_TO_ACGTN = str.maketrans("ACGTUacgtuRYSWKMBDHVNryswkmbdhvn", "ACGTTACGTT" + "N" * 11 + "N" * 11)
# What two classes are called when they are called "no" and "yes"; the second is positive.
_YES_NO = (
    ("0", "1"), ("0.0", "1.0"), ("false", "true"), ("no", "yes"), ("n", "y"), ("neg", "pos"), ("-", "+"),
    ("negative", "positive"), ("benign", "pathogenic"), ("control", "case"),
)  # fmt: skip
# What files of measurements and VCF write where there is no value; no class is called so.
_NO_VALUE = frozenset({"", ".", "nan"})
_MOST_LISTED = 8
# Values further from the median than so many interquartile ranges rule a least-squares fit.
_MANY_RANGES = 20


class ExamplesError(EvoError):
    """Labelled data that cannot be used as they are; names the file and line where there is one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
    """n labelled sequences of one task.

    Attributes:
        kind: Of the task; see the module's text for the targets of each.
        ids: Of each sequence; no two are the same.
        sequences: Upper-case A, C, G, T, N in reading direction. Of a variant: the reference window of
            its first strand.
        targets: By kind.
        label_names: Of the K classes, labels or tracks; of `binary` the negative one first. Empty for
            `regression`, and for a `variant` whose target is a number.
        groups: What must stay together in a split (a gene, a chromosome), or None.
        places: File and line of each, for messages.
        loci: Where each lies in its genome, or None. Of a variant: the bases that change.
        windows: Of each variant, the reference and alternate window of every strand; else empty.
        notes: What a user should know about the data, a line each.

    Raises:
        ExamplesError: if the parts do not go together.
    """

    kind: TaskKind
    ids: tuple[str, ...]
    sequences: tuple[str, ...]
    targets: Targets
    label_names: tuple[str, ...] = ()
    groups: tuple[str, ...] | None = None
    places: tuple[str, ...]
    loci: tuple[Interval, ...] | None = None
    windows: tuple[tuple[StrandWindow, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in TASK_KINDS:
            raise ExamplesError(f"task {self.kind!r} is not known; use {', '.join(TASK_KINDS)}")
        n = len(self.ids)
        counts = {
            "sequences": len(self.sequences), "targets": len(self.targets), "places": len(self.places),
            "groups": n if self.groups is None else len(self.groups),
            "loci": n if self.loci is None else len(self.loci),
            "windows": len(self.windows) if self.kind == "variant" else n,
        }  # fmt: skip
        for name, count in counts.items():
            if count != n:
                raise ExamplesError(f"{n:,} ids and {count:,} {name} do not go together")
        _refuse_twice(self.ids, self.places)
        for values, sequence, place in zip(
            self.targets if isinstance(self.targets, tuple) else (),
            self.sequences,
            self.places,
            strict=False,
        ):
            if len(values) != len(sequence):
                raise ExamplesError(
                    f"{place}: {len(values):,} targets for a sequence of {len(sequence):,} bases; one for each base is needed"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_classification(self) -> bool:
        """Whether each example belongs to exactly one class."""
        return self.kind in ("binary", "multiclass") or (
            self.kind == "variant" and bool(self.label_names)
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that is learned from: ids, sequences, windows, targets, names, groups."""
        found = hashlib.sha256()

        def add(text: str) -> None:
            data = text.encode()
            found.update(len(data).to_bytes(8, "little") + data)

        add(self.kind)
        for names in (self.ids, self.sequences, self.label_names, self.groups or ()):
            add(str(len(names)))
            for name in names:
                add(name)
        for windows in self.windows:
            for window in windows:
                add(f"{window.strand} {window.fork}")
                found.update(window.ref.tobytes() + window.alt.tobytes())
        parts = self.targets if isinstance(self.targets, tuple) else (self.targets,)
        for values in parts:
            add(f"{values.dtype.str} {values.shape}")
            found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()

    def subset(self, indices: Sequence[int] | NDArray[Any]) -> Examples:
        """The examples at these indices (or where a mask is True), in their order."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        at = chosen.tolist()

        def of(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[i] for i in at)

        return replace(
            self,
            ids=of(self.ids),
            sequences=of(self.sequences),
            targets=of(self.targets) if isinstance(self.targets, tuple) else self.targets[chosen],
            groups=None if self.groups is None else of(self.groups),
            places=of(self.places),
            loci=None if self.loci is None else of(self.loci),
            windows=of(self.windows) if self.windows else (),
        )

    def require_length(self, most: int, why: str) -> None:
        """Raise if a sequence is longer than so many bases.

        Args:
            why: What the limit is, for the message.

        Raises:
            ExamplesError: naming the first that is, and how many are.
        """
        long = [i for i, sequence in enumerate(self.sequences) if len(sequence) > most]
        if long:
            first = long[0]
            raise ExamplesError(
                f"{self.places[first]}: sequence {self.ids[first]!r} has {len(self.sequences[first]):,} bases, and {why} is {most:,}; "
                f"cut it, or leave it out ({len(long):,} of {len(self):,} are too long)"
            )

    def require_classes(self, least: int = 2) -> None:
        """Raise unless every class has at least so many examples, and there are two or more.

        Raises:
            ExamplesError: naming the class.
        """
        if not len(self):
            raise ExamplesError("there is no example; give some")
        if self.is_classification:
            counts = np.bincount(np.asarray(self.targets), minlength=len(self.label_names))
            present = np.flatnonzero(counts)
            if len(present) < 2:
                only = f", {self.label_names[present[0]]!r}" if len(present) else ""
                raise ExamplesError(
                    f"all {len(self):,} examples have one label{only}; two classes are needed to tell apart"
                )
            few = int(counts.argmin())
            if counts[few] < least:
                raise ExamplesError(
                    f"class {self.label_names[few]!r} has {int(counts[few])} example{'s' if counts[few] != 1 else ''}, and {least} are needed; add some, or leave the class out"
                )
        elif self.kind == "multilabel":
            of_each = np.asarray(self.targets).sum(axis=0)
            for name, count in zip(self.label_names, of_each.tolist(), strict=True):
                if not least <= count <= len(self) - least:
                    raise ExamplesError(
                        f"label {name!r} is on {count:,} of {len(self):,} examples; at least {least} with and {least} without it are needed"
                    )
        elif isinstance(self.targets, np.ndarray) and np.ptp(self.targets) == 0:
            raise ExamplesError(
                f"all {len(self):,} examples have the same value; there is nothing to learn"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RawExample:
    """A row as it was read, before all rows together say what the labels are.

    Attributes:
        id: Unique among the rows.
        sequence: Of IUPAC codes in any case.
        labels: Texts, one for each label column; empty where the label is per base.
        group: What it must stay together with, or None.
        place: File and line.
        locus: Where it lies in its genome, or None.
        windows: Of a variant.
    """

    id: str
    sequence: str
    labels: tuple[str, ...]
    place: str
    group: str | None = None
    locus: Interval | None = None
    windows: tuple[StrandWindow, ...] = ()


def clean_sequence(text: str, place: str) -> str:
    """Return a sequence as models take it: upper-case, U as T, ambiguity codes as N.

    Case is dropped here once and for all: files that are soft-masked, or lower-case in one class
    alone, would otherwise tell the label by it.

    Raises:
        ExamplesError: if it is empty or holds something else than IUPAC codes.
    """
    text = text.strip()
    if not is_iupac(text):
        odd = next((c for c in text if not is_iupac(c)), None)
        what = "is empty" if odd is None else f"holds {odd!r}"
        raise ExamplesError(f"{place}: the sequence {what}; write the letters A, C, G, T and N")
    return text.translate(_TO_ACGTN)


def examples_of(
    rows: Iterable[RawExample],
    kind: TaskKind,
    *,
    label_columns: Sequence[str] = ("label",),
    classes: Sequence[str] = (),
    source: str,
) -> Examples:
    """Return the examples that rows make, their labels understood.

    Args:
        rows: In the order of the file.
        kind: binary, multiclass, multilabel, regression, variant, or per_base with one letter of the
            label for each base.
        label_columns: What the label columns are called; of `multilabel` several, or one with names
            separated by `;` or `,` (an empty one is no label at all).
        classes: Names and order of the classes; none given means those that occur, sorted (of
            `binary`, no before yes, 0 before 1). A row of another class is an error.
        source: What was read, for messages.

    Raises:
        ExamplesError: if there is no row, or a label is missing or not understood.
    """
    read = list(rows)
    if not read:
        raise ExamplesError(f"{source}: no example in it; one row for each sequence is needed")
    targets: Targets
    names: tuple[str, ...]
    if kind == "multilabel":
        targets, names = _multilabel(read, label_columns, classes)
    else:
        if len(label_columns) != 1:
            raise ExamplesError(
                f"task {kind} has one label, and {len(label_columns)} are named ({', '.join(label_columns)}); name one, or use multilabel"
            )
        # Of labels for each base a dot, and a word of those letters, are labels; numbers say more below.
        has_words = kind not in ("per_base", "regression")
        _require_labels(read, label_columns[0], _NO_VALUE if has_words else {""})
        texts = [row.labels[0].strip() for row in read]
        as_numbers = kind == "regression" or (
            kind == "variant" and not classes and _are_measurements(texts)
        )
        if kind == "per_base":
            targets, names = _per_letter(read, texts, classes)
        elif as_numbers:
            targets, names = _numbers(read, texts, label_columns[0]), ()
        else:
            targets, names = _classes(read, texts, kind, classes)
    groups = [row.group for row in read]
    loci = [row.locus for row in read]
    found = Examples(
        kind=kind,
        ids=tuple(row.id for row in read),
        sequences=tuple(clean_sequence(row.sequence, row.place) for row in read),
        targets=targets,
        label_names=names,
        groups=tuple(g for g in groups if g is not None) if None not in groups else None,
        places=tuple(row.place for row in read),
        loci=tuple(x for x in loci if x is not None) if None not in loci else None,
        windows=tuple(row.windows for row in read) if kind == "variant" else (),
    )
    return replace(found, notes=_notes(found))


def _require_labels(rows: Sequence[RawExample], column: str, none: Collection[str]) -> None:
    missing = [row for row in rows if row.labels[0].strip().lower() in none]
    if missing:
        raise ExamplesError(
            f"{missing[0].place}: {column} is missing ({len(missing):,} of {len(rows):,} rows have none); fill it in, or leave the row out"
        )


def _are_measurements(texts: Sequence[str]) -> bool:
    """Whether labels are numbers, and more than classes would be."""
    try:
        values = {float(text) for text in texts}
    except ValueError:
        return False
    return any(value != int(value) for value in values if np.isfinite(value)) or len(values) > 20


def _numbers(rows: Sequence[RawExample], texts: Sequence[str], column: str) -> NDArray[np.float64]:
    values = np.empty(len(texts))
    for index, text in enumerate(texts):
        try:
            values[index] = float(text)
        except ValueError:
            values[index] = np.nan
        if not np.isfinite(values[index]):
            raise ExamplesError(
                f"{rows[index].place}: {column} {text[:40]!r} is no number; give one, or leave the row out"
            )
    return values


def _classes(
    rows: Sequence[RawExample], texts: Sequence[str], kind: TaskKind, classes: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    names = tuple(classes) or _sorted_classes(set(texts))
    parts = [part for name in names for part in name.split("|")]
    if len(set(parts)) < len(parts):
        raise ExamplesError(f"class names {', '.join(names)} are not all different")
    index_of = {part: index for index, name in enumerate(names) for part in (name, *name.split("|"))}  # fmt: skip
    for row, text in zip(rows, texts, strict=True):
        if text not in index_of:
            raise ExamplesError(
                f"{row.place}: label {text[:40]!r} is none of the classes {_listed(names)}"
            )
    if len({index_of[text] for text in texts}) == 1:
        raise ExamplesError(
            f"all {len(texts):,} examples have one label, {texts[0][:40]!r}; two classes are needed to tell apart"
        )
    if kind == "binary" and len(names) != 2 and classes:
        raise ExamplesError(
            f"{len(names)} classes are named ({_listed(names)}); binary has two: name two, write A|B for one class of both labels, or use the task multiclass"
        )
    if kind == "binary" and len(names) != 2:
        third = next(row for row, text in zip(rows, texts, strict=True) if index_of[text] > 1)
        raise ExamplesError(
            f"{third.place}: label {names[index_of[third.labels[0].strip()]][:40]!r} is a third class; binary has two (seen: {_listed(names)}); use the task multiclass, or regression for numbers"
        )
    if len(names) > max(20, len(texts) // 3) and not classes:
        raise ExamplesError(
            f"{len(names):,} classes for {len(texts):,} examples; if the labels are numbers use the task regression"
        )
    return np.array([index_of[text] for text in texts], np.int64), names


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    for pair in _YES_NO:
        if {name.lower() for name in names} == set(pair):
            return tuple(sorted(names, key=lambda name: pair.index(name.lower())))
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(sorted(names))


def _multilabel(
    rows: Sequence[RawExample], columns: Sequence[str], classes: Sequence[str]
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    if len(columns) > 1:
        values = np.zeros((len(rows), len(columns)), np.bool_)
        known = {"0": False, "0.0": False, "false": False, "no": False, "1": True, "1.0": True, "true": True, "yes": True}  # fmt: skip
        for index, row in enumerate(rows):
            for at, text in enumerate(row.labels):
                value = known.get(text.strip().lower())
                if value is None:
                    raise ExamplesError(
                        f"{row.place}: {columns[at]} {text[:40]!r} is not 0 or 1 (or false, true, no, yes)"
                    )
                values[index, at] = value
        return values, tuple(columns)
    sets = [
        {name.strip() for name in row.labels[0].replace(";", ",").split(",") if name.strip()}
        for row in rows
    ]
    names = tuple(classes) or tuple(sorted(set().union(*sets)))
    if not names:
        raise ExamplesError(
            f"{rows[0].place}: no row has a label in {columns[0]}; write names separated by ; or name several columns of 0 and 1"
        )
    for row, labels in zip(rows, sets, strict=True):
        if labels - set(names):
            raise ExamplesError(
                f"{row.place}: label {min(labels - set(names))[:40]!r} is none of {_listed(names)}"
            )
    return np.array([[name in labels for name in names] for labels in sets]), names


def _per_letter(
    rows: Sequence[RawExample], texts: Sequence[str], classes: Sequence[str]
) -> tuple[tuple[NDArray[np.int64], ...], tuple[str, ...]]:
    """Per-base labels written as one letter for each base; `.` is no label."""
    names = tuple(classes) or _sorted_classes({letter for text in texts for letter in text} - {"."})
    if any(len(name) != 1 for name in names):
        raise ExamplesError("classes of per-base labels in a table are one letter each")
    code = np.full(0x110000, -2, np.int64)
    code[ord(".")] = UNLABELLED
    for index, name in enumerate(names):
        code[ord(name)] = index
    found = []
    for row, text in zip(rows, texts, strict=True):
        values = code[np.array([ord(letter) for letter in text], np.int64)]
        if (values == -2).any():
            odd = text[int(np.argmax(values == -2))]
            raise ExamplesError(f"{row.place}: label {odd!r} is none of {_listed(names)}")
        found.append(values)
    return tuple(found), names


def _refuse_twice(ids: Sequence[str], places: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name, place in zip(ids, places, strict=True):
        if name in seen:
            raise ExamplesError(
                f"{place}: id {name!r} is already that of {seen[name]}; give each example an id of its own"
            )
        seen[name] = place


def _notes(examples: Examples) -> tuple[str, ...]:
    """Rows with the same sequence whose labels differ can never be all right."""
    skewed = _skew_note(examples)
    if isinstance(examples.targets, tuple) or examples.kind == "variant":
        return skewed
    seen: dict[str, int] = {}
    conflicts = 0
    first = ""
    for index, sequence in enumerate(examples.sequences):
        before = seen.setdefault(sequence, index)
        if before != index and not np.array_equal(
            examples.targets[before], examples.targets[index]
        ):
            conflicts += 1
            first = first or f"{examples.places[before]} and {examples.places[index]}"
    if not conflicts:
        return skewed
    return (
        f"{conflicts:,} examples have the sequence of another and a different label (first: {first})",
        *skewed,
    )


def _skew_note(examples: Examples) -> tuple[str, ...]:
    """A few huge values would decide what squares of errors fit."""
    if not isinstance(examples.targets, np.ndarray) or examples.label_names or len(examples) < 20:
        return ()
    low, middle, high = np.quantile(examples.targets, [0.25, 0.5, 0.75])
    furthest = float(np.abs(examples.targets - middle).max())
    if furthest <= _MANY_RANGES * (high - low):
        return ()
    return (
        f"values are very skewed: the furthest lies {furthest:.3g} from the median and half of all within {(high - low):.3g}; if their order is what matters, give logarithms or ranks",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(repr(name) for name in names[:_MOST_LISTED]) + more


def class_counts(examples: Examples) -> Mapping[str, int]:
    """Number of examples of each class, or with each label; of per-base labels, of bases."""
    if not examples.label_names or examples.kind == "track":
        return {}
    if examples.kind == "multilabel":
        counts = np.asarray(examples.targets).sum(axis=0)
    else:
        parts = examples.targets if isinstance(examples.targets, tuple) else (examples.targets,)
        joined = np.concatenate([np.zeros(0, np.int64), *parts])
        counts = np.bincount(joined[joined >= 0], minlength=len(examples.label_names))
    return dict(zip(examples.label_names, map(int, counts), strict=True))
