"""`evo-toolkit eval suffix`: what cut suffixes change, on the user's own variants."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import click

from evo_toolkit.cli.common import (
    PROGRAM,
    allow_out_of_domain_option,
    load_for_genome,
    model_options,
    quiet_option,
    require_model,
    strands_option,
    user_errors,
)
from evo_toolkit.cli.evaluate_tables import print_table

DEFAULT_SUFFIXES = ("256", "512", "1024", "2048", "adaptive")


@click.command("suffix", short_help="What --suffix would change of your variants' scores.")
@click.argument("variants", metavar="VARIANTS", type=click.Path(path_type=str))
@click.argument("genome", metavar="GENOME", type=click.Path(path_type=str))
@click.option("-o", "--output", metavar="FILE.json", type=click.Path(path_type=str), help="Where to write the figures; the table goes to stdout in any case.")  # fmt: skip
@click.option("--suffix", "suffixes", multiple=True, metavar="BASES|adaptive[:NATS]", help=f"A suffix to compare with full ones; may be repeated. Default: {', '.join(DEFAULT_SUFFIXES)}, those below half a window.")  # fmt: skip
@click.option("--window", type=click.IntRange(16), metavar="BASES", help="Bases per window; default: the model's own.")  # fmt: skip
@click.option("--window-mode", type=click.Choice(["exact", "shared"]), default="exact", show_default=True, help="As for score.")  # fmt: skip
@strands_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Score only N records, spread over the file.")  # fmt: skip
@click.option("--circular", multiple=True, metavar="NAME", help="This contig's ends are joined; repeatable.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing output.")
@allow_out_of_domain_option
@model_options
@quiet_option
@user_errors
def suffix_command(
    variants: str,
    genome: str,
    output: str | None,
    suffixes: tuple[str, ...],
    window: int | None,
    window_mode: str,
    strands: str,
    limit: int | None,
    circular: tuple[str, ...],
    force: bool,
    allow_out_of_domain: bool,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    quiet: bool,
) -> None:
    """Compare scores with cut suffixes (score --suffix) with those of full ones.

    VARIANTS and GENOME are as for score. Every allele is scored once with full suffixes, which holds
    the scores of all shorter ones; for each: Spearman's rank correlation of EVO_DLL with the full
    one, the largest and the mean difference in nats, and how many times fewer tokens go through the
    model. Alleles that change the length are reported apart: what they push in or out at the
    window's end is part of a full score and not of a short one.
    """
    from evo_data.fasta import Fasta
    from evo_data.files import atomic_output, check_output
    from evo_data.variant_sources import open_source
    from evo_toolkit.cli.common import refuse_input_as_output
    from evo_toolkit.cli.progress import progress_bar
    from evo_toolkit.evaluation.suffixes import compare_suffixes
    from evo_toolkit.variants.run import open_variants
    from evo_toolkit.variants.suffix import parse_suffix

    name = require_model(model)
    if output is not None:
        refuse_input_as_output(output, variants, genome)
        check_output(output, force=force)
    chosen = {text: parse_suffix(text) for text in suffixes or DEFAULT_SUFFIXES}
    with Fasta(genome) as reference:
        found = open_variants(open_source(variants, reference), reference)
        for warning in found.warnings:
            click.echo(f"Warning: {warning}", err=True)
        loaded, _ = load_for_genome(
            name, reference.lengths, device=device, precision=precision,
            allow_inaccurate=allow_inaccurate, allow_out_of_domain=allow_out_of_domain,
        )  # fmt: skip
        size = window or loaded.config.default_window
        if not suffixes:
            chosen = {
                text: one
                for text, one in chosen.items()
                if not isinstance(one, int) or one < size - size // 2
            }
        records = _spread(list(found.records()), limit)
        total = sum(len(record.alts) or 1 for record in records)
        with progress_bar("scoring", total, "alleles", quiet=quiet) as advance:
            figures = compare_suffixes(
                loaded, reference, found.contigs, records, chosen, window=window,
                window_mode=window_mode, strands=strands, advance=advance,
                circular=[found.contigs[contig] for contig in circular],
            )  # fmt: skip
    about = {"name": loaded.config.name, "sha256": loaded.sha256, "precision": loaded.policy.describe(), "device": str(loaded.device)}  # fmt: skip
    if output is not None:
        document = {"command": f"{PROGRAM} {shlex.join(sys.argv[1:])}", "model": about, "figures": figures}  # fmt: skip
        with atomic_output(output, force=force) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    click.echo(
        f"{about['name']}, {about['precision']}, {about['device']}, window {figures['window']} ({figures['window_mode']}), "
        f"{figures['alleles']:,} alleles, {figures['tokens']:,} tokens with full suffixes"
    )
    print_table(_table(figures))


def _spread(records: list[Any], limit: int | None) -> list[Any]:
    """At most so many records, evenly spread over all."""
    if limit is None or limit >= len(records):
        return records
    return [records[i * len(records) // limit] for i in range(limit)]


def _table(figures: dict[str, Any]) -> list[list[str]]:
    rows = [["suffix", "alleles", "Spearman", "largest difference, nats", "mean, nats", "tokens"]]
    for name, values in figures["suffixes"].items():
        kinds = [(name, values)]
        if values["same_length"]["alleles"] and values["other_length"]["alleles"]:
            kinds += [("  of the same length", values["same_length"])]
            kinds += [("  of another length", values["other_length"])]
        for label, part in kinds:
            correlation = "-" if part["spearman"] is None else f"{part['spearman']:.4f}"
            fewer = f"{values['times_fewer_tokens']:.2f} times fewer" if label == name else ""
            rows.append(
                [label, f"{part['alleles']:,}", correlation, f"{part['max_difference']:.4f}", f"{part['mean_difference']:.4f}", fewer]
            )  # fmt: skip
    return rows
