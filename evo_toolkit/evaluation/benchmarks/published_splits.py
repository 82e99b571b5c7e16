"""Benchmarks that come with a split into training and test parts: GUE, NT tasks, Genomic Benchmarks, BEND."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from evo_data.files import read_text
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.benchmarks.fasta_text import read_fasta
from evo_toolkit.evaluation.benchmarks.labelled import SPLIT, LabelledTask
from evo_toolkit.finetuning.examples import RawExample, TaskKind, examples_of
from evo_toolkit.finetuning.splits import cluster_sequences, leak_report

_PARTS = {"train": "train", "valid": "train", "val": "train", "dev": "train", "test": "test"}


def load_tables(paths: Sequence[Path | str]) -> LabelledTask:
    """Training and test file, with columns sequence and label (GUE, NT tasks).

    CSV or TSV, Parquet, or FASTA whose headers end in `|label`.
    """
    rows = []
    for part, path in zip(("train", "test"), paths, strict=True):
        for number, (sequence, label, place) in enumerate(_rows(Path(path))):
            rows.append((part, RawExample(id=f"{part}_{number}", sequence=sequence, labels=(label,), place=place)))  # fmt: skip
    return _task(rows, str(paths[0]))


def load_folder(paths: Sequence[Path | str]) -> LabelledTask:
    """A folder `train/CLASS/*.txt` and `test/CLASS/*.txt`, one sequence a file (Genomic Benchmarks)."""
    root = Path(paths[0])
    rows = []
    for part in ("train", "test"):
        for folder in sorted(one for one in (root / part).glob("*") if one.is_dir()):
            for path in sorted(folder.glob("*.txt")):
                rows.append((part, RawExample(id=f"{part}/{folder.name}/{path.stem}", sequence=read_text(path).strip(), labels=(folder.name,), place=str(path))))  # fmt: skip
    if {part for part, _ in rows} != {"train", "test"}:
        raise EvoError(f"{root} has no train/CLASS/*.txt and test/CLASS/*.txt; give the folder of one data set as genomic_benchmarks downloads it")  # fmt: skip
    return _task(rows, str(root))


def load_bend(paths: Sequence[Path | str]) -> LabelledTask:
    """A genome and a BED with header: chromosome, start, end (0-based half-open), split, label.

    Labels are one class, or several numbers separated by commas, which are the labels that hold.
    Targets in HDF5 files (a label for every base) are not read.
    """
    from evo_data.contigs import ContigAliases
    from evo_data.fasta import Fasta

    genome, bed = paths
    lines = read_text(bed).splitlines()
    reader = csv.DictReader(lines, delimiter="\t", restval="")
    wanted = ("chromosome", "start", "end", "split", "label")
    missing = [name for name in wanted if name not in (reader.fieldnames or ())]
    if missing:
        raise EvoError(f"{bed} has no column {', '.join(missing)}; give a BED of BEND whose labels are in it")  # fmt: skip
    rows: list[tuple[str, RawExample]] = []
    several = False
    with Fasta(genome) as reference:
        contigs = ContigAliases(reference.lengths)
        for number, row in enumerate(reader, 2):
            place = f"{bed}, line {number}"
            part = _PARTS.get(row["split"])
            contig = contigs.get(row["chromosome"])
            if part is None or contig is None:
                what = f"split {row['split']!r} is none of {', '.join(_PARTS)}" if part is None else f"{genome} has no contig {row['chromosome']!r}"  # fmt: skip
                raise EvoError(f"{place}: {what}")
            if not (row["start"].isdigit() and row["end"].isdigit()) or not 0 <= int(row["start"]) < int(row["end"]) <= reference.lengths[contig]:  # fmt: skip
                raise EvoError(f"{place}: {row['start']} to {row['end']} is no interval within {contig}, which has {reference.lengths[contig]:,} bases")  # fmt: skip
            text = reference.fetch(contig, int(row["start"]), int(row["end"])).decode()
            several = several or "," in row["label"]
            rows.append((part, RawExample(id=f"{number}", sequence=text, labels=(row["label"],), place=place)))  # fmt: skip
    return _task(rows, str(bed), "multilabel" if several else None)


def _task(
    rows: Sequence[tuple[str, RawExample]],
    source: str,
    kind: Literal["multilabel"] | None = None,
) -> LabelledTask:
    """Groups are clusters of shared 31-mers; a note says how many test examples share one with training ones."""
    labels = {row.labels[0].strip() for _, row in rows}
    chosen: TaskKind = kind or ("binary" if len(labels) == 2 else "multiclass")
    examples = examples_of([row for _, row in rows], chosen, source=source)
    test = np.array([part == "test" for part, _ in rows])
    if test.all() or not test.any():
        raise EvoError(f"{source}: all rows are of the {'test' if test.all() else 'training'} part; both are needed")  # fmt: skip
    if kind is None:
        tested = {row.labels[0].strip() for part, row in rows if part == "test"}
        if len(tested) < 2:
            raise EvoError(f"{source}: all rows of the test part have the label {min(tested)!r}; two classes are needed to tell apart")  # fmt: skip
        trained = {row.labels[0].strip() for part, row in rows if part == "train"}
        for part, row in rows:
            if part == "test" and (label := row.labels[0].strip()) not in trained:
                raise EvoError(f"{row.place}: no sequence of the training part has the label {label!r}; its labels are {', '.join(sorted(trained)[:8])}")  # fmt: skip
    parts = [[s for s, own in zip(examples.sequences, test, strict=True) if own == side] for side in (False, True)]  # fmt: skip
    leak = leak_report(parts[0], parts[1])
    notes = (*examples.notes, f"{leak}; the published split is kept") if leak.found else examples.notes  # fmt: skip
    task = LabelledTask(examples=replace(examples, notes=notes), columns={SPLIT: test})
    return task.with_groups(cluster_sequences(examples.sequences).tolist())


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pandas as pd

        table = pd.read_parquet(path)
        _require(path, list(table.columns))
        for number, (sequence, label) in enumerate(zip(table["sequence"], table["label"], strict=True)):  # fmt: skip
            yield str(sequence), str(label), f"{path}, row {number + 1}"
    elif name.endswith((".fa", ".fna", ".fasta")):
        for entry in read_fasta(path):
            _, bar, label = entry.header.rpartition("|")
            if not bar:
                raise EvoError(f"{entry.place}: the header does not end in |label")
            yield entry.sequence, label.strip(), entry.place
    else:
        lines = read_text(path).splitlines()
        reader = csv.DictReader(lines, delimiter="\t" if "\t" in lines[0] else ",", restval="") if lines else None  # fmt: skip
        _require(path, list(reader.fieldnames or ()) if reader else [])
        assert reader is not None
        for number, row in enumerate(reader, 2):
            yield row["sequence"], row["label"], f"{path}, line {number}"


def _require(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in ("sequence", "label") if name not in columns]
    if missing:
        raise EvoError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(columns) or 'none'}")  # fmt: skip
