"""The outputs of the shards of one run, joined as if it had run in one piece.

Each shard's manifest tells which part of which run it is. Text goes over byte for byte, so that but for
the command line in the header the result is the file that a single run would have written.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pysam
import pysam.bcftools

from evo_data.files import atomic_output, file_digest
from evo_data.variant_tables import text_lines
from evo_data.vcf import VariantReader, VcfWriter
from evo_data.vcf_writer import quiet_htslib
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.variants.manifest import manifest_path
from evo_toolkit.variants.output import VCF_FORMATS
from evo_toolkit.variants.resume import differences
from evo_toolkit.variants.scores import TABLE_COLUMNS, Column, RunInfo
from evo_toolkit.variants.tables import ParquetScoreWriter, TsvScoreWriter

_COMMAND = b"##evo_toolkitCommand="
_MUST_AGREE = ("versions", "variants", "genome", "model", "options")
_MOST_NAMED = 8
_FAMILIES: dict[str, frozenset[str]] = {
    "vcf": VCF_FORMATS,
    "vcf.gz": VCF_FORMATS,
    "bcf": frozenset({"bcf"}),
    "tsv": frozenset({"tsv", "tsv.gz"}),
    "tsv.gz": frozenset({"tsv", "tsv.gz"}),
    "parquet": frozenset({"parquet"}),
}
"""Formats that outputs of each format can be joined to."""


class MergeError(EvoError):
    """The files are not the shards of one run."""


@dataclass(frozen=True)
class Shard:
    """One shard's output.

    Attributes:
        path: Of the output.
        number: Of the shard, from 1.
        of: How many shards the run has.
        manifest: Content of its manifest.
    """

    path: Path
    number: int
    of: int
    manifest: Mapping[str, Any]

    @property
    def format(self) -> str:
        return str(self.manifest["output"]["format"])

    @property
    def skipped(self) -> Path | None:
        """Its list of skipped alleles; beside the output, if both have been moved together."""
        named = self.manifest.get("skipped")
        if named is None:
            return None
        beside = self.path.with_name(Path(named).name)
        return beside if beside.is_file() else Path(named)


def read_shards(paths: Sequence[Path | str]) -> list[Shard]:
    """Return the shards in their order, after a look at whether they belong together.

    Raises:
        MergeError: if a manifest is absent, a file is not what its manifest says, one is twice or
            absent, or they are of different runs.
    """
    shards = sorted((_read(Path(path)) for path in paths), key=lambda shard: shard.number)
    first = shards[0]
    for shard in shards[1:]:
        changes = differences(_identity(first), _identity(shard))
        if changes:
            raise MergeError(
                f"{first.path} and {shard.path} are of different runs: {'; '.join(changes[:4])}; score them with the same options"
            )
    numbers = Counter(shard.number for shard in shards)
    for shard in shards:
        if numbers[shard.number] > 1:
            raise MergeError(f"{shard.path}: shard {shard.number}/{shard.of} is given twice")
    absent = [number for number in range(1, first.of + 1) if number not in numbers]
    if absent:
        named = ", ".join(f"{number}/{first.of}" for number in absent[:_MOST_NAMED])
        more = f" and {len(absent) - _MOST_NAMED} more" if len(absent) > _MOST_NAMED else ""
        raise MergeError(f"shards {named}{more} are not given; score them, or name their outputs")
    return shards


def _read(path: Path) -> Shard:
    beside = manifest_path(path)
    try:
        manifest = json.loads(beside.read_text(encoding="utf-8"))
        shard = manifest["shard"]
        digest = manifest["output"]["sha256"]
    except FileNotFoundError:
        raise MergeError(
            f"{path} has no manifest {beside.name} beside it; name outputs of score --shard, with their manifests"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MergeError(f"{beside} cannot be read as a manifest of score: {error}") from error
    if shard is None:
        raise MergeError(f"{path} is no shard: it was scored without --shard")
    if file_digest(path, "sha256") != digest:
        raise MergeError(
            f"{path} is not what its manifest says: it was changed or damaged; score it again"
        )
    number, of = shard.split("/")
    return Shard(path, int(number), int(of), manifest)


def _identity(shard: Shard) -> dict[str, Any]:
    return {key: shard.manifest[key] for key in _MUST_AGREE} | {"number of shards": shard.of}


def mixed_devices(shards: Sequence[Shard]) -> str | None:
    """What to tell of shards that ran on unlike devices: their scores may differ by rounding."""
    kinds = {(shard.manifest["device"], str(shard.manifest["run"]["shapes"])) for shard in shards}
    if len(kinds) == 1:
        return None
    names = ", ".join(sorted({device for device, _ in kinds}))
    return f"the shards ran on unlike devices or in forwards of different shapes ({names}), so their scores may differ by rounding from those of a single run"


def check_merge(shards: Sequence[Shard], format: str) -> None:
    """Raise unless the shards can be joined to a file of a format.

    Raises:
        UsageError: naming the formats that are possible.
    """
    for shard in shards:
        if format not in _FAMILIES[shard.format]:
            raise UsageError(
                f"{shard.path} is {shard.format}, which cannot be joined to {format}; write {' or '.join(sorted(_FAMILIES[shard.format]))}"
            )


def merge_outputs(
    shards: Sequence[Shard],
    output: Path | str,
    *,
    format: str,
    command: str | None,
    force: bool,
    notes: Sequence[str] = (),
) -> tuple[str, ...]:
    """Join the shards' outputs.

    Args:
        shards: As `read_shards` returns them.
        output: A file, or "-" for stdout (VCF and TSV).
        format: Of the output.
        command: For its header, in the place of that of the first shard; None leaves it out.
        force: Whether an existing file may be replaced.
        notes: Remarks for the header.

    Returns:
        What the user should be told (that no index was made, and why).
    """
    check_merge(shards, format)
    join: Callable[..., tuple[str, ...]]
    if shards[0].format == "bcf":
        join = _join_bcf
    else:
        join = {"parquet": _join_parquet, "tsv": _join_tsv, "tsv.gz": _join_tsv}.get(
            format, _join_vcf
        )
    return join(shards, output, format, command, force, notes)


def _header(lines: Sequence[bytes], command: str | None, notes: Sequence[str]) -> list[bytes]:
    """A shard's header with another command line and more notes."""
    ending = b"\r\n" if lines[0].endswith(b"\r\n") else b"\n"
    found = []
    for line in lines:
        if line.startswith(_COMMAND):
            if command is not None:
                found.append(_COMMAND + " ".join(command.splitlines()).encode() + ending)
        else:
            found.append(line)
    added = [b'##evo_toolkitNote="' + note.encode() + b'"' + ending for note in notes]
    return [*found[:-1], *added, found[-1]]


def _join_vcf(
    shards: Sequence[Shard], output: Path | str, format: str, command: str | None, force: bool,
    notes: Sequence[str],
) -> tuple[str, ...]:  # fmt: skip
    with VariantReader(shards[0].path) as reader:
        header = _header(reader.header.lines, command, notes)
    writer = VcfWriter(output, format=format, header_lines=header, force=force)
    with writer:
        for shard in shards:
            with VariantReader(shard.path) as reader:
                if _header(reader.header.lines, command, notes) != header:
                    raise MergeError(f"{shard.path} has another header than {shards[0].path}")
                for record in reader:
                    writer.write(record.line + record.terminator)
    return (writer.index_note,) if writer.index_note else ()


def _join_bcf(
    shards: Sequence[Shard], output: Path | str, format: str, command: str | None, force: bool,
    notes: Sequence[str],
) -> tuple[str, ...]:  # fmt: skip
    """Through bcftools and never through text, which would cut 32-bit floats to six digits."""
    target = Path(os.path.realpath(output))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".evo_toolkit_") as folder:
        joined, header = Path(folder) / "joined.bcf", Path(folder) / "header.txt"
        paths = [os.fspath(shard.path) for shard in shards]
        try:
            with quiet_htslib():
                pysam.bcftools.concat(
                    "--no-version", "-Ob", "-o", os.fspath(joined), *paths, catch_stdout=False
                )
                lines = _bcf_header(shards[0].path)
                # What later shards declare and the first does not, as htslib has joined it.
                more = [line for line in _bcf_header(joined) if line not in lines]
                more = [line for line in more if not line.startswith(_COMMAND)]
                lines[-1:-1] = more
                header.write_bytes(b"".join(_header(lines, command, notes)))
                with atomic_output(target, force=force, suffix=".bcf") as temporary:
                    pysam.bcftools.reheader(
                        "-h", os.fspath(header), "-o", os.fspath(temporary), os.fspath(joined),
                        catch_stdout=False,
                    )  # fmt: skip
                index = Path(f"{target}.csi")
                index.unlink(missing_ok=True)
                try:
                    with atomic_output(index) as temporary:
                        pysam.tabix_index(
                            os.fspath(target), preset="bcf", csi=True, force=True,
                            index=os.fspath(temporary),
                        )  # fmt: skip
                except (OSError, ValueError) as error:
                    return (f"{output} has no index: htslib cannot make one ({error})",)
        except (OSError, ValueError, pysam.SamtoolsError) as error:
            raise MergeError(
                f"htslib cannot join the files: {' '.join(str(error).split())}"
            ) from error
    return ()


def _bcf_header(path: Path) -> list[bytes]:
    with pysam.VariantFile(os.fspath(path)) as records:
        return str(records.header).encode().splitlines(keepends=True)


def _join_tsv(
    shards: Sequence[Shard], output: Path | str, format: str, command: str | None, force: bool,
    notes: Sequence[str],
) -> tuple[str, ...]:  # fmt: skip
    header, _ = _tsv(shards[0].path)
    lines = _header(header, command, notes)
    names = lines[-1].decode().rstrip("\n").split("\t")[len(TABLE_COLUMNS) :]
    writer = TsvScoreWriter(
        output, metadata=[line.decode().rstrip("\n") for line in lines[:-1]],
        compressed=format == "tsv.gz", force=force,
        columns=tuple(Column(name, "", "") for name in names),
    )  # fmt: skip
    with writer:
        for shard in shards:
            header, rows = _tsv(shard.path)
            if _header(header, command, notes) != lines:
                raise MergeError(f"{shard.path} has another header than {shards[0].path}")
            for row in rows:
                writer.write_line(row)
    return writer.notes


def _tsv(path: Path) -> tuple[list[bytes], Iterator[bytes]]:
    """The lines that begin with #, and the others."""
    lines = (line.encode() + b"\n" for line in text_lines(path))
    header: list[bytes] = []
    for line in lines:
        header.append(line)
        if not line.startswith(b"##"):
            break
    return header, lines


def _join_parquet(
    shards: Sequence[Shard], output: Path | str, format: str, command: str | None, force: bool,
    notes: Sequence[str],
) -> tuple[str, ...]:  # fmt: skip
    import pyarrow.parquet as pq

    run = dict(shards[0].manifest["run"])
    run["columns"] = tuple(Column(**column) for column in run["columns"])
    run["notes"] = (*run["notes"], *notes)
    writer = ParquetScoreWriter(output, run=RunInfo(command=command, **run), force=force)
    with writer:
        for shard in shards:
            for batch in pq.ParquetFile(shard.path).iter_batches():
                columns = [column.to_pylist() for column in batch.columns]
                for row in zip(*columns, strict=True):
                    writer.write_row(row)
    return writer.notes


def merged_manifest(
    shards: Sequence[Shard], output: Path, format: str, command: str | None
) -> dict[str, Any]:
    """The manifest of the joined output: that of the run, with the sums of its shards."""
    first = shards[0].manifest
    counts: dict[str, Any] = {"records": 0, "filtered": first["counts"]["filtered"], "alleles": 0}
    by_status: Counter[str] = Counter()
    by_flag: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for shard in shards:
        found = shard.manifest["counts"]
        counts["records"] += found["records"]
        counts["alleles"] += found["alleles"]
        by_status.update(found["by_status"])
        by_flag.update(found["by_flag"])
        tokens.update(shard.manifest["tokens"])
    return {
        **{key: first[key] for key in (*_MUST_AGREE, "device")},
        "shard": None,
        "merged_from": [{"file": str(s.path), "sha256": s.manifest["output"]["sha256"]} for s in shards],
        "command": command,
        "run": first["run"],
        "output": {"file": str(output), "sha256": file_digest(output, "sha256"), "format": format},
        "counts": {**counts, "by_status": dict(sorted(by_status.items())), "by_flag": dict(sorted(by_flag.items()))},
        "tokens": dict(tokens),
    }  # fmt: skip


def merge_skipped(shards: Sequence[Shard], path: Path | str, *, force: bool) -> None:
    """Join the shards' lists of alleles without a score.

    Raises:
        MergeError: if a shard has none.
    """
    with atomic_output(path, force=force) as temporary, temporary.open("wb") as out:
        for shard in shards:
            listed = shard.skipped
            if listed is None or not listed.is_file():
                raise MergeError(
                    f"{shard.path} has no list of skipped alleles; score every shard with --skipped"
                )
            with listed.open("rb") as lines:
                header = next(lines)
                if shard is shards[0]:
                    out.write(header)
                out.writelines(lines)
