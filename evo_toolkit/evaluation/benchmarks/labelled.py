"""A benchmark of labelled sequences, with what its figures must be read beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_data.kmers import K, Lookup, kmer_hashes, union
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.genomes import Genome, GenomeFile, encode, tokens
from evo_toolkit.evaluation.prepared import Prepared
from evo_toolkit.finetuning.examples import Examples
from evo_toolkit.finetuning.splits import join_groups, sequence_hashes

OVERLAP = "train_overlap"
"""The column with the share of each sequence's 31-mers that also stand in a training genome."""
SPLIT = "published_test"
"""The column that says which examples a published split tests on."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledTask:
    """A benchmark's examples.

    Attributes:
        examples: Sequences, targets and groups; groups are what folds never tear apart and what
            intervals resample.
        columns: Further values `[n]` by name: what is known of each example besides its label.
        left_out: How many rows of the files are not among the examples, by reason.
    """

    examples: Examples
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def groups(self) -> NDArray[np.int64]:
        """Number of each example's group, from 0 in order of first members; each its own where the file names none."""
        if self.examples.groups is None:
            return np.arange(len(self))
        return join_groups(self.examples.groups)

    @property
    def targets(self) -> NDArray[Any]:
        """`[n]`, or `[n, K]` of several labels.

        Raises:
            EvoError: for targets by base, which no benchmark here has.
        """
        if isinstance(self.examples.targets, tuple):
            raise EvoError(
                "this benchmark has a label for every base; benchmarks here have one for each sequence"
            )
        return self.examples.targets

    def subset(self, chosen: NDArray[Any], reason: str | None = None) -> LabelledTask:
        """The examples at indices or where a mask is True; the others are counted under `reason`."""
        found = self.examples.subset(chosen)
        left_out = dict(self.left_out)
        if reason is not None and len(found) < len(self):
            left_out[reason] = left_out.get(reason, 0) + len(self) - len(found)
        columns = {name: values[chosen] for name, values in self.columns.items()}
        return replace(self, examples=found, columns=columns, left_out=left_out)

    def with_groups(self, groups: Sequence[object]) -> LabelledTask:
        """The same examples in other groups."""
        names = tuple(str(group) for group in groups)
        return replace(self, examples=replace(self.examples, groups=names))

    def limited(self, most: int | None, seed: int) -> LabelledTask:
        """At most so many examples: whole groups, drawn, until there are enough."""
        if most is None or most >= len(self):
            return self
        names = np.arange(len(self)) if self.examples.groups is None else self.examples.groups
        # In the order of their names, so that the draw does not hang on the order of the rows.
        groups = np.unique(names, return_inverse=True)[1]
        order = np.random.default_rng(seed).permutation(groups.max() + 1)
        sizes = np.bincount(groups)[order]
        kept = order[: int(np.searchsorted(np.cumsum(sizes), most, "right"))]
        return self.subset(np.isin(groups, kept), "not drawn")

    def prepared(self, kind: str, meta: Mapping[str, Any]) -> Prepared:
        """As a file of `evo_toolkit.evaluation.prepared`, sequences as the records of one genome."""
        examples = self.examples
        genome = Genome(
            name=kind,
            group="examples",
            names=examples.ids,
            records=tuple(encode(sequence.encode()) for sequence in examples.sequences),
        )
        columns = {f"column.{name}": values for name, values in self.columns.items()}
        about = {
            "task": examples.kind, "label_names": list(examples.label_names),
            "left_out": dict(self.left_out), "digest": examples.digest,
        }  # fmt: skip
        arrays = {"targets": self.targets, "groups": self.groups, **columns}
        return Prepared(kind=kind, genomes=(genome,), arrays=arrays, meta={**about, **meta})

    @classmethod
    def of_prepared(cls, prepared: Prepared) -> LabelledTask:
        """What `prepared` wrote."""
        genome, meta = prepared.genomes[0], prepared.meta
        examples = Examples(
            kind=meta["task"],
            ids=genome.names,
            sequences=tuple(tokens(record).tobytes().decode() for record in genome.records),
            targets=prepared.arrays["targets"],
            label_names=tuple(meta["label_names"]),
            groups=tuple(map(str, prepared.arrays["groups"].tolist())),
            places=tuple(f"sequence {name}" for name in genome.names),
        )
        columns = {
            name.removeprefix("column."): values
            for name, values in prepared.arrays.items()
            if name.startswith("column.")
        }
        return cls(examples=examples, columns=columns, left_out=meta["left_out"])


def train_overlap(sequences: Sequence[str], train: Sequence[GenomeFile]) -> NDArray[np.float64]:
    """Share of each sequence's distinct 31-mers that also stand in a training genome, `[n]`.

    Both strands; exact. A sequence with no 31-mer has a share of 0.
    """
    own = [sequence_hashes(sequence, K) for sequence in sequences]
    wanted = union(own)
    if not wanted.size:
        return np.zeros(len(own))
    lookup = Lookup(wanted)
    found = np.zeros(wanted.size, np.bool_)
    for file in train:
        for record in file.read().records:
            # A block at a time: the hashes of a chromosome would take gigabytes.
            for start in range(0, record.size, 1 << 22):
                piece = tokens(record[start : start + (1 << 22) + K - 1])
                found[lookup.positions(union([lookup.candidates(kmer_hashes(piece))]))] = True
    return np.array([found[lookup.positions(one)].mean() if one.size else 0.0 for one in own])
