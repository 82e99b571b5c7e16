"""Labelled data as every command of `evo-toolkit finetune` takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evo_toolkit.errors import UsageError

if TYPE_CHECKING:
    from evo_data.fasta import Fasta
    from evo_toolkit.finetuning.examples import Examples

# As in evo_toolkit.finetuning.examples and evo_toolkit.variants.head; a test keeps them equal.
TASKS = ("binary", "multiclass", "multilabel", "regression", "per_base", "track", "variant")
FEATURES = ("ref", "alt", "difference")

DEFAULT_VARIANT_WINDOW = 512

_FASTA = re.compile(r"\.(fa|fasta|fna|ffn|fas)(\.b?gz)?$", re.IGNORECASE)
_INTERVALS = re.compile(r"\.(bed|gff3?|gtf)(\.b?gz)?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What `data_options` add, as given; `read` makes `Examples` of it."""

    task: str
    data: str | None
    class_files: tuple[str, ...]
    genome: str | None
    labels: str | None
    label: tuple[str, ...]
    id: str | None
    group: str | None
    sequence: str
    classes: tuple[str, ...]
    types: tuple[str, ...]
    annotation: str | None
    tracks: tuple[str, ...]
    window: int | None
    test: str | None
    test_labels: str | None

    @property
    def sources(self) -> tuple[str, ...]:
        """The files that are read."""
        named = (*_named(self.class_files).values(), *_named(self.tracks).values())
        given = (self.data, *named, self.labels, self.annotation, self.genome, self.test, self.test_labels)  # fmt: skip
        return tuple(str(path) for path in given if path is not None)

    @property
    def variant_window(self) -> int:
        """Bases of variants' windows."""
        return self.window or DEFAULT_VARIANT_WINDOW

    def read(self, *, strands: str = "both") -> tuple[Examples, Examples | None, Mapping[str, int]]:
        """Read everything.

        Args:
            strands: Those of variants' windows.

        Returns:
            The examples, the test set if there is one, and lengths of the genome's contigs (of the
            sequences, where there is no genome) by which the model's domain is checked.

        Raises:
            UsageError: for options that do not go together.
            ExamplesError: for data that cannot be used, naming file and line.
        """
        from evo_data.fasta import Fasta

        if (self.data is None) == (not self.class_files):
            raise UsageError("give either DATA or --class NAME=FASTA for each class")
        if self.genome is None:
            examples = self._read(self.data, self.labels, None, self.classes, strands)
            test = self._read_test(examples, None, strands)
            lengths = dict(zip(examples.ids, map(len, examples.sequences), strict=True))
            return examples, test, lengths
        with Fasta(self.genome) as genome:
            examples = self._read(self.data, self.labels, genome, self.classes, strands)
            return examples, self._read_test(examples, genome, strands), genome.lengths

    def _read_test(self, examples: Examples, genome: Fasta | None, strands: str) -> Examples | None:
        if self.test is None:
            if self.test_labels is not None:
                raise UsageError("--test-labels is the table of --test; give that too")
            return None
        if self.data is None:
            raise UsageError(
                "--test goes with DATA; with --class it is not known which class it has"
            )
        return self._read(self.test, self.test_labels, genome, examples.label_names, strands)

    def _read(
        self,
        path: str | None,
        labels: str | None,
        genome: Fasta | None,
        classes: tuple[str, ...],
        strands: str,
    ) -> Examples:
        from evo_toolkit.finetuning import reading, reading_genome

        kind: Any = self.task
        if (self.annotation or self.tracks) and kind not in ("per_base", "track"):
            raise UsageError(
                f"--annotation is for the task per_base and --track for track, not for {kind}; leave them out"
            )
        is_whole = path is None or not (
            kind == "variant" or self.annotation or self.tracks or _INTERVALS.search(path)
        )
        if is_whole and self.window is not None:
            raise UsageError(
                "--window is for places in a genome; sequences of a FASTA or a table are read whole: leave it out, or cut them"
            )
        if path is None:
            return reading.read_class_fastas(_named(self.class_files), kind)
        columns = self.label or ("label",)
        if kind in ("per_base", "track") and (self.annotation or self.tracks):
            if kind == "per_base":
                if self.annotation is None:
                    raise UsageError("--track is for the task track; per_base takes --annotation")
                return reading_genome.read_per_base(path, _needed(genome, path), self.annotation, classes=_without_none(classes), window=self.window)  # fmt: skip
            return reading_genome.read_tracks(path, _needed(genome, path), _named(self.tracks), window=self.window)  # fmt: skip
        if kind == "track":
            raise UsageError(
                "the task track needs a signal; give --track NAME=FILE.bw and --genome"
            )
        if kind == "variant":
            return reading_genome.read_variants(
                path, _needed(genome, path), window=self.variant_window, strands=strands,
                labels=columns, table=labels, group=self.group, classes=classes,
            )  # fmt: skip
        if _INTERVALS.search(path):
            return reading_genome.read_intervals(
                path, _needed(genome, path), kind, labels=self.label or None, table=labels,
                window=self.window, types=self.types, id=self.id, group=self.group, classes=classes,
            )  # fmt: skip
        if _FASTA.search(path):
            if labels is None:
                raise UsageError(
                    f"{path} has no labels; give a table with --labels, or one FASTA for each class with --class NAME=FASTA"
                )
            return reading.read_fasta(path, labels, kind, labels=columns, id=self.id or "id", group=self.group, classes=classes)  # fmt: skip
        if labels is not None:
            raise UsageError(f"{path} is a table, which holds its own labels; leave --labels out")
        return reading.read_table(path, kind, sequence=self.sequence, labels=columns, id=self.id, group=self.group, classes=classes)  # fmt: skip


def _without_none(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Classes of features: those of a training set begin with the class of bases in none."""
    from evo_toolkit.finetuning.examples import NO_CLASS

    return classes[1:] if classes[:1] == (NO_CLASS,) else classes


def _needed(genome: Fasta | None, path: str) -> Fasta:
    if genome is None:
        raise UsageError(f"{path} names places in a genome; give the genome's FASTA with --genome")
    return genome


def _named(texts: tuple[str, ...]) -> dict[str, Path | str]:
    """`NAME=FILE` as a mapping."""
    found: dict[str, Path | str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"{text!r} is not understood; write NAME=FILE")
        if name in found:
            raise UsageError(f"{name!r} is named twice; give each its own name")
        found[name] = path
    return found


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about labelled data, handed over as one argument `inputs`."""

    @click.argument("data", metavar="[DATA]", required=False, type=click.Path(path_type=str))
    @click.option(
        "--task",
        required=True,
        type=click.Choice(TASKS),
        help="What the labels are: one of two classes, one of several, any of several, a number, a class for every base, signals for every base, or a class or number for a variant.",
    )
    @click.option(
        "--class",
        "class_files",
        multiple=True,
        metavar="NAME=FASTA",
        help="In place of DATA: the sequences of one class; once for each (of binary the negative one first).",
    )
    @click.option(
        "-g",
        "--genome",
        metavar="FASTA",
        help="The genome that intervals, variants and regions lie in.",
    )
    @click.option(
        "--labels",
        metavar="TABLE",
        help="Labels of a FASTA's records, or of intervals or variants by name: TSV, CSV or Parquet with a column id.",
    )
    @click.option(
        "--label",
        multiple=True,
        metavar="NAME",
        help="Column, INFO key or GFF attribute of the label [default: label; of BED its name or score, of GFF the type]. Several of 0 and 1 for multilabel.",
    )
    @click.option("--id", "id_", metavar="NAME", help="Column or attribute of names [default: id].")
    @click.option(
        "--group",
        metavar="NAME",
        help="Column, INFO key or attribute of what must not be torn apart by a split, such as a gene.",
    )
    @click.option(
        "--sequence",
        default="sequence",
        show_default=True,
        metavar="NAME",
        help="Column of the sequences in a table.",
    )
    @click.option(
        "--classes",
        metavar="A,B,...",
        help="Names and order of the classes; of binary the negative one first; A|B is one class of both labels. Default: those that occur.",
    )
    @click.option(
        "--type",
        "types",
        multiple=True,
        metavar="TYPE",
        help="Of GFF: only features of this type; repeatable.",
    )
    @click.option(
        "--annotation",
        metavar="BED|GFF",
        help="For per_base: the features that a base may lie in; DATA are then the regions to learn from.",
    )
    @click.option(
        "--track",
        "tracks",
        multiple=True,
        metavar="NAME=BIGWIG",
        help="For track: a signal; DATA are then the regions to learn from.",
    )
    @click.option(
        "--window",
        type=click.IntRange(min=2),
        metavar="N",
        help=f"Bases around the middle of each interval; of variants, of each window [default: {DEFAULT_VARIANT_WINDOW}].",
    )
    @click.option(
        "--test", metavar="DATA", help="Judge on these instead of held-out folds; read as DATA is."
    )
    @click.option(
        "--test-labels", metavar="TABLE", help="Labels of --test, where DATA has --labels."
    )
    @wraps(command)
    def wrapped(
        *args: Any,
        data: str | None,
        task: str,
        class_files: tuple[str, ...],
        genome: str | None,
        labels: str | None,
        label: tuple[str, ...],
        id_: str | None,
        group: str | None,
        sequence: str,
        classes: str | None,
        types: tuple[str, ...],
        annotation: str | None,
        tracks: tuple[str, ...],
        window: int | None,
        test: str | None,
        test_labels: str | None,
        **others: Any,
    ) -> Any:
        inputs = Inputs(
            task=task, data=data, class_files=class_files, genome=genome, labels=labels, label=label,
            id=id_, group=group, sequence=sequence, types=types, annotation=annotation,
            classes=tuple(part.strip() for part in (classes or "").split(",") if part.strip()),
            tracks=tracks, window=window, test=test, test_labels=test_labels,
        )  # fmt: skip
        return command(*args, inputs=inputs, **others)

    return wrapped
