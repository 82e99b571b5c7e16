"""Scoring variants from Python: the rows of the command, as a DataFrame."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evo_data.contigs import ContigAliases
from evo_data.csq import ConsequenceCaller
from evo_data.fasta import Fasta
from evo_data.variant_sources import Selection, open_source, parse_regions
from evo_toolkit.errors import OutOfDomainWarning
from evo_toolkit.variants.allele_methods import MethodOptions
from evo_toolkit.variants.run import ScoringRun, open_variants
from evo_toolkit.variants.score import DEFAULT_MAX_ALLELE
from evo_toolkit.variants.scores import TABLE_COLUMNS, table_row
from evo_toolkit.variants.suffix import parse_suffix

if TYPE_CHECKING:
    import pandas as pd

    from evo_toolkit.model.striped_hyena import StripedHyena2


def score_variants(
    model: StripedHyena2,
    variants: Path | str | Sequence[str],
    genome: Path | str,
    *,
    window: int | None = None,
    window_mode: str | None = None,
    suffix: int | str | None = None,
    strands: str = "both",
    max_allele: int = DEFAULT_MAX_ALLELE,
    filters: Sequence[str] | None = None,
    regions: str | None = None,
    include: str | None = None,
    check_ref: str = "w",
    max_ref_mismatch: float | None = None,
    circular: Sequence[str] = (),
    gff: Path | str | None = None,
    genetic_code: int = 1,
    methods: Sequence[str] = ("delta",),
    layers: Sequence[str] = (),
    heads: Sequence[Path | str] = (),
    calibration: Path | str | None = None,
    allow_out_of_domain: bool = False,
) -> pd.DataFrame:
    """Score every alternate allele of a VCF, BCF or table, or variants given as text.

    A positive `dll` means that the alternate is more likely to the model than the reference;
    `evo_toolkit.variants.scores` has the formulas.

    Args:
        model: From `load_model`.
        variants: VCF (plain, gzip, bgzip), BCF, or a table (TSV, CSV, Parquet) with columns chrom, pos,
            ref, alt; or a list of texts such as ["chr17-43045711-G-A"].
        genome: FASTA, indexed when it is not yet.
        window: Bases per window; None is the model's `default_window`.
        window_mode: "exact" (a window for every place, what alleles share is read once), "shared"
            (near variants share one window; faster) or "full" (every window read whole); None is
            "exact", and "full" for a model that reproduces the released rounding.
        suffix: Read so many bases of each allele from the variant on, or "adaptive": as many as it
            takes; None reads all. Faster, and an approximation.
        strands: "both" (averaged), "fwd" or "rc".
        max_allele: Longest allele that is scored, in bases.
        filters: FILTER values to keep, such as ["PASS", "."]; None keeps every record.
        regions: Keep records that touch one of these, such as "chr1:100-200,chr2" (1-based).
        include: Keep records for which this expression of bcftools holds, such as "AF<0.01".
        check_ref: Where REF is not the genome's: "w" a status, "x" leave the record out, "e" raise.
        max_ref_mismatch: Largest share of the first records whose REF may differ (None: 0.05); given, it
            also accepts contigs of another length.
        circular: Contigs whose ends are joined.
        gff: GFF3 or GTF, for the columns gene, transcript, consequence and num_transcripts.
        genetic_code: NCBI's number of the genetic code, for `gff`.
        methods: What to compute of each allele: delta, marginal, entropy, jsd, shift, embed, head
            (`evo_toolkit.variants.methods`).
        layers: For the method embed, such as ["blocks.4"].
        heads: Files of fitted heads, for the method head.
        calibration: File of `evo-toolkit data calibrate`, for the columns cdll and quantile.
        allow_out_of_domain: Score a genome that the model was not trained for; a warning and the
            flag `out_of_domain` say so.

    Returns:
        One row per alternate allele, in the order of the file, columns `TABLE_COLUMNS` and those of
        the methods; `pos` is 1-based. `attrs["evo_toolkit"]` holds the run's manifest and the reference bits per base.

    Raises:
        ValueError: for files that cannot be read, variants of another build or without a common
            contig, or a genome outside the model's domain.
    """
    import pandas as pd

    for name, given in (("methods", methods), ("layers", layers), ("heads", heads)):
        if isinstance(given, str | Path):
            raise ValueError(f"{name} is one text; give a list, such as [{str(given)!r}]")
    if isinstance(filters, str):
        raise ValueError(f"filters is one string; give a list, such as [{filters!r}]")
    with Fasta(genome) as reference:
        names = ContigAliases(reference.lengths)
        wanted = Selection(
            regions=() if regions is None else tuple(parse_regions(regions, reference.lengths)),
            include=include,
        )
        is_file = isinstance(variants, str | Path)
        source = open_source(
            variants if is_file else None,  # type: ignore[arg-type]
            reference,
            texts=() if is_file else [str(text) for text in variants],  # type: ignore[union-attr]
            contigs=names,
            selection=wanted,
        )
        opened = open_variants(
            source,
            reference,
            filters=None if filters is None else frozenset(filters),
            check_ref=check_ref,
            max_ref_mismatch=max_ref_mismatch,
            consequences=None
            if gff is None
            else ConsequenceCaller(gff, reference, contigs=names, genetic_code=genetic_code),
        )
        for warning in opened.warnings:
            warnings.warn(warning, stacklevel=2)
        unknown = [name for name in circular if name not in names]
        if unknown:
            raise ValueError(f"circular contig {unknown[0]!r} is not in {reference.path}")
        run = ScoringRun(
            model,
            reference,
            opened,
            window=window,
            window_mode=window_mode,
            suffix=parse_suffix(str(suffix)) if suffix is not None else None,
            strands=strands,
            max_allele=max_allele,
            allow_out_of_domain=allow_out_of_domain,
            circular=[names[name] for name in circular],
            methods=MethodOptions(
                names=tuple(methods),
                layers=tuple(layers),
                heads=tuple(str(path) for path in heads),
                calibration=None if calibration is None else str(calibration),
            ),
        )
        if run.domain_note:
            warnings.warn(run.domain_note, OutOfDomainWarning, stacklevel=2)
        rows = [
            table_row(scored.record, allele, run.info.columns)
            for scored in run.records()
            for allele in scored.alleles
        ]
    names_of_columns = [*TABLE_COLUMNS, *(column.name for column in run.info.columns)]
    frame = pd.DataFrame(rows, columns=names_of_columns)
    frame.attrs["evo_toolkit"] = {
        **dataclasses.asdict(run.info),
        "reference_bits_per_base": run.scorer.reference_bits.bits_per_base,
    }
    return frame
