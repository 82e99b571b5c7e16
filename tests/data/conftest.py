"""Corpora for tests: one made of literals, and genomes to make one of."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evo_data.alphabet import reverse_complement
from evo_data.corpus import Corpus, Genome, Record

sys.path.insert(0, str(Path(__file__).parent))

from corpus_files import random_bases, write_fasta

MakeCorpus = Callable[..., Corpus]


class _Memory:
    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._data[start:stop].copy()


@pytest.fixture
def make_corpus() -> MakeCorpus:
    """A function from sequences, one list for each genome, to a corpus in memory.

    Genomes are called g0, g1, ... and their records g0r0, g0r1, ...
    """

    def make(
        *genomes: Sequence[bytes],
        groups: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        clusters: Sequence[int] | None = None,
    ) -> Corpus:
        records: list[Record] = []
        known: list[Genome] = []
        data = b""
        for at, sequences in enumerate(genomes):
            known.append(
                Genome(
                    name=f"g{at}",
                    group=groups[at] if groups else "all",
                    file=f"g{at}.fa",
                    cluster=clusters[at] if clusters else at,
                    weight=weights[at] if weights else 1.0,
                    num_bases=sum(map(len, sequences)),
                    acgt_bases=0,
                    soft_masked_bases=0,
                    first_record=len(records),
                    num_records=len(sequences),
                )
            )
            for number, sequence in enumerate(sequences):
                records.append(Record(f"g{at}r{number}", at, len(data), len(sequence)))
                data += sequence
        return Corpus(
            Path("in memory"),
            encoding="bytes",
            genomes=known,
            records=records,
            sequence=_Memory(data),
            digest="0" * 64,
        )

    return make


@pytest.fixture
def genomes(tmp_path: Path) -> Path:
    """A folder with two groups, near strains, soft-masked bases, N runs and a duplicate."""
    rng = random.Random(0)
    folder = tmp_path / "genomes"
    strain = random_bases(rng, 5000)
    plasmid = random_bases(rng, 1001)
    near = list(strain)
    for at in rng.sample(range(5000), 10):
        near[at] = rng.choice("ACGT")
    write_fasta(folder / "bacteria" / "a.fna", {"chr": strain, "plasmid": plasmid})
    write_fasta(
        folder / "bacteria" / "b.fna",
        {"chr": "".join(near), "other": reverse_complement(plasmid.encode()).decode()},
    )
    masked = (
        random_bases(rng, 300) + random_bases(rng, 45, "acgtn") + "NNNNNNN" + random_bases(rng, 648)
    )
    write_fasta(folder / "fungi" / "c.fa", {"chr1": masked, "chr2": random_bases(rng, 7)})
    return folder
