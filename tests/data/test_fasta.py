"""Genomes: the right bases in every process, and one clear line for every file that is no genome."""

import gzip
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_data.errors import FastaError
from evo_data.fasta import Fasta
from evo_data.fasta_scan import FastaScanner


def _write(path: Path, sequences: dict[str, str], width: int = 60, end: str = "\n") -> Path:
    lines = []
    for name, sequence in sequences.items():
        lines.append(f">{name} some words")
        lines += [sequence[at : at + width] for at in range(0, len(sequence), width)]
    path.write_bytes((end.join(lines) + end).encode())
    return path


def _bgzip(path: Path) -> Path:
    pysam.tabix_compress(str(path), f"{path}.gz")
    return Path(f"{path}.gz")


def _message(path: Path) -> str:
    with pytest.raises(FastaError) as caught:
        Fasta(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture(scope="module")
def sequences() -> dict[str, str]:
    rng = random.Random(0)
    return {
        name: "".join(rng.choices("ACGT", k=length))
        for name, length in (("big", 300_000), ("one", 1), ("round", 120), ("odd", 131_073))
    }


@pytest.fixture(scope="module", params=["plain", "bgzip"])
def genome(
    request: pytest.FixtureRequest,
    sequences: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Fasta:
    path = _write(tmp_path_factory.mktemp("genome") / "genome.fa", sequences)
    return Fasta(path if request.param == "plain" else _bgzip(path))


# --- reading ----------------------------------------------------------------------------------------


def test_lengths_are_in_the_order_of_the_file(genome: Fasta, sequences: dict[str, str]) -> None:
    assert list(genome.lengths.items()) == [(name, len(s)) for name, s in sequences.items()]
    assert genome.total_length == sum(map(len, sequences.values()))


def test_any_range_is_the_slice(genome: Fasta, sequences: dict[str, str]) -> None:
    rng = random.Random(1)
    for _ in range(500):
        name = rng.choice(list(sequences))
        length = len(sequences[name])
        start = rng.randrange(length + 1)
        end = rng.choice([start, length, min(length, start + rng.randrange(100_000))])
        assert genome.fetch(name, start, end) == sequences[name][start:end].encode()


def test_ranges_around_the_blocks_in_memory(genome: Fasta, sequences: dict[str, str]) -> None:
    for start in (0, 65_535, 65_536, 65_537):
        for end in (65_536, 65_537, 131_071, 131_072, 131_073):
            if start <= end:
                assert genome.fetch("odd", start, end) == sequences["odd"][start:end].encode()


def test_a_range_larger_than_what_is_kept(tmp_path: Path) -> None:
    sequence = "".join(random.Random(2).choices("ACGT", k=5_000_000))
    genome = Fasta(_write(tmp_path / "genome.fa", {"c": sequence}, width=4_999))
    assert genome.fetch("c", 3, 4_999_998) == sequence[3:4_999_998].encode()
    for start in range(0, 5_000_000, 50_000):
        assert genome.fetch("c", start, start + 10) == sequence[start : start + 10].encode()


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (4, 3), (0, 121), (121, 121)])
def test_ranges_outside_are_refused(genome: Fasta, start: int, end: int) -> None:
    with pytest.raises(FastaError, match="round of 120 bases"):
        genome.fetch("round", start, end)


def test_an_unknown_contig_is_refused_with_the_known_ones(genome: Fasta) -> None:
    with pytest.raises(FastaError, match="no contig 'chrZ'; it has big, one, round, odd"):
        genome.fetch("chrZ", 0, 1)


def test_lower_case_and_other_codes(tmp_path: Path) -> None:
    path = _write(tmp_path / "genome.fa", {"c": "acgtACGTnNuURYSWKMBDHVXryx"})
    assert Fasta(path).fetch("c", 0, 26) == b"ACGTACGTNNTTNNNNNNNNNNNNNN"


def test_a_soft_masked_genome_equals_the_plain_one(
    tmp_path: Path, sequences: dict[str, str]
) -> None:
    rng = random.Random(4)
    masked = {
        name: "".join(rng.choice([base, base.lower()]) for base in sequence)
        for name, sequence in sequences.items()
    }
    genome = Fasta(_write(tmp_path / "masked.fa", masked))
    for name, sequence in sequences.items():
        assert genome.fetch(name, 0, len(sequence)) == sequence.encode()


def test_windows_line_ends(tmp_path: Path) -> None:
    genome = Fasta(_write(tmp_path / "genome.fa", {"a": "ACGTA", "b": "GG"}, width=2, end="\r\n"))
    assert genome.fetch("a", 0, 5) == b"ACGTA"
    assert genome.fetch("b", 0, 2) == b"GG"


def test_sequences_without_bases_and_blank_lines_between(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_text("\n>none\n>a\nACGT\nAC\n\n\n>b\nAC\n\n>last\n")
    genome = Fasta(path)
    assert genome.lengths == {"none": 0, "a": 6, "b": 2, "last": 0}
    assert genome.fetch("a", 0, 6) == b"ACGTAC"
    assert genome.fetch("none", 0, 0) == b""


# --- processes and threads ----------------------------------------------------------------------


def _num_wrong(genome: Fasta, expected: bytes, seed: int) -> int:
    rng = random.Random(seed)
    starts = [rng.randrange(200_000) for _ in range(200)]
    wrong = sum(genome.fetch("big", at, at + 90_000) != expected[at : at + 90_000] for at in starts)
    genome.close()
    return wrong + sum(genome.fetch("big", at, at + 9) != expected[at : at + 9] for at in starts)


def test_a_handle_never_crosses_a_fork(genome: Fasta, sequences: dict[str, str]) -> None:
    genome.close()
    genome.fetch("big", 0, 10)
    expected = sequences["big"].encode()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def read(seed: int) -> None:
        parent_handle = genome._handle
        wrong = _num_wrong(genome, expected, seed)
        # At most one handle is this process's own, and it is not the one inherited.
        results.put((wrong, parent_handle is not None, genome._handle is not parent_handle))

    children = [context.Process(target=read, args=(seed,)) for seed in range(4)]
    for child in children:
        child.start()
    ours = _num_wrong(genome, expected, 99)
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert [results.get() for _ in children] == [(0, True, True)] * 4
    assert ours == 0


def test_a_fork_while_another_thread_reads_does_not_hang(
    genome: Fasta, sequences: dict[str, str]
) -> None:
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with genome._lock:
            taken.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(60)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(genome.fetch("big", 0, 9) != sequences["big"][:9].encode())
    )
    child.start()
    child.join(30)
    release.set()
    thread.join()
    assert child.exitcode == 0


def test_a_pickled_genome_opens_anew(genome: Fasta, sequences: dict[str, str]) -> None:
    genome.fetch("big", 0, 10)
    copy = pickle.loads(pickle.dumps(genome))
    assert copy.lengths == genome.lengths
    assert copy._handle is None
    assert copy.fetch("big", 7, 20_000) == sequences["big"][7:20_000].encode()
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(Fasta.fetch, (genome, "one", 0, 1)) == sequences["one"].encode()


def test_threads_share_a_genome(genome: Fasta, sequences: dict[str, str]) -> None:
    expected = sequences["big"].encode()

    def read(start: int) -> bool:
        return genome.fetch("big", start, start + 70_000) == expected[start : start + 70_000]

    starts = [random.Random(seed).randrange(230_000) for seed in range(300)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, starts))


def test_a_closed_genome_opens_again(genome: Fasta, sequences: dict[str, str]) -> None:
    with genome:
        genome.fetch("one", 0, 1)
    assert genome.fetch("one", 0, 1) == sequences["one"].encode()


# --- the index --------------------------------------------------------------------------------------


def test_the_index_is_that_of_samtools(genome: Fasta) -> None:
    ours = {kind: _read(Path(f"{genome.path}{kind}")) for kind in (".fai", ".gzi")}
    pysam.faidx(str(genome.path))
    assert ours == {kind: _read(Path(f"{genome.path}{kind}")) for kind in (".fai", ".gzi")}
    assert ours[".fai"]


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_file_may_be_scanned_in_any_pieces(data: st.DataObject) -> None:
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    records = data.draw(
        st.lists(st.tuples(st.text("ACGT", max_size=30), st.integers(1, 9)), max_size=5)
    )
    text, expected = "", []
    for number, (sequence, width) in enumerate(records):
        text += f">s{number} x{end}"
        full = min(width, len(sequence))
        expected.append((f"s{number}", len(sequence), len(text), full, full and full + len(end)))
        text += "".join(sequence[at : at + width] + end for at in range(0, len(sequence), width))
    content = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    scanner = FastaScanner("x.fa")
    for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
        scanner.feed(content[start:stop])
    assert scanner.finish() == expected


def test_unequal_lines_are_found_in_any_two_pieces() -> None:
    content = b">a\nACGT\nAC\nACGT\n>b\nAC\n"
    for cut in range(len(content)):
        scanner = FastaScanner("x.fa")
        with pytest.raises(FastaError, match=r"x\.fa:4: the lines"):
            for piece in (content[:cut], content[cut:]):
                scanner.feed(piece)


def test_an_index_that_fits_is_left_alone_whatever_its_date(tmp_path: Path) -> None:
    path = _write(tmp_path / "genome.fa", {"a": "ACGT" * 100})
    index = Path(f"{path}.fai")
    Fasta(path)
    os.utime(index, (1, 1))
    assert Fasta(path).fetch("a", 0, 4) == b"ACGT"
    assert index.stat().st_mtime == 1


CHANGES = {
    "another sequence before": {"new": "AC" * 50, "a": "ACGT" * 100, "b": "GGCC" * 40},
    "a base more": {"a": "ACGT" * 100 + "A", "b": "GGCC" * 40},
    "a base less": {"a": "ACGT" * 100, "b": "GGCC" * 39 + "GGC"},
    "another name": {"a": "ACGT" * 100, "c": "GGCC" * 40},
    "one sequence more": {"a": "ACGT" * 100, "b": "GGCC" * 40, "c": "TT"},
    "one sequence less": {"a": "ACGT" * 100},
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("change", [*CHANGES, "other lines"])
def test_an_index_of_another_version_is_refused(
    tmp_path: Path, change: str, compressed: bool
) -> None:
    old = {"a": "ACGT" * 100, "b": "GGCC" * 40}
    path = _write(tmp_path / "genome.fa", old)
    path = _bgzip(path) if compressed else path
    Fasta(path)
    path.unlink()
    plain = tmp_path / "genome.fa"
    _write(plain, CHANGES.get(change, old), width=58 if change == "other lines" else 60)
    if compressed:
        _bgzip(plain)
    message = _message(path)
    assert "another version of the file" in message
    assert "delete the index" in message
    for kind in (".fai", ".gzi"):
        Path(f"{path}{kind}").unlink(missing_ok=True)
    assert Fasta(path).lengths == {n: len(s) for n, s in CHANGES.get(change, old).items()}


def test_an_index_that_fits_but_for_a_header_line_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "genome.fa", {"a": "ACGT" * 100, "b": "GGCC" * 40})
    Fasta(path)
    path.write_bytes(path.read_bytes().replace(b">b some", b">b\nsome"))
    assert "another version of the file" in _message(path)


def test_blocks_behind_those_of_the_gzi_are_seen(tmp_path: Path) -> None:
    first = _bgzip(_write(tmp_path / "first.fa", {"a": "ACGT" * 50_000}))
    second = _bgzip(_write(tmp_path / "second.fa", {"b": "ACGT"}))
    Fasta(first)
    first.write_bytes(first.read_bytes()[:-28] + second.read_bytes())
    assert "goes on behind the last sequence" in _message(first)


@pytest.mark.parametrize(
    "content", ["a\t4\n", "a\tx\t3\t4\t5\n", "a\t4\t3\t0\t0\n", "a\t4\t3\t5\t4\n", "\0\1", ""]
)
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    path = _write(tmp_path / "genome.fa", {"a": "ACGT"})
    Path(f"{path}.fai").write_text(content)
    assert "delete" in _message(path)


@pytest.mark.parametrize("content", [b"", b"\1", b"\xff" * 8, b"\1" + b"\0" * 7 + b"\7" * 16])
def test_a_broken_gzi_is_refused(tmp_path: Path, content: bytes) -> None:
    path = _bgzip(_write(tmp_path / "genome.fa", {"a": "ACGT" * 50_000}))
    Fasta(path)
    Path(f"{path}.gzi").write_bytes(content)
    assert "delete" in _message(path)


def test_a_missing_gzi_is_built(tmp_path: Path) -> None:
    path = _bgzip(_write(tmp_path / "genome.fa", {"a": "ACGT" * 50_000}))
    Fasta(path)
    before = Path(f"{path}.gzi").read_bytes()
    Path(f"{path}.gzi").unlink()
    Fasta(path)
    assert Path(f"{path}.gzi").read_bytes() == before


def test_the_index_that_samtools_makes_of_a_double_name_is_seen_through(tmp_path: Path) -> None:
    for text in (">a\nAC\n>b\nGG\n>a\nTT\n", ">a\nAC\n>a\nTT\n>b\nGG\n", ">a\nAC\n>a\nTT\n"):
        path = tmp_path / "genome.fa"
        path.write_text(text)
        pysam.faidx(str(path))
        assert "'a' stands there twice" in _message(path)
        Path(f"{path}.fai").unlink()
        assert "'a' stands there twice" in _message(path)


CODE = """
import os, sys
from evo_data.fasta import Fasta
if os.getuid() == 0:
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        print(Fasta(path).fetch("a", 0, 4))
    except ValueError as error:
        print(error)
"""


def test_a_folder_that_cannot_be_written_needs_an_index() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "bare.fa", {"a": "ACGT"})
        Fasta(_write(folder / "indexed.fa", {"a": "ACGT"}))
        folder.chmod(0o555)
        paths = [str(folder / "bare.fa"), str(folder / "indexed.fa")]
        done = subprocess.run(
            [sys.executable, "-c", CODE, *paths], capture_output=True, text=True, check=True
        )
        folder.chmod(0o755)
        assert not Path(f"{paths[0]}.fai").exists()
    refused, read = done.stdout.splitlines()
    assert f"{paths[0]}: has no index" in refused
    assert f"folder {name} cannot be written" in refused
    assert read == "b'ACGT'"


# --- files that are no genome --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b">a\n>b\n", "no sequence, only names"),
        (b">a\nAC\n>a\nGT\n", "stands there twice, in line 1 too"),
        (b">a x\nAC\n>a y\nGT\n", "stands there twice"),
        (b">\nACGT\n", "without name"),
        (b"> a\nACGT\n", "without name"),
        (b">a\nACGT\nAC\nACGT\n", ":4: the lines of a sequence differ"),
        (b">a\nACGT\nACGTA\n", ":3: the lines of a sequence differ"),
        (b">a\nACGT\n\nACGT\n", ":4: the lines of a sequence differ"),
        (b">a\n\nACGT\n", ":3: the lines of a sequence differ"),
        (b">a\nAC GT\nACGT\n", ":2: white space within"),
        (b">a\nACGT\nACG \n", ":3: white space within"),
        (b">a\rACGT\rACGT\r", "carriage return"),
        (b"@read\nACGT\n+\nIIII\n", "looks like FASTQ"),
        (b"LOCUS       NC_000932\n", "looks like GenBank"),
        (b"ID   X56734; SV 1;\n", "looks like EMBL"),
        (b"##gff-version 3\n", "looks like GFF"),
        (b"##fileformat=VCFv4.2\n", "looks like VCF .are the two files exchanged"),
        (b"\x1aA'C\0\0\0\0", "looks like 2bit"),
        (b"; comment\n>a\nAC\n", "comment lines"),
        (b"PK\x03\x04rest", "compressed by zip"),
        (b"just words\n", "no FASTA file"),
        (b"\xff\xfe>\0a\0", "no FASTA file"),
        (b">p\nMKVLAAGIVPWERTYIPASDFGHKLEEEQ\n", "not a genome"),
        (b">a\nAC--GT--AC--\n", "not a genome"),
        (gzip.compress(b">a\nACGT\n", mtime=0), "compressed by gzip.*bgzip"),
        (b"\x1f\x8b", "compressed by gzip"),
    ],
)
def test_what_is_no_genome(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(content)
    with pytest.raises(FastaError, match=message) as caught:
        Fasta(path)
    assert "\n" not in str(caught.value)
    if "not a genome" not in message and "only names" not in message:
        assert [entry.name for entry in tmp_path.iterdir()] == ["genome.fa"]


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    assert "no such file" in _message(tmp_path / "absent.fa")
    assert "is a folder" in _message(tmp_path)
    os.mkfifo(tmp_path / "pipe.fa")
    assert "pipe or device" in _message(tmp_path / "pipe.fa")


def test_a_truncated_or_damaged_bgzip_file(tmp_path: Path) -> None:
    whole = _bgzip(_write(tmp_path / "genome.fa", {"a": "ACGT" * 100_000})).read_bytes()
    path = tmp_path / "damaged.fa.gz"
    path.write_bytes(whole[:-28])
    assert "end-of-file block is missing" in _message(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "end-of-file block is missing" in _message(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    assert "damaged" in _message(path)


def test_damage_behind_a_valid_index_is_found_when_read(tmp_path: Path) -> None:
    path = _bgzip(_write(tmp_path / "genome.fa", {"a": "ACGT" * 100_000, "b": "ACGT"}))
    Fasta(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    genome = Fasta(path)
    with pytest.raises(FastaError, match="damaged"):
        genome.fetch("a", 0, 400_000)


def test_every_torture_file_opens_or_gives_one_line(shared_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fasta"
    # Copied byte by byte, for no index may appear beside the originals, which are read-only.
    shutil.copytree(shared_dir / "data" / "torture" / "fasta", folder, copy_function=shutil.copy)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    num_opened = num_refused = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            genome = Fasta(path)
        except FastaError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
            num_refused += 1
            continue
        num_opened += 1
        with pysam.FastxFile(str(path)) as records:
            for record in records:
                assert len(record.sequence or "") == genome.lengths[record.name]
                expected = "".join(
                    base if base in "ACGT" else "N"
                    for base in (record.sequence or "").upper().replace("U", "T")
                )
                found = genome.fetch(record.name, 0, genome.lengths[record.name])
                assert found.decode() == expected
    assert (num_opened, num_refused) == (24, 142)
