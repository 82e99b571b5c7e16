"""What a corpus holds of its genomes."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from corpus_files import content_of, names_in, random_bases, refusal, write_fasta
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_data.alphabet import reverse_complement
from evo_data.corpus import Corpus, Manifest, prepare
from evo_data.corpus.manifest import INTERVALS, MANIFEST
from evo_data.corpus.sources import genome_name, read_source
from evo_data.errors import CorpusError


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_a_corpus(genomes: Path, tmp_path: Path, encoding: str) -> None:
    output = tmp_path / "corpus"
    manifest = prepare([genomes], output, encoding=encoding, groups="parent")  # type: ignore[arg-type]
    corpus = Corpus.open(output)
    assert names_in(output) == sorted([MANIFEST, *manifest.files])
    assert (INTERVALS in manifest.files) == (encoding == "packed")
    corpus.verify()
    assert corpus.manifest == manifest
    texts = {
        f"{genome_name(path)}/{record.name}": record.letters.decode()
        for path in (genomes / "bacteria/a.fna", genomes / "bacteria/b.fna", genomes / "fungi/c.fa")
        for record in read_source(path, "fasta")
    }
    del texts["b/other"]
    assert content_of(corpus) == texts
    for record in corpus.records:
        text = texts[f"{corpus.genomes[record.genome].name}/{record.name}"]
        assert record.sha256 == hashlib.sha256(text.upper().encode()).hexdigest()
    assert [(g.name, g.group, g.cluster, g.weight) for g in corpus.genomes] == [
        ("a", "bacteria", 0, 0.5),
        ("b", "bacteria", 0, 0.5),
        ("c", "fungi", 1, 1.0),
    ]
    fungus = corpus.genomes[2]
    masked = texts["c/chr1"]
    assert fungus.num_bases == 1007
    assert fungus.acgt_bases == 1007 - masked.upper().count("N")
    assert fungus.soft_masked_bases == 45
    assert list(corpus.records_of(2)) == [3, 4]
    assert corpus.groups == ["bacteria", "fungi"]
    assert corpus.num_bases == 5000 + 1001 + 5000 + 1007 == manifest.totals["bases"]
    assert manifest.totals["effective_bases"] == 5500.5 + fungus.acgt_bases
    (duplicate,) = manifest.duplicates
    assert (duplicate.record, duplicate.same_as, duplicate.strand, duplicate.kept) == (
        "other", 1, "-", False,
    )  # fmt: skip
    source = manifest.sources[2]
    assert source.sha256 == hashlib.sha256((genomes / "fungi/c.fa").read_bytes()).hexdigest()


@settings(max_examples=40, deadline=None)
@given(
    files=st.lists(
        st.lists(st.text("ACGTNacgtnUuRy", min_size=1, max_size=40), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    encoding=st.sampled_from(["bytes", "packed"]),
    width=st.integers(1, 50),
)
def test_any_bases_come_back(
    files: list[list[str]], encoding: str, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    expected = {}
    for f, sequences in enumerate(files):
        records = {f"r{i}": sequence for i, sequence in enumerate(sequences)}
        write_fasta(folder / f"g{f}.fa", records, width)
        for name, sequence in records.items():
            if sum(c not in "Ry" for c in sequence) * 2 >= len(sequence):
                as_read = sequence.replace("U", "T").replace("u", "t")
                expected[f"g{f}/{name}"] = as_read.replace("R", "N").replace("y", "n")
    if not expected:
        return
    prepare([folder], folder / "c", encoding=encoding, duplicates="keep")  # type: ignore[arg-type]
    assert content_of(Corpus.open(folder / "c")) == expected


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_reads_are_slices(genomes: Path, tmp_path: Path, encoding: str) -> None:
    prepare([genomes], tmp_path / "c", encoding=encoding)  # type: ignore[arg-type]
    corpus = Corpus.open(tmp_path / "c")
    rng = random.Random(1)
    for index, record in enumerate(corpus.records):
        whole = corpus.read(index, 0, record.length)
        for _ in range(30):
            start = rng.randrange(record.length + 1)
            stop = rng.randint(start, record.length)
            piece = corpus.read(index, start, stop)
            assert piece.tobytes() == whole[start:stop].tobytes()
            assert piece.flags.writeable and piece.flags.owndata
    for start, stop in ((-1, 3), (3, 2), (0, corpus.records[0].length + 1)):
        with pytest.raises(CorpusError, match="is not within record 0"):
            corpus.read(0, start, stop)
    with pytest.raises(CorpusError, match="no record 99"):
        corpus.read(99, 0, 1)


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_corpus_crosses_processes(
    genomes: Path, tmp_path: Path, encoding: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([genomes], tmp_path / "c", encoding=encoding)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    corpus = Corpus.open("c")
    expected = corpus.read(0, 10, 500).tobytes()
    monkeypatch.chdir("/")
    with get_context(method).Pool(2) as pool:
        found = pool.starmap(_read, [(corpus, 0, 10, 500)] * 4)
    assert found == [expected] * 4


def _read(corpus: Corpus, record: int, start: int, stop: int) -> bytes:
    return corpus.read(record, start, stop).tobytes()


def test_a_pickle_is_small_and_knows_its_corpus(genomes: Path, tmp_path: Path) -> None:
    prepare([genomes], tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    corpus.read(0, 0, 9)
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 500
    assert pickle.loads(pickled).records == corpus.records
    prepare([genomes / "fungi"], tmp_path / "c", force=True)
    with pytest.raises(CorpusError, match="replaced by another"):
        pickle.loads(pickled)


def test_duplicates(tmp_path: Path) -> None:
    rng = random.Random(4)
    one, two = random_bases(rng, 100), random_bases(rng, 100)
    a = write_fasta(tmp_path / "a.fa", {"one": one, "again": one.lower()})
    b = write_fasta(tmp_path / "b.fa", {"turned": reverse_complement(one.encode()).decode()})
    c = write_fasta(tmp_path / "c.fa", {"two": two, "part": two[:99]})
    manifest = prepare([a, b, c], tmp_path / "drop")
    corpus = Corpus.open(tmp_path / "drop")
    assert list(content_of(corpus)) == ["a/one", "c/two", "c/part"]
    assert [source.genome for source in manifest.sources] == [0, None, 1]
    assert [(d.record, d.same_as, d.strand) for d in manifest.duplicates] == [
        ("again", 0, "+"),
        ("turned", 0, "-"),
    ]
    manifest = prepare([a, b, c], tmp_path / "keep", duplicates="keep")
    assert len(Corpus.open(tmp_path / "keep").records) == 5
    assert [d.kept for d in manifest.duplicates] == [True, True]
    message = refusal(a, b, c, output=tmp_path / "error", duplicates="error")
    assert f"{a}: record 'again' is record 'one' of {a};" in message
    message = refusal(b, a, output=tmp_path / "error2", duplicates="error")
    assert f"'one' is the reverse complement of record 'turned' of {b};" in message


def test_no_kmer_reaches_from_one_record_into_the_next(tmp_path: Path) -> None:
    rng = random.Random(10)
    records = [random_bases(rng, 35) for _ in range(2000)]
    for name in "ab":
        write_fasta(tmp_path / f"{name}.fa", {f"r{i}": record for i, record in enumerate(records)})
        rng.shuffle(records)
    files = [tmp_path / "a.fa", tmp_path / "b.fa"]
    prepare(files, tmp_path / "c", duplicates="keep")
    assert [genome.weight for genome in Corpus.open(tmp_path / "c").genomes] == [0.5, 0.5]


def test_progress_reaches_the_end(genomes: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    prepare([genomes], tmp_path / "c", progress=lambda *state: seen.append(state))
    total = sum(path.stat().st_size for path in genomes.rglob("*.f*a"))
    assert {state[1] for state in seen} == {total}
    assert [state[0] for state in seen] == sorted(state[0] for state in seen)
    assert seen[-1][0] == total
    assert {state[2] for state in seen} == {"a.fna", "b.fna", "c.fa"}


def test_one_record_at_a_time_is_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    path = tmp_path / "a.fa"
    with path.open("wb") as handle:
        for index in range(40):
            handle.write(b">r%d\n" % index)
            handle.write(np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, 1_000_000)].tobytes())
            handle.write(b"\n")
    code = (
        "import resource, sys; from evo_data.corpus import prepare;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "before = peak(); prepare([sys.argv[1]], sys.argv[2], encoding='packed'); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "c"], capture_output=True, text=True
    )
    # A record of 1 MB, chunks of 8 MiB, and blocks of the packing, which take 4 MiB several times.
    assert float(done.stdout) < 120, done


def test_time_of_many_records(tmp_path: Path) -> None:
    rng = random.Random(8)
    text = "".join(f">c{i}\n{random_bases(rng, 40)}\n" for i in range(5_000))
    (tmp_path / "a.fa").write_text(text)
    started = time.perf_counter()
    prepare([tmp_path / "a.fa"], tmp_path / "c", encoding="packed")
    assert len(Corpus.open(tmp_path / "c").records) == 5_000
    # Half a second here; a step that takes longer with every record would take many times that.
    assert time.perf_counter() - started < 10


def test_manifest_passes_over_unknown_keys(genomes: Path, tmp_path: Path) -> None:
    manifest = prepare([genomes], tmp_path / "c")
    content = json.loads(manifest.dumps())
    content["later"] = 1
    content["genomes"][0]["later"] = 1
    assert Manifest.loads(json.dumps(content), tmp_path) == manifest
