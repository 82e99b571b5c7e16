"""Splits as files: JSON that names records, so that they outlive the order of a corpus."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from evo_data.corpus import Corpus
from evo_data.files import atomic_output
from evo_data.leakage import Leakage
from evo_data.splits import PARTS, Segment, Split, SplitError, checked_split

FORMAT = "evo split"
FORMAT_VERSION = 1


def write_split(
    path: Path | str,
    split: Split,
    corpus: Corpus,
    *,
    leakage: Sequence[Leakage] = (),
    force: bool = False,
) -> None:
    """Write a split as JSON, records by name, whole or not at all.

    Args:
        leakage: What `leakage_report` found, to stand in the file.

    Raises:
        EvoDataError: if the file exists and `force` is not given, or cannot be written.
    """

    def row(segment: Segment) -> list[str | int]:
        record = corpus.records[segment.record]
        genome = corpus.genomes[record.genome]
        return [genome.name, record.name, record.length, segment.start, segment.stop]

    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "corpus": corpus.digest,
        "method": dict(split.method),
        "columns": ["genome", "record", "record_length", "start", "stop"],
        "leakage": [row._asdict() for row in leakage],
        "parts": {},
    }
    # A line for each segment: a file that can be read, compared and searched.
    head = json.dumps(content, indent=1).removesuffix("{}\n}")
    body = ",\n".join(
        f'  "{part}": [' + ",".join(f"\n   {json.dumps(row(segment))}" for segment in rows) + "]"
        for part, rows in split.parts().items()
    )
    with atomic_output(path, force=force) as temporary:
        temporary.write_text(f"{head}{{\n{body}\n }}\n}}\n", encoding="utf-8")


def read_split(path: Path | str, corpus: Corpus) -> Split:
    """Read a split that `write_split` wrote, for the same corpus or one with the same records.

    Raises:
        SplitError: if the file is no split, or does not fit the corpus.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SplitError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SplitError(f"{path}: not the manifest of a split ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SplitError(
            f"{path}: not the manifest of a split; make one with evo-toolkit data split"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise SplitError(
            f"{path}: format version {content.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; update evo-toolkit, or split again"
        )
    index = {
        (corpus.genomes[record.genome].name, record.name): at
        for at, record in enumerate(corpus.records)
    }
    parts: dict[str, list[Segment]] = {}
    try:
        for part in PARTS:
            parts[part] = []
            for genome, name, length, start, stop in content["parts"][part]:
                at = index.get((genome, name))
                if at is None or corpus.records[at].length != length:
                    raise SplitError(
                        f"{path}: made for another corpus: record {name} of {genome} with {length} "
                        f"bases is not in {corpus.path}; split that corpus"
                    )
                parts[part].append(Segment(at, int(start), int(stop)))
        return checked_split(corpus, parts, dict(content.get("method", {})))
    except SplitError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SplitError(f"{path}: damaged ({error}); split again") from error
