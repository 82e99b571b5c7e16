"""Every variant score by formula, with sign and unit. The only place where they are defined.

Notation. On one strand, in reading direction, `r` and `a` are the reference and the alternate
window (equal length W, tokens numbered from 0) and `f` is the fork: the first position at which
they differ. `lp_x[t] = log p(x[t] | x[0..t-1])` in nats, over the full vocabulary; position 0 has
no prediction (no token precedes it) and counts in no sum.

    dll        = sum_{t >= f} lp_a[t]  -  sum_{t >= f} lp_r[t]
    dmean      = dll / (W - 1)
    llr        = lp_a[f] - lp_r[f]                      (missing when f is 0)
    dll_allele = the part of dll at the allele's own bases
    dll_flank  = dll - dll_allele                       (the bases after the allele)
    ll_ref     = sum_{t >= 1} lp_r[t],  ll_alt likewise

Where suffixes are cut short (`--suffix N`) all sums end where the alleles were read to, N bases
from where the shared prefix ends: from the fork, or a little before it.

Before the fork the two windows are the same, so their log-probabilities cancel exactly; leaving
those terms out of the sum leaves their rounding out too. Sums are float64. A positive `dll` means
that the alternate is MORE likely to the model than the reference. Values of the two strands are
averaged; `dll_fwd` and `dll_rc` keep them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from evo_data.variant import AlleleStatus, Variant
from evo_data.windows import StrandWindow
from evo_toolkit.errors import EvoError

if TYPE_CHECKING:
    from evo_data.vcf import VcfRecord


@dataclass(frozen=True, slots=True)
class StrandScore:
    """The scores of one allele on one strand, in nats. `llr` is None when the fork is at position 0."""

    strand: str
    window: int
    ll_ref: float
    ll_alt: float
    dll: float
    dll_allele: float
    llr: float | None


def strand_score(window: StrandWindow, lp_ref: np.ndarray, lp_alt: np.ndarray) -> StrandScore:
    """Scores of one strand from the per-position log-probabilities of its two windows.

    Args:
        window: The pair of windows.
        lp_ref: `[W]` log-probability of each reference token given those before it, nats;
            entry 0 is ignored.
        lp_alt: The same for the alternate window.
    """
    ref = np.asarray(lp_ref, dtype=np.float64)
    alt = np.asarray(lp_alt, dtype=np.float64)
    first = max(window.fork, 1)
    dll = float(alt[first:].sum() - ref[first:].sum())
    dll_allele = float(
        alt[max(window.alt_allele[0], first) : max(window.alt_allele[1], first)].sum()
        - ref[max(window.ref_allele[0], first) : max(window.ref_allele[1], first)].sum()
    )
    length = len(window.ref)
    llr = float(alt[window.fork] - ref[window.fork]) if 1 <= window.fork < length else None
    if window.fork >= length:
        llr = 0.0
    return StrandScore(
        strand=window.strand,
        window=length,
        ll_ref=float(ref[1:].sum()),
        ll_alt=float(alt[1:].sum()),
        dll=dll,
        dll_allele=dll_allele,
        llr=llr,
    )


@dataclass(frozen=True, slots=True)
class AlleleScore:
    """What is known about one alternate allele of one record.

    `status` is exclusive: scores are present exactly when it is `ok`. `flags` are remarks that do
    not exclude a score. `window_start`/`window_end` are the reference window of the first
    strand that was scored, 0-based half-open on the genome's contig. `values` are those of further
    methods (`evo_toolkit.variants.methods`), by the name of their `Column`.
    """

    status: AlleleStatus
    alt: str
    flags: tuple[str, ...] = ()
    normalised: Variant | None = None
    key: str | None = None
    hgvs_g: str | None = None
    kind: str | None = None
    indel_len: int | None = None
    dll: float | None = None
    dll_fwd: float | None = None
    dll_rc: float | None = None
    dmean: float | None = None
    llr: float | None = None
    dll_allele: float | None = None
    dll_flank: float | None = None
    ll_ref: float | None = None
    ll_alt: float | None = None
    window: int | None = None
    window_start: int | None = None
    window_end: int | None = None
    n_in_window: int | None = None
    values: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """One record of the input with the scores of its alternate alleles, in the record's order.

    A record without an alternate has one entry with status `missing_alt`.
    """

    record: VcfRecord
    alleles: tuple[AlleleScore, ...]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def combine_strands(strands: list[StrandScore]) -> dict[str, float | None]:
    """Average one allele's strands into the columns of `AlleleScore` (formulas above)."""
    by_strand = {s.strand: s for s in strands}
    llrs = [s.llr for s in strands if s.llr is not None]
    dll = _mean([s.dll for s in strands])
    dll_allele = _mean([s.dll_allele for s in strands])
    return {
        "dll": dll,
        "dll_fwd": by_strand["+"].dll if "+" in by_strand else None,
        "dll_rc": by_strand["-"].dll if "-" in by_strand else None,
        "dmean": _mean([s.dll / (s.window - 1) for s in strands]),
        "llr": _mean(llrs) if llrs else None,
        "dll_allele": dll_allele,
        "dll_flank": dll - dll_allele,
        "ll_ref": _mean([s.ll_ref for s in strands]),
        "ll_alt": _mean([s.ll_alt for s in strands]),
    }


@dataclass(frozen=True, slots=True)
class Column:
    """One value per allele that a method adds to an output.

    Attributes:
        name: Of the column in tables; in upper case, behind the prefix, the INFO key.
        description: For headers: formula in words, sign, unit.
        unit: "nats", "nats per base" or "" for a pure number.
        type: As in VCF.
        number: As in VCF: "A" is one for each alternate allele.
    """

    name: str
    description: str
    unit: str
    type: str = "Float"
    number: str = "A"

    @property
    def info_suffix(self) -> str:
        """The INFO key behind its prefix: letters, digits, underscores and dots."""
        return "".join(c if c.isalnum() or c in "_." else "_" for c in self.name).upper()


@dataclass(frozen=True, slots=True)
class InfoField:
    """One INFO key of the VCF output and the `AlleleScore` attribute behind it."""

    suffix: str
    attribute: str
    type: str
    description: str


INFO_FIELDS: tuple[InfoField, ...] = (
    InfoField("DLL", "dll", "Float", "Alternate minus reference log-likelihood in nats, summed from the variant to the end of the window, mean of the scored strands; positive means the alternate is MORE likely to the model"),
    InfoField("DLL_FWD", "dll_fwd", "Float", "DLL of the forward strand alone, nats"),
    InfoField("DLL_RC", "dll_rc", "Float", "DLL of the reverse strand alone, nats"),
    InfoField("DMEAN", "dmean", "Float", "DLL divided by (window - 1), nats per base"),
    InfoField("LLR", "llr", "Float", "Next-token log ratio, alternate minus reference, at the first base that differs, nats, mean of the scored strands"),
    InfoField("ST", "status", "String", "Status of the allele: ok (scored), or why not: " + ", ".join(s.value for s in AlleleStatus if s is not AlleleStatus.OK)),
    InfoField("FLAG", "flags", "String", "Remarks about the allele, joined by |"),
)  # fmt: skip

TABLE_COLUMNS: tuple[str, ...] = (
    "chrom", "pos", "id", "ref", "alt", "key", "hgvs_g", "kind", "indel_len", "status", "flags",
    "dll", "dll_fwd", "dll_rc", "dmean", "llr", "dll_allele", "dll_flank", "ll_ref", "ll_alt",
    "norm_pos", "norm_ref", "norm_alt", "window", "window_start", "window_end", "n_in_window",
    "gene", "transcript", "consequence", "num_transcripts",
)  # fmt: skip
"""Columns of TSV, Parquet and DataFrame: one row per alternate allele. `pos` and `norm_pos` are
1-based as in VCF; `window_start` and `window_end` are 0-based half-open, and on a circular contig the
end may pass its length. The last four are the worst consequence that bcftools csq calls, where
an annotation is given, and on how many transcripts it calls any."""


def table_row(
    record: VcfRecord, allele: AlleleScore, columns: Sequence[Column] = ()
) -> tuple[object, ...]:
    """One row in the order of `TABLE_COLUMNS`, then of `columns`; missing values are None, flags are joined by `|`."""
    normalised = allele.normalised
    worst = None
    if record.consequences and allele.alt in record.alts:
        from evo_data.csq import worst_consequence  # needs pysam, which scores themselves do not

        worst = worst_consequence(record.consequences[record.alts.index(allele.alt)])
    return (
        record.contig, record.pos, None if record.id == "." else record.id, record.ref, allele.alt,
        allele.key, allele.hgvs_g, allele.kind, allele.indel_len, allele.status.value,
        "|".join(allele.flags) or None,
        allele.dll, allele.dll_fwd, allele.dll_rc, allele.dmean, allele.llr, allele.dll_allele,
        allele.dll_flank, allele.ll_ref, allele.ll_alt,
        normalised.pos if normalised else None, normalised.ref if normalised else None,
        normalised.alt if normalised else None, allele.window, allele.window_start,
        allele.window_end, allele.n_in_window,
        *((worst.gene or None, worst.transcript or None, worst.consequence, worst.num_transcripts) if worst else (None,) * 4),
        *(allele.values.get(column.name) for column in columns),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What an output must say about the run that made it; written into every output's header."""

    version: str
    command: str | None
    model: str
    model_sha256: str
    precision: str
    device: str
    window: int
    strands: str
    shapes: tuple[tuple[int, int], ...]
    genome: str
    genome_contigs_sha256: str
    notes: tuple[str, ...] = ()
    window_mode: str = "exact"
    suffix: int | str | None = None
    methods: tuple[str, ...] = ("delta",)
    columns: tuple[Column, ...] = ()
    """What the methods add to each allele, in order."""
    calibration: str | None = None
    """sha256 of its file."""
    heads: tuple[tuple[str, str], ...] = ()
    """Name and sha256 of each fitted head."""
    preset: str | None = None


def require_same_run(
    what: str,
    made_with: Mapping[str, object],
    run: Mapping[str, object],
    keys: Sequence[str],
    advice: str,
) -> None:
    """Raise unless scores are made with what something else was made with.

    Args:
        what: The other thing and what became of it, such as "head x was fitted".
        made_with: What it was made with; a key that is missing counts as None.
        run: Values of `RunInfo`.
        keys: What the two must have in common.
        advice: What to do instead.

    Raises:
        EvoError: naming the first difference.
    """
    for key in keys:
        if run.get(key) != made_with.get(key):
            raise EvoError(
                f"{what} with {key} {made_with.get(key)}, the scores with {run.get(key)}; {advice}"
            )
