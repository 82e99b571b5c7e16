"""Genome files for tests of corpora, and what becomes of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from evo_data.corpus import Corpus, prepare
from evo_data.corpus.manifest import MANIFEST
from evo_data.errors import CorpusError


def write_fasta(path: Path, records: dict[str, str], width: int = 60, end: str = "\n") -> Path:
    lines = []
    for name, sequence in records.items():
        lines.append(f">{name} some words")
        lines += [sequence[at : at + width] for at in range(0, len(sequence), width)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode())
    return path


def random_bases(rng: random.Random, n: int, letters: str = "ACGT") -> str:
    return "".join(rng.choices(letters, k=n))


def content_of(corpus: Corpus) -> dict[str, str]:
    """Every record as genome/name and text."""
    return {
        f"{corpus.genomes[record.genome].name}/{record.name}": corpus.read(
            index, 0, record.length
        ).tobytes().decode()
        for index, record in enumerate(corpus.records)
    }  # fmt: skip


def made(tmp_path: Path, *files: Path, **options: object) -> dict[str, str]:
    prepare(files, tmp_path / "corpus", **options)  # type: ignore[arg-type]
    return content_of(Corpus.open(tmp_path / "corpus"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(*files: Path | str, output: Path, **options: object) -> str:
    with pytest.raises(CorpusError) as caught:
        prepare(files, output, **options)  # type: ignore[arg-type]
    assert not (output / MANIFEST).exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
