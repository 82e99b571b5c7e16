"""`evo-toolkit score merge`: the outputs of `score --shard` as one."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click

from evo_toolkit.cli.common import PROGRAM, quiet_option, user_errors
from evo_toolkit.cli.sections import SectionedCommand


class ScoreCommand(SectionedCommand):
    """`score`, which hands over to `score merge` where that is its first argument."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:  # fmt: skip
        if args[:1] == ["merge"]:
            return merge.make_context(f"{info_name} merge", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command("merge")
@click.argument(
    "shards", metavar="SHARD...", nargs=-1, required=True, type=click.Path(path_type=str)
)
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    metavar="FILE",
    help="Where to write; - is stdout. The suffix decides the format, as in score.",
)
@click.option(
    "-O",
    "--output-type",
    metavar="v|z|b|t|p",
    help="Format when the suffix does not say, as in score.",
)
@click.option(
    "--skipped", metavar="FILE", help="Also join the shards' lists of alleles without a score."
)
@click.option(
    "--no-version", is_flag=True, help="Leave the command line out of the output's header."
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@quiet_option
@user_errors
def merge(
    shards: tuple[str, ...],
    output: str,
    output_type: str | None,
    skipped: str | None,
    no_version: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Join the outputs of score --shard 1/N ... N/N, in any order.

    Each SHARD is an output with its manifest (SHARD.manifest.json) beside it. The result is the
    file that one run without --shard writes, but for the command line in its header.
    """
    from evo_data.files import atomic_output
    from evo_data.files import check_output as check_file
    from evo_toolkit.variants.manifest import manifest_path
    from evo_toolkit.variants.merge import (
        check_merge,
        merge_outputs,
        merge_skipped,
        merged_manifest,
        mixed_devices,
        read_shards,
    )
    from evo_toolkit.variants.output import check_output

    found = read_shards(shards)
    if output == "-" and output_type is None:
        output_type = "tsv" if found[0].format.startswith("tsv") else None
    format = check_output(output, output_type, force, inputs=shards)
    check_merge(found, format)
    beside = manifest_path(output)
    for path in ([skipped] if skipped else []) + ([str(beside)] if output != "-" else []):
        check_file(path, force=force)
    note = mixed_devices(found)
    if note:
        click.echo(f"Warning: {note}", err=True)
    command = None if no_version else f"{PROGRAM} {shlex.join(sys.argv[1:])}"
    told = merge_outputs(
        found, output, format=format, command=command, force=force, notes=(note,) if note else ()
    )
    if skipped:
        merge_skipped(found, skipped, force=force)
    if output != "-":
        content = merged_manifest(found, Path(output), format, command)
        with atomic_output(beside, force=force) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if not quiet:
        records = sum(shard.manifest["counts"]["records"] for shard in found)
        click.echo(f"{records:,} records of {len(found):,} shards", err=True)
        for text in told:
            click.echo(text, err=True)
