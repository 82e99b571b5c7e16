"""The journal of a corpus in the making: what is finished, and where the files ended then."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evo_data.corpus.manifest import Duplicate, LeftOut, Renamed
from evo_data.corpus.sources import Input
from evo_data.errors import CorpusError
from evo_data.files import atomic_output

_VERSION = 1


@dataclass(slots=True, kw_only=True)
class Entry:
    """What the journal says about a source.

    Attributes:
        file, format, bytes, sha256: The source.
        ends: Size of each file of the corpus in the making after it, in bytes.
        sums: SHA-256 of what it added to each file.
        carry: With 2 bits a base, the last bases, which do not fill a byte yet.
        num_records, num_bases, acgt_bases, soft_masked_bases: What was kept of it.
        duplicates, left_out, renamed: What was found in it.
        unusable: Why nothing of it can be used; None if something can.
    """

    file: str
    format: str
    bytes: int
    sha256: str
    ends: dict[str, int] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    carry: str = ""
    num_records: int = 0
    num_bases: int = 0
    acgt_bases: int = 0
    soft_masked_bases: int = 0
    duplicates: list[Duplicate] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    renamed: list[Renamed] = field(default_factory=list)
    unusable: str | None = None

    @property
    def line(self) -> str:
        """The entry as a line of the journal."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of_line(cls, line: str) -> Entry:
        """Return the entry of a line.

        Raises:
            ValueError, KeyError, TypeError: if it is none.
        """
        content = json.loads(line)
        for name, kind in (("duplicates", Duplicate), ("left_out", LeftOut), ("renamed", Renamed)):
            content[name] = [kind(**found) for found in content[name]]
        return cls(**content)

    def is_of(self, item: Input) -> bool:
        """Whether a source is this one: equal in size and checksum."""
        if item.bytes != self.bytes:
            return False
        try:
            return item.sha256() == self.sha256
        except CorpusError:
            return False


def read_journal(path: Path, made: dict[str, Any]) -> list[Entry]:
    """Return the entries of a journal; none if it is absent or was `made` in another way."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
        if json.loads(lines[0]) != {"version": _VERSION, **made}:
            return []
    except (OSError, ValueError):
        return []
    entries = []
    # What stands behind the last line feed was not written to its end.
    for line in lines[1:-1]:
        try:
            entries.append(Entry.of_line(line))
        except (ValueError, KeyError, TypeError):
            break
    return entries


def write_journal(path: Path, made: dict[str, Any], entries: list[Entry]) -> None:
    """Replace a journal by one of these entries."""
    header = json.dumps({"version": _VERSION, **made}) + "\n"
    with atomic_output(path, force=True) as new:
        new.write_text(header + "".join(entry.line for entry in entries), encoding="utf-8")
