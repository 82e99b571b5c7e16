"""A page about a scoring run: distributions, counts, the alleles that stand out, and what it means.

One HTML file that loads nothing and runs nothing; every string of the user's is escaped.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from evo_data.csq import WorstConsequence, severity, worst_consequence
from evo_data.files import atomic_output
from evo_data.variant import AlleleStatus
from evo_data.vcf import VcfRecord
from evo_data.windows import StrandWindow
from evo_toolkit.variants.methods import flank
from evo_toolkit.variants.report_figures import histograms, per_base
from evo_toolkit.variants.report_page import page_head, page_table
from evo_toolkit.variants.score import VariantScorer
from evo_toolkit.variants.scores import AlleleScore, Column, RunInfo, ScoredRecord
from evo_toolkit.variants.window_runner import LogProbPair

NUM_LOWEST, NUM_HIGHEST = 20, 5
_FLANK = 50
_MOST_CLASSES = 24
_NO_CONSEQUENCE = "not annotated"

STATUS_MEANINGS: Mapping[AlleleStatus, str] = {
    AlleleStatus.OK: "scored",
    AlleleStatus.REF_MISMATCH: "REF is not what the genome holds there",
    AlleleStatus.SWAPPED: "the genome holds ALT where the record says REF",
    AlleleStatus.SYMBOLIC: "a symbolic allele whose sequence is not given",
    AlleleStatus.BREAKEND: "a breakend",
    AlleleStatus.STAR: "missing because of a deletion further up (*)",
    AlleleStatus.MISSING_ALT: "no alternate allele",
    AlleleStatus.NON_ACGTN: "letters other than A, C, G, T and N",
    AlleleStatus.TOO_LONG: "longer than --max-allele or half a window",
    AlleleStatus.CONTIG_UNKNOWN: "on a contig that the genome does not have",
    AlleleStatus.CONTIG_SHORT: "on a contig too short for a window",
    AlleleStatus.OUT_OF_RANGE: "outside of its contig",
    AlleleStatus.NOT_FINITE: "the model gave no finite number",
    AlleleStatus.MALFORMED: "no allele that VCF knows",
}
"""What each status says, in words; all of them."""

_FLAG_MEANINGS = {
    "window_shifted": "near the end of a contig: less context on one side",
    "window_clipped": "the contig is shorter than the window",
    "n_in_window": "a window holds an N",
    "one_strand": "only one strand's windows differ",
    "out_of_domain": "the genome is outside of what the model was trained on",
}


@dataclass(frozen=True, slots=True, order=True)
class _Ranked:
    """An allele that stands out; larger is kept. Of equal scores the first in the input is."""

    rank: tuple[float, int]
    record: VcfRecord = field(compare=False)
    number: int = field(compare=False)
    allele: AlleleScore = field(compare=False)


@dataclass
class ReportData:
    """What a report needs of scored records, gathered while they pass; bounded but for the scores.

    Attributes:
        by_status, by_flag: Alleles.
        by_consequence, by_kind: Scores of alleles, nats.
        num_records: Records seen.
    """

    by_status: Counter[AlleleStatus] = field(default_factory=Counter)
    by_flag: Counter[str] = field(default_factory=Counter)
    by_consequence: dict[str, array[float]] = field(default_factory=dict)
    by_kind: dict[str, array[float]] = field(default_factory=dict)
    num_records: int = 0
    _lowest: list[_Ranked] = field(default_factory=list)
    _highest: list[_Ranked] = field(default_factory=list)

    def add(self, scored: ScoredRecord) -> None:
        """Take one record."""
        self.num_records += 1
        for number, allele in enumerate(scored.alleles):
            self.by_status[allele.status] += 1
            self.by_flag.update(allele.flags)
            if allele.dll is None:
                continue
            worst = _worst(scored.record, number)
            name = _NO_CONSEQUENCE if worst is None else worst.consequence or _NO_CONSEQUENCE
            self.by_consequence.setdefault(name, array("d")).append(allele.dll)
            self.by_kind.setdefault(allele.kind or "other", array("d")).append(allele.dll)
            for heap, value, size in (
                (self._lowest, -allele.dll, NUM_LOWEST),
                (self._highest, allele.dll, NUM_HIGHEST),
            ):
                one = _Ranked((value, -self.by_status.total()), scored.record, number, allele)
                (heapq.heappush if len(heap) < size else heapq.heappushpop)(heap, one)

    @property
    def lowest(self) -> list[_Ranked]:
        """Alleles with the lowest scores, the lowest first."""
        return sorted(self._lowest, reverse=True)

    @property
    def highest(self) -> list[_Ranked]:
        """Alleles with the highest scores that are not among the lowest, the highest first."""
        taken = {one.rank[1] for one in self._lowest}
        return [one for one in sorted(self._highest, reverse=True) if one.rank[1] not in taken]


def _worst(record: VcfRecord, number: int) -> WorstConsequence | None:
    return worst_consequence(record.consequences[number]) if record.consequences else None


def write_report(
    path: Path | str,
    data: ReportData,
    info: RunInfo,
    scorer: VariantScorer | None,
    *,
    variants: str,
    domains: Sequence[str] = (),
    not_for: Sequence[str] = (),
    bits: str | None = None,
    force: bool = False,
) -> None:
    """Write the page.

    Args:
        path: An HTML file.
        data: What was gathered of the records.
        info: Of the run.
        scorer: Reads the alleles that stand out once more, for what every base contributes; None
            leaves that out.
        variants: Name of the input.
        domains: What the model was trained on, in words.
        not_for: What it is not to be used for, in words.
        bits: Line on how well the model predicts the reference.
        force: Whether an existing file may be replaced.

    Raises:
        EvoDataError: if the file exists or cannot be written.
    """
    parts = [
        page_head(f"Variant scores: {Path(variants).name}"),
        _run_table(data, info, variants, domains, bits),
        _meaning(info, domains, not_for),
        _status_tables(data),
        _distributions(data),
        _alleles("Lowest scores", "the alternate is least likely to the model", data.lowest, info, scorer),
        _alleles("Highest scores", "the alternate is most likely to the model", data.highest, info, scorer),
        "</main></body></html>\n",
    ]  # fmt: skip
    with atomic_output(path, force=force) as temporary:
        temporary.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def _run_table(
    data: ReportData, info: RunInfo, variants: str, domains: Sequence[str], bits: str | None
) -> str:
    scored = data.by_status[AlleleStatus.OK]
    suffix = "" if info.suffix is None else f", suffix {info.suffix}"
    rows = [
        ("Variants", variants),
        ("Genome", info.genome),
        ("Scored", f"{scored:,} of {data.by_status.total():,} alleles in {data.num_records:,} records"),
        ("Model", f"{info.model}, trained on {', '.join(domains) or 'what its authors say'}"),
        ("Windows", f"{info.window:,} bases ({info.window_mode}{suffix}), {info.strands} strand{'s' if info.strands == 'both' else ''}"),
        ("Precision", f"{info.precision}, {info.device}"),
        *((("Preset", info.preset),) if info.preset else ()),
        ("Methods", ", ".join(info.methods)),
        ("Reference", bits or "no window was scored"),
        ("Program", f"evo_toolkit {info.version}"),
        *((("Command", info.command),) if info.command else ()),
        ("Model, sha256", info.model_sha256),
        ("Contigs, sha256", info.genome_contigs_sha256),
    ]  # fmt: skip
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in info.notes)
    return notes + page_table(rows)


def _meaning(info: RunInfo, domains: Sequence[str], not_for: Sequence[str]) -> str:
    trained = (
        f"{info.model} was trained on {', '.join(domains)}"
        if domains
        else f"{info.model} does not say what it was trained on"
    )
    avoid = f" It is not for {', '.join(not_for)}." if not_for else ""
    return f"""<h2>What the score means</h2>
<p>The score (<code>dll</code>, <code>EVO_DLL</code>) is the log-likelihood of the window with the alternate allele minus that with
the reference, in nats, summed from the variant to the end of the window and averaged over the scored strands. <strong>Positive: the
alternate is MORE likely to the model. Negative: less likely.</strong></p>
<p>It is not a probability, not a p-value, not the odds that a variant is pathogenic, and not a measured effect. There is no cut-off.
Compare scores of one model, one window and one class of variants: ranks within a class are safer than values. Longer indels have
larger scores for their length alone. Models favour the reference, which they may have been trained on.</p>
<p>{escape(trained)}.{escape(avoid)} Outside of that its scores say nothing reliable. For research use only: no score is validated for diagnosis.</p>"""


def _status_tables(data: ReportData) -> str:
    rows = [
        (status.value, STATUS_MEANINGS[status], f"{count:,}")
        for status, count in sorted(data.by_status.items(), key=lambda x: (-x[1], x[0].value))
    ]
    parts = ["<h2>What became of the alleles</h2>", page_table(rows, ("Status", "Meaning", "Alleles"), 1)]  # fmt: skip
    if data.by_flag:
        flags = [
            (flag, _FLAG_MEANINGS.get(flag, ""), f"{count:,}")
            for flag, count in sorted(data.by_flag.items(), key=lambda x: (-x[1], x[0]))
        ]
        parts.append(page_table(flags, ("Remark", "Meaning", "Alleles"), 1))
    return "".join(parts)


def _distributions(data: ReportData) -> str:
    if not data.by_kind:
        return "<h2>Scores</h2><p>No allele has a score to show.</p>"
    parts = ["<h2>Scores by consequence and type</h2>"]
    parts.append("<p class=note>Number of alleles, median and quartiles (lines) beside each; bars are scaled within a class. The axis holds 99 % of all scores, the rest is counted at its ends.</p>")  # fmt: skip
    by_consequence = sorted(data.by_consequence.items(), key=lambda x: (severity(x[0]), x[0]))
    if set(data.by_consequence) == {_NO_CONSEQUENCE}:
        parts.append("<p>The variants carry no consequences (BCSQ, CSQ or ANN); give --gff to have them called.</p>")  # fmt: skip
    else:
        parts.append("<h3>Worst consequence of the allele</h3>")
        parts.append(histograms(_few(by_consequence), "nats"))
    parts.append("<h3>Type</h3>")
    kinds = sorted(data.by_kind.items(), key=lambda x: (-len(x[1]), x[0]))
    parts.append(histograms(_few(kinds), "nats"))
    return "".join(parts)


def _few(classes: Sequence[tuple[str, array[float]]]) -> list[tuple[str, np.ndarray]]:
    """The classes as arrays; where there are many, the rarest together."""
    kept = list(classes)
    rest: list[tuple[str, array[float]]] = []
    if len(kept) > _MOST_CLASSES:
        common = sorted(kept, key=lambda x: -len(x[1]))[: _MOST_CLASSES - 1]
        names = {name for name, _ in common}
        rest = [one for one in kept if one[0] not in names]
        kept = [one for one in kept if one[0] in names]
    found = [(name, np.array(values)) for name, values in kept]
    if rest:
        found.append((f"{len(rest)} other classes", np.concatenate([np.array(v) for _, v in rest])))
    return found


def _alleles(
    title: str, why: str, ranked: Sequence[_Ranked], info: RunInfo, scorer: VariantScorer | None
) -> str:
    if not ranked:
        return ""
    parts = [f"<h2>{escape(title)}</h2><p class=note>{escape(why)}"]
    if scorer is not None:
        parts.append(
            f"; bars show the change of each base's log-probability, in genome order: <span class=forward>behind the allele as the forward strand is read</span>, <span class=reverse>in front of it as the reverse strand is read</span>, up to {_FLANK} bases"
        )
    parts.append("</p>")
    for place, one in enumerate(ranked, 1):
        parts.append(_allele(place, one, info.columns, scorer))
    return "".join(parts)


def _allele(
    place: int, one: _Ranked, columns: Sequence[Column], scorer: VariantScorer | None
) -> str:
    record, allele = one.record, one.allele
    worst = _worst(record, one.number)
    name = f"{record.contig}:{record.pos:,} {_clipped(record.ref)} > {_clipped(allele.alt)}"
    told = [f"dll {allele.dll:.3f}"] if allele.dll is not None else []
    told += [record.id] if record.id != "." else []
    told += [f"{worst.gene or ''} {worst.consequence}".strip()] if worst is not None else []
    rows: list[tuple[str, str]] = [
        ("Genomic HGVS", allele.hgvs_g or ""),
        ("Forward and reverse strand", ", ".join(f"{v:.3f}" for v in (allele.dll_fwd, allele.dll_rc) if v is not None)),
        ("The allele's own bases; those behind them", ", ".join(f"{v:.3f}" for v in (allele.dll_allele, allele.dll_flank) if v is not None)),
    ]  # fmt: skip
    rows += [("Transcript", worst.transcript)] if worst is not None and worst.transcript else []
    rows += [
        (column.name, f"{value:.4g} {column.unit}".strip())
        for column in columns
        if (value := allele.values.get(column.name)) is not None
    ]
    rows += [("Remarks", ", ".join(allele.flags))] if allele.flags else []
    drawn = ""
    if scorer is not None:
        drawn = _drawn(allele, scorer.read(record, one.number))
    opened = " open" if place <= 3 else ""
    return f"<details{opened}><summary>{place}. <strong>{escape(name)}</strong> {escape('; '.join(told))}</summary>{page_table(rows)}{drawn}</details>"


def _drawn(allele: AlleleScore, strands: Sequence[tuple[StrandWindow, LogProbPair]]) -> str:
    """Context and change of every base around an allele."""
    sides: dict[str, tuple[list[tuple[str, float | None]], str, str, float]] = {}
    for window, pair in strands:
        sides[window.strand] = _side(window, pair)
    any_window = strands[0][0]
    forward, reverse = sides.get("+"), sides.get("-")
    before = [] if reverse is None else [(_COMPLEMENT.get(b, b), v) for b, v in reverse[0]][::-1]
    behind = [] if forward is None else forward[0]
    # A strand that was not read still shows its bases.
    if reverse is None:
        bases = any_window.ref[: any_window.ref_allele[0]].tobytes().decode()[-_FLANK:]
        before = [(base, None) for base in bases]
    if forward is None:
        bases = any_window.ref[: any_window.ref_allele[0]].tobytes().decode()[-_FLANK:]
        behind = [(_COMPLEMENT.get(base, base), None) for base in reversed(bases)]
    _, ref, alt, _ = forward or _turned(sides["-"])
    label = f"{ref or '-'}>{alt or '-'}"
    context = (
        f'<p class="context">{escape("".join(b for b, _ in before))}<b>[{escape(_clipped(ref or "-"))}/{escape(_clipped(alt or "-"))}]</b>'
        f"{escape(''.join(b for b, _ in behind))}</p>"
    )
    values = (None if forward is None else forward[3], None if reverse is None else reverse[3])
    return context + per_base(before, (label, *values), behind)


_COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}


def _turned(
    side: tuple[list[tuple[str, float | None]], str, str, float],
) -> tuple[list[tuple[str, float | None]], str, str, float]:
    """The alleles of the reverse strand as the forward strand has them."""
    flanking, ref, alt, change = side
    ref, alt = ("".join(_COMPLEMENT.get(b, b) for b in reversed(text)) for text in (ref, alt))
    return flanking, ref, alt, change


def _side(
    window: StrandWindow, pair: LogProbPair
) -> tuple[list[tuple[str, float | None]], str, str, float]:
    """Bases behind the allele with the change of each, both alleles, and the change of their own bases."""
    of_ref, of_alt = flank(window)
    read = min(len(pair.ref) - of_ref.start, len(pair.alt) - of_alt.start, _FLANK)
    bases = window.ref[of_ref].tobytes().decode()[: max(read, 0)]
    found: list[tuple[str, float | None]] = []
    for index, base in enumerate(bases):
        change = float(pair.alt[of_alt.start + index]) - float(pair.ref[of_ref.start + index])
        found.append((base, None if np.isnan(change) else change))
    ref = window.ref[slice(*window.ref_allele)].tobytes().decode()
    alt = window.alt[slice(*window.alt_allele)].tobytes().decode()
    own = float(np.nansum(pair.alt[slice(*window.alt_allele)], dtype=np.float64))
    own -= float(np.nansum(pair.ref[slice(*window.ref_allele)], dtype=np.float64))
    return found, ref, alt, own


def _clipped(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 8]}... ({len(text):,} bases)"
