"""Sets of labelled variants that are scored without training: ClinVar, TraitGym, BRCA2."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo_data.files import read_text
from evo_data.variant import (
    AlleleStatus,
    Edit,
    Variant,
    check_reference,
    classify_allele,
    edit_of,
    normalise,
)
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.edits import Place
from evo_toolkit.evaluation.genomes import Genome, encode
from evo_toolkit.evaluation.prepared import Prepared

FLANK = 8192
"""Bases kept on either side of each variant; windows are at most twice as long."""

MOST_BASES = 50
"""The longest allele that is scored; longer ones are structural."""


class LabelledVariant(NamedTuple):
    """A row: 1-based position, whether positive, what it does, and what must be resampled together."""

    contig: str
    pos: int
    ref: str
    alt: str
    positive: bool
    consequence: str
    group: str
    place: str


@dataclass(frozen=True, eq=False, kw_only=True)
class VariantSet:
    """Labelled variants and the pieces of the genome around them.

    Attributes:
        genome: A record for each piece.
        places: What to score, of `evo_toolkit.evaluation.edits`.
        positive: `[n]`.
        groups, consequences, chromosomes: Names `[n]`.
        left_out: How many rows are not among them, by reason.
    """

    genome: Genome
    places: tuple[Place, ...]
    positive: NDArray[np.bool_]
    groups: NDArray[np.str_]
    consequences: NDArray[np.str_]
    chromosomes: NDArray[np.str_]
    left_out: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.places)

    def prepared(self, kind: str, meta: Mapping[str, Any]) -> Prepared:
        """As a file of `evo_toolkit.evaluation.prepared`."""
        edits = [edit for _, _, edit in self.places]
        return Prepared(
            kind=kind,
            genomes=(self.genome,),
            arrays={
                "record": np.array([record for _, record, _ in self.places]),
                "start": np.array([edit.start for edit in edits]),
                "end": np.array([edit.end for edit in edits]),
                "alt": np.array([edit.alt.decode() for edit in edits]),
                "positive": self.positive, "groups": self.groups,
                "consequences": self.consequences, "chromosomes": self.chromosomes,
            },
            meta={"left_out": dict(self.left_out), **meta},
        )  # fmt: skip

    @classmethod
    def of_prepared(cls, prepared: Prepared) -> VariantSet:
        """What `prepared` wrote."""
        arrays = prepared.arrays
        columns = (arrays[name].tolist() for name in ("record", "start", "end", "alt"))
        return cls(
            genome=prepared.genomes[0],
            places=tuple(
                (0, record, Edit(start, end, alt.encode()))
                for record, start, end, alt in zip(*columns, strict=True)
            ),
            left_out=prepared.meta["left_out"],
            **{n: arrays[n] for n in ("positive", "groups", "consequences", "chromosomes")},
        )

    def limited(self, most: int | None, seed: int) -> VariantSet:
        """At most so many variants, drawn."""
        if most is None or most >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:most])
        return VariantSet(
            genome=self.genome,
            places=tuple(self.places[i] for i in chosen.tolist()),
            left_out={**self.left_out, "not drawn": len(self) - most},
            **{
                n: getattr(self, n)[chosen]
                for n in ("positive", "groups", "consequences", "chromosomes")
            },
        )


def build(genome: Path | str, rows: Iterable[LabelledVariant], source: str) -> VariantSet:
    """Check every variant against the genome and cut out what lies around.

    Variants that cannot be scored (another REF, no sequence, alleles over 50 bases, a contig that the
    genome lacks) are left out and counted; of two that are the same after normalisation one is kept,
    none if their labels differ.

    Raises:
        EvoError: if no variants of both labels are left.
    """
    from evo_data.contigs import ContigAliases
    from evo_data.fasta import Fasta

    left_out: Counter[str] = Counter()
    found: dict[tuple[str, int, int, bytes], LabelledVariant | None] = {}
    with Fasta(genome) as reference:
        aliases = ContigAliases(reference.lengths)
        for row in rows:
            status = classify_allele(row.ref, row.alt, max_allele=MOST_BASES)
            contig = aliases.get(row.contig)
            if status is AlleleStatus.OK and contig is None:
                status = AlleleStatus.CONTIG_UNKNOWN
            if status is not AlleleStatus.OK or contig is None:
                left_out[status.value] += 1
                continue

            def fetch(start: int, end: int, contig: str = contig) -> bytes:
                return reference.fetch(contig, start, end)

            variant = Variant(contig, row.pos, row.ref, row.alt)
            status = check_reference(variant, fetch, reference.lengths[contig])
            if status is not AlleleStatus.OK:
                left_out[status.value] += 1
                continue
            edit = edit_of(normalise(variant, fetch))
            key = (contig, edit.start, edit.end, edit.alt)
            if key in found:
                left_out["repeated"] += 1
                before = found[key]
                if before is not None and before.positive != row.positive:
                    found[key] = None
                    left_out["labels that contradict each other"] += 1
                continue
            found[key] = row
        kept = sorted((key, row) for key, row in found.items() if row is not None)
        if len({row.positive for _, row in kept}) < 2:
            reasons = ", ".join(f"{n:,} {name}" for name, n in left_out.items()) or "no reason found"  # fmt: skip
            raise EvoError(f"{source}: no positive and negative variants that fit {genome} are left ({reasons}); is it the assembly of the file?")  # fmt: skip
        pieces: list[tuple[str, int, int]] = []
        places: list[Place] = []
        for (contig, start, end, alt), _ in kept:
            first = max(0, start - FLANK)
            last = min(reference.lengths[contig], end + FLANK)
            if pieces and pieces[-1][0] == contig and first <= pieces[-1][2]:
                pieces[-1] = (contig, pieces[-1][1], last)
            else:
                pieces.append((contig, first, last))
            at = pieces[-1][1]
            places.append((0, len(pieces) - 1, Edit(start - at, end - at, alt)))
        records = tuple(encode(reference.fetch(*piece)) for piece in pieces)
    names = tuple(f"{contig}:{first + 1}-{last}" for contig, first, last in pieces)
    rows_kept = [row for _, row in kept]
    return VariantSet(
        genome=Genome(name=Path(genome).name, group="", names=names, records=records),
        places=tuple(places),
        positive=np.array([row.positive for row in rows_kept]),
        groups=np.array([row.group for row in rows_kept]),
        consequences=np.array([row.consequence for row in rows_kept]),
        chromosomes=np.array([key[0] for key, _ in kept]),
        left_out=left_out,
    )


_STARS = {
    "practice_guideline": 4,
    "reviewed_by_expert_panel": 3,
    "criteria_provided,_multiple_submitters,_no_conflicts": 2,
    "criteria_provided,_single_submitter": 1,
}
LEAST_STARS = 1
_POSITIVE = {"Pathogenic", "Likely_pathogenic", "Pathogenic/Likely_pathogenic"}
_NEGATIVE = {"Benign", "Likely_benign", "Benign/Likely_benign"}
# One of several terms counts: the first here, the most severe.
_TERMS = (
    "nonsense", "frameshift_variant", "splice_donor_variant", "splice_acceptor_variant", "initiator_codon_variant",
    "missense_variant", "inframe_deletion", "inframe_insertion", "inframe_indel", "synonymous_variant",
    "5_prime_UTR_variant", "3_prime_UTR_variant", "non-coding_transcript_variant", "intron_variant",
)  # fmt: skip
_BLOCK = 1000


def load_clinvar(paths: Sequence[Path | str]) -> VariantSet:
    """Pathogenic against benign variants (likely ones too) of a ClinVar VCF, one star or more.

    Groups are genes, and within a gene stretches of 1,000 bases: variants of one gene are no
    independent evidence, but a file of one gene must have groups too.
    """
    genome, vcf = paths
    return build(genome, _clinvar(vcf), str(vcf))


def _clinvar(vcf: Path | str) -> Iterator[LabelledVariant]:
    from evo_data.vcf import VariantReader

    with VariantReader(vcf) as reader:
        for record in reader:
            info = dict(part.partition("=")[::2] for part in record.info.decode().split(";"))
            meaning = info.get("CLNSIG", "")
            stars = _STARS.get(info.get("CLNREVSTAT", ""), 0)
            if meaning not in _POSITIVE | _NEGATIVE or stars < LEAST_STARS:
                continue
            terms = {one.partition("|")[2] for one in info.get("MC", "").split(",")}
            consequence = next((term for term in _TERMS if term in terms), "other")
            gene = info.get("GENEINFO", "no gene").partition(":")[0]
            for alt in record.alts:
                yield LabelledVariant(
                    record.contig, record.pos, record.ref, alt, meaning in _POSITIVE, consequence,
                    f"{gene} {record.contig}:{record.pos // _BLOCK}", f"{vcf}, line {record.number}",
                )  # fmt: skip


def load_traitgym(paths: Sequence[Path | str]) -> VariantSet:
    """TraitGym's test.parquet (or CSV): chrom, pos (1-based), ref, alt, label, consequence.

    Groups are chromosomes; the figure is the AUPRC of each chromosome, weighted by its variants.
    """
    genome, table = paths
    return build(genome, _table(table, "label", {"true", "1", "1.0"}, {"false", "0", "0.0"}), str(table))  # fmt: skip


def load_sge(paths: Sequence[Path | str]) -> VariantSet:
    """A saturation genome editing table: chrom, pos, ref, alt, class (LOF, or FUNC and INT); exon.

    BRCA2 (Huang et al. 2025, Sahu et al. 2025) once its columns are called so. Groups are exons.
    """
    genome, table = paths
    return build(genome, _table(table, "class", {"lof", "nonfunctional", "pathogenic"}, {"func", "int", "functional", "benign", "intermediate"}), str(table))  # fmt: skip


def _table(
    path: Path | str, column: str, positive: set[str], negative: set[str]
) -> Iterator[LabelledVariant]:
    path = Path(path)
    if path.name.endswith(".parquet"):
        import pandas as pd

        frame = pd.read_parquet(path)
        names = [str(name) for name in frame.columns]
        rows: Iterable[dict[str, str]] = (
            {name: str(value) for name, value in zip(names, row, strict=True)}
            for row in frame.itertuples(index=False, name=None)
        )
    else:
        lines = read_text(path).splitlines()
        reader = csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",", restval="")  # fmt: skip
        names, rows = list(reader.fieldnames or ()), reader
    missing = [name for name in ("chrom", "pos", "ref", "alt", column) if name not in names]
    if missing:
        raise EvoError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(names) or 'none'}")  # fmt: skip
    for number, row in enumerate(rows, 2):
        label = row[column].strip().lower()
        place = f"{path}, line {number}"
        if label not in positive | negative:
            raise EvoError(f"{place}: {column} {row[column][:20]!r} is none of {', '.join(sorted(positive | negative))}")  # fmt: skip
        if not row["pos"].isdigit() or int(row["pos"]) < 1:
            raise EvoError(f"{place}: pos {row['pos'][:20]!r} is no position (1-based)")
        yield LabelledVariant(
            row["chrom"], int(row["pos"]), row["ref"], row["alt"], label in positive,
            row.get("consequence") or "other", row.get("exon") or row["chrom"], place,
        )  # fmt: skip
