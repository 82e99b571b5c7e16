"""Scores to files: VCF (text, bgzip, BCF), TSV and Parquet, written whole or not at all.

A VCF goes out as it came in, each line byte for byte, with our INFO keys appended and our header
lines before #CHROM. What each key and column means is said in `evo_toolkit.variants.scores`.

A record without an alternate allele has no place for a `Number=A` value; it still gets one
(`EVO_ST=missing_alt`), so that every record says what became of it. htslib and bcftools read and
normalise such records; `bcftools merge` leaves the value out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from evo_data.errors import OutputExistsError
from evo_data.files import check_output as check_file
from evo_data.vcf import VcfHeader, VcfWriter, annotate
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.variants.scores import (
    INFO_FIELDS,
    AlleleScore,
    Column,
    InfoField,
    RunInfo,
    ScoredRecord,
)
from evo_toolkit.variants.tables import ParquetScoreWriter, TsvScoreWriter

OUTPUT_FORMATS: dict[str, str] = {
    "v": "vcf",
    "z": "vcf.gz",
    "b": "bcf",
    "t": "tsv",
    "p": "parquet",
}
"""What `-O` takes, letters as in bcftools, and the format it stands for."""

VCF_FORMATS = frozenset({"vcf", "vcf.gz", "bcf"})

_SUFFIXES: dict[str, str] = {
    ".vcf": "vcf",
    ".vcf.gz": "vcf.gz",
    ".vcf.bgz": "vcf.gz",
    ".bcf": "bcf",
    ".tsv": "tsv",
    ".tsv.gz": "tsv.gz",
    ".tsv.bgz": "tsv.gz",
    ".parquet": "parquet",
}
_STDOUT_FORMATS = ("vcf", "tsv")
_INDEXES: dict[str, tuple[str, ...]] = {
    "vcf.gz": (".tbi", ".csi"),
    "tsv.gz": (".tbi", ".csi"),
    "bcf": (".csi",),
}
# What the VCF specification allows in a key; checked, since a prefix is the user's choice.
_PREFIX = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")
_PLAIN_VALUE = re.compile(r"[0-9A-Za-z_.+-]+")
_NO_ID_CHARACTER = re.compile(r"[^0-9A-Za-z_.-]+")


class ScoreWriter(Protocol):
    """Takes scored records in order. As a context manager, an exception leaves no file behind.

    Attributes:
        notes: After `close`, what the user should be told (that no index was made, and why).
    """

    notes: tuple[str, ...]

    def write(self, scored: ScoredRecord) -> None:
        """Write one record."""

    def close(self) -> None:
        """Finish the file; only now does it stand under its name."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_output(
    path: str | Path,
    format: str | None = None,
    force: bool = False,
    *,
    inputs: Iterable[str | Path] = (),
) -> str:
    """Return the format of an output that may be written; to be asked before anything expensive.

    Args:
        path: Where the output is to go; `-` is stdout.
        format: A letter of `OUTPUT_FORMATS`, one of its formats or `tsv.gz`, or None: by the suffix
            of the path (stdout: VCF).
        force: Whether an existing file may be replaced.
        inputs: Files that the run reads, which are never replaced, `force` or not.

    Returns:
        "vcf", "vcf.gz", "bcf", "tsv", "tsv.gz" or "parquet".

    Raises:
        UsageError: for a format or suffix that is not known, stdout for a format that needs a
            file, or an output that is one of the inputs.
        EvoDataError: if the file or an index of it exists and `force` is not given, or cannot be
            written there.
    """
    resolved = _resolve_format(os.fspath(path), format)
    if os.fspath(path) == "-":
        if resolved not in _STDOUT_FORMATS:
            raise UsageError(
                f"{resolved} cannot be written to stdout; give a file with -o, or -O v or -O t"
            )
        return resolved
    target = check_file(path, force=True)
    for given in inputs:
        if os.fspath(given) != "-" and _same_file(target, Path(given)):
            raise UsageError(f"output {path} is also an input; give another name with -o")
    check_file(path, force=force)
    for suffix in _INDEXES.get(resolved, ()):
        index = target.with_name(target.name + suffix)
        if index.exists() and not force:
            raise OutputExistsError(f"index {index} exists; remove it or give --force")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise EvoError(
            f"cannot write {path}: folder {target.parent} is read-only for you; choose another folder"
        )
    return resolved


def _resolve_format(path: str, format: str | None) -> str:
    if format is not None:
        known = {*OUTPUT_FORMATS.values(), "tsv.gz"}
        resolved = OUTPUT_FORMATS.get(format, format)
        if resolved not in known:
            letters = ", ".join(f"{letter} ({name})" for letter, name in OUTPUT_FORMATS.items())
            raise UsageError(f"output format {format!r} is not known; use one of {letters}")
        # The letter says TSV; whether it is compressed the suffix alone can say.
        if resolved == "tsv" and path.lower().endswith((".gz", ".bgz")):
            return "tsv.gz"
        return resolved
    if path == "-":
        return "vcf"
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if path.lower().endswith(suffix):
            return _SUFFIXES[suffix]
    raise UsageError(f"output {path} has none of the endings {', '.join(_SUFFIXES)}; use one of them, or say the format with -O {'|'.join(OUTPUT_FORMATS)}")  # fmt: skip


def _same_file(target: Path, given: Path) -> bool:
    try:
        return target.samefile(given)
    except OSError:
        return False


def check_prefix_free(header: VcfHeader, prefix: str) -> None:
    """Refuse a prefix that the input's INFO keys have already, or that makes no legal key.

    Raises:
        UsageError: if the prefix is no start of an INFO key.
        EvoError: if the header declares a key `<prefix>_...`.
    """
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(
            f"--info-prefix {prefix!r} cannot begin an INFO key; use letters, digits and _, beginning with a letter"
        )
    taken = sorted(key for key in header.info_ids if key.startswith(f"{prefix}_"))
    if taken:
        shown = ", ".join(taken[:3]) + (", ..." if len(taken) > 3 else "")
        raise EvoError(
            f"the input already has INFO keys {shown}; give another prefix with --info-prefix (it is {prefix}), or remove them (bcftools annotate -x)"
        )


def metadata_lines(run: RunInfo, info_prefix: str = "EVO") -> list[str]:
    """Return the `##` lines about a run, without INFO declarations and line ends.

    The same lines stand in VCF and TSV. The command line is left out when `run.command` is None.
    """
    lines = [f"##evo_toolkitVersion={_one_line(run.version)}"]
    if run.command is not None:
        lines.append(f"##evo_toolkitCommand={_one_line(run.command)}")
    model = {
        **_identity(run.model),
        "SHA256": run.model_sha256,
        "Precision": run.precision,
        "Device": run.device,
        "Window": str(run.window),
        "WindowMode": run.window_mode,
        **({} if run.suffix is None else {"Suffix": str(run.suffix)}),
        "Strands": run.strands,
        **({} if run.preset is None else {"Preset": run.preset}),
        **({} if run.methods == ("delta",) else {"Methods": ",".join(run.methods)}),
        **({} if run.calibration is None else {"Calibration": run.calibration}),
        "Shapes": ",".join(f"{rows}x{length}" for rows, length in run.shapes),
        "InfoPrefix": info_prefix,
    }
    genome = {**_identity(run.genome), "ContigsSHA256": run.genome_contigs_sha256}
    lines.append(f"##evo_toolkitModel=<{_structured(model)}>")
    lines.append(f"##evo_toolkitGenome=<{_structured(genome)}>")
    lines.extend(f"##evo_toolkitNote={_quoted(note)}" for note in run.notes)
    return lines


def info_lines(run: RunInfo, info_prefix: str = "EVO") -> list[str]:
    """Return the `##INFO` declarations of our keys, without line ends."""
    described = [(f.suffix, f.type, f.description) for f in info_fields(run)]
    for column in run.columns:
        unit = f", {column.unit}" if column.unit else ""
        described.append((column.info_suffix, column.type, f"{column.description}{unit}"))
    return [
        f"##INFO=<ID={info_prefix}_{suffix},Number=A,Type={type_},"
        f"Description={_quoted(description)},Source={_quoted('evo_toolkit')},"
        f"Version={_quoted(run.version)}>"
        for suffix, type_, description in described
    ]


def info_fields(run: RunInfo) -> tuple[InfoField, ...]:
    """Those of `INFO_FIELDS` that a run has values for: without the method `delta` no scores."""
    return tuple(f for f in INFO_FIELDS if "delta" in run.methods or f.type != "Float")


def _identity(name: str) -> dict[str, str]:
    """`ID`, which VCF wants plain, and the full name or path where it is not."""
    if _PLAIN_VALUE.fullmatch(name):
        return {"ID": name}
    plain = _NO_ID_CHARACTER.sub("_", Path(name).name) or "_"
    return {"ID": plain, "Name": name}


def _structured(values: dict[str, str]) -> str:
    return ",".join(
        f"{key}={value if _PLAIN_VALUE.fullmatch(value) else _quoted(value)}"
        for key, value in values.items()
    )


def _quoted(text: str) -> str:
    escaped = _one_line(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def info_text(
    alleles: tuple[AlleleScore, ...],
    info_prefix: str = "EVO",
    fields: Sequence[InfoField] = INFO_FIELDS,
    columns: Sequence[Column] = (),
) -> str:
    """Return the INFO keys of one record, one value per alternate allele, `.` where there is none."""
    values = [(f.suffix, [getattr(allele, f.attribute) for allele in alleles]) for f in fields]
    values += [(c.info_suffix, [allele.values.get(c.name) for allele in alleles]) for c in columns]
    return ";".join(
        f"{info_prefix}_{suffix}=" + ",".join(map(_info_value, found)) for suffix, found in values
    )


def _info_value(value: object) -> str:
    if isinstance(value, tuple):
        return "|".join(value) or "."
    if isinstance(value, str):
        return str(value)
    return f"{value:.6g}" if isinstance(value, float) else "."


class VcfScoreWriter:
    """The input's own lines with our keys appended: VCF, bgzipped VCF with an index, or BCF."""

    def __init__(
        self,
        path: str | Path,
        *,
        format: str,
        header: VcfHeader,
        run: RunInfo,
        info_prefix: str,
        force: bool,
        drop_genotypes: bool,
    ) -> None:
        check_prefix_free(header, info_prefix)
        self.notes: tuple[str, ...] = ()
        self._prefix = info_prefix
        self._own_key = re.compile(rb"(?:^|;)" + re.escape(info_prefix.encode()) + rb"_")
        self._drop_genotypes = drop_genotypes
        self._fields, self._columns = info_fields(run), run.columns
        added = [line.encode() for line in (*info_lines(run, info_prefix), *metadata_lines(run, info_prefix))]  # fmt: skip
        lines = header.extended(added, drop_genotypes=drop_genotypes)
        self._writer = VcfWriter(path, format=format, header_lines=lines, force=force)

    def write(self, scored: ScoredRecord) -> None:
        record = scored.record
        if self._own_key.search(record.info):
            raise EvoError(
                f"line {record.number} of the input already has an INFO key {self._prefix}_...; give another prefix with --info-prefix"
            )
        info = info_text(scored.alleles, self._prefix, self._fields, self._columns).encode()
        self._writer.write(annotate(record, info, drop_genotypes=self._drop_genotypes))

    def close(self) -> None:
        self._writer.close()
        if self._writer.index_note:
            self.notes = (self._writer.index_note,)

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._writer.__exit__(kind, error, trace)


def open_writer(
    path: str | Path,
    *,
    format: str | None,
    header: VcfHeader | None,
    run: RunInfo,
    info_prefix: str = "EVO",
    force: bool = False,
    drop_genotypes: bool = False,
) -> ScoreWriter:
    """Open an output for scored records.

    Args:
        path: The file, or `-` for stdout (VCF and TSV only).
        format: As for `check_output`.
        header: Of the input; needed for VCF and BCF.
        run: What the output says about the run.
        info_prefix: Begins the names of our INFO keys.
        force: Whether an existing file may be replaced.
        drop_genotypes: Whether FORMAT and samples are left out of a VCF.

    Raises:
        UsageError, EvoError, EvoDataError: as `check_output` and `check_prefix_free`.
    """
    resolved = check_output(path, format, force)
    if resolved in VCF_FORMATS:
        if header is None:
            raise EvoError(f"{resolved} output needs a VCF as input; use TSV or Parquet")
        return VcfScoreWriter(
            path, format=resolved, header=header, run=run, info_prefix=info_prefix, force=force,
            drop_genotypes=drop_genotypes,
        )  # fmt: skip
    if resolved == "parquet":
        return ParquetScoreWriter(path, run=run, force=force)
    lines = metadata_lines(run, info_prefix)
    return TsvScoreWriter(
        path, metadata=lines, compressed=resolved == "tsv.gz", force=force, columns=run.columns
    )
