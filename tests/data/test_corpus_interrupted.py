"""However making a corpus ends, there is a whole one or none, and the same call goes on."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
from corpus_files import files_in, random_bases, refusal, write_fasta

from evo_data.corpus import Corpus, prepare
from evo_data.corpus import draft as draft_module
from evo_data.corpus.format import WORK
from evo_data.corpus.growing import GrowingFiles
from evo_data.corpus.manifest import MANIFEST, RECORDS, SEQUENCE
from evo_data.errors import CorpusError


def _prepare_dying(
    genomes: Path, output: Path, encoding: str, at: int, force: bool, synced: bool
) -> None:
    """Prepare, but die as by kill -9 at the `at`th step that touches the disk."""
    left = at

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(9)

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **options: object) -> object:
            step()
            return function(*args, **options)

        return wrapped

    if synced:
        draft_module._SYNC_BYTES = 0
    GrowingFiles.append = dying(GrowingFiles.append)  # type: ignore[method-assign,assignment]
    os.fsync = dying(os.fsync)
    os.replace = dying(os.replace)
    Path.replace = dying(Path.replace)  # type: ignore[method-assign,assignment]
    os.unlink = dying(os.unlink)
    shutil.rmtree = dying(shutil.rmtree)  # type: ignore[assignment]
    prepare([genomes], output, encoding=encoding, force=force)  # type: ignore[arg-type]
    os._exit(0)


@pytest.mark.parametrize(
    ("encoding", "synced", "stride"),
    [
        ("packed", True, 5),
        ("bytes", False, 4),
        *(
            pytest.param(encoding, synced, 1, marks=pytest.mark.slow)
            for encoding in ("bytes", "packed")
            for synced in (False, True)
        ),
    ],
)
def test_killed_anywhere_it_goes_on_to_the_same_corpus(
    genomes: Path, tmp_path: Path, encoding: str, synced: bool, stride: int
) -> None:
    prepare([genomes], tmp_path / "whole", encoding=encoding)  # type: ignore[arg-type]
    expected = files_in(tmp_path / "whole")
    at, code = 0, 9
    while code == 9:
        output = tmp_path / f"{at}"
        process = get_context("fork").Process(
            target=_prepare_dying, args=(genomes, output, encoding, at, False, synced)
        )
        process.start()
        process.join()
        code = process.exitcode
        if (output / MANIFEST).exists():
            assert _files_only(output) == expected
        elif output.exists():
            with pytest.raises(CorpusError):
                Corpus.open(output)
        prepare([genomes], output, encoding=encoding)  # type: ignore[arg-type]
        assert files_in(output) == expected, at
        at += stride
    assert code == 0
    assert at > 20


def _files_only(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_killed_while_replacing_it_is_the_old_or_the_new_corpus_or_none(
    genomes: Path, tmp_path: Path
) -> None:
    prepare([genomes], tmp_path / "new", encoding="bytes")
    prepare([genomes / "fungi"], tmp_path / "old", encoding="packed")
    new, old = files_in(tmp_path / "new"), files_in(tmp_path / "old")
    seen = set()
    at, code = 0, 9
    while code == 9:
        # Most steps only add to the work folder; the last ones exchange the corpora.
        at += 1 if at >= 20 else 5
        output = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "old", output)
        process = get_context("fork").Process(
            target=_prepare_dying, args=(genomes, output, "bytes", at, True, False)
        )
        process.start()
        process.join()
        code = process.exitcode
        if (output / MANIFEST).exists():
            found = _files_only(output)
            assert found in (old, new)
            seen.add("old" if found == old else "new")
            Corpus.open(output).verify()
        else:
            seen.add("none")
            with pytest.raises(CorpusError, match="was not finished"):
                Corpus.open(output)
        prepare([genomes], output, force=True)
        assert files_in(output) == new
    assert seen == {"old", "new", "none"}


def test_finished_sources_are_not_read_again(
    genomes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "c"
    original = draft_module.read_source
    read: list[str] = []

    def recording(path: Path, *args: object) -> object:
        read.append(path.name)
        if path.name == stop_at:
            raise KeyboardInterrupt
        return original(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(draft_module, "read_source", recording)
    stop_at = "c.fa"
    with pytest.raises(KeyboardInterrupt):
        prepare([genomes], output)
    assert read == ["a.fna", "b.fna", "c.fa"]
    stop_at = ""
    read.clear()
    # A source that changed, and what stands behind it, is read again.
    b = genomes / "bacteria" / "b.fna"
    b.write_bytes(b.read_bytes().replace(b">chr", b">new"))
    prepare([genomes], output)
    assert read == ["b.fna", "c.fa"]
    prepare([genomes], tmp_path / "fresh")
    assert files_in(output) == files_in(tmp_path / "fresh")


@pytest.mark.parametrize("harm", ["flip", "cut", "journal", "records", "other settings"])
@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_a_damaged_beginning_is_made_again(
    harm: str, encoding: str, genomes: Path, tmp_path: Path
) -> None:
    output, work = tmp_path / "c", tmp_path / "c" / WORK
    bad = genomes / "fungi" / "d.fa"
    bad.write_bytes(b"")
    refusal(genomes, output=output, encoding=encoding)
    bad.unlink()
    if harm == "flip":
        data = bytearray((work / SEQUENCE).read_bytes())
        data[1000] ^= 2
        (work / SEQUENCE).write_bytes(data)
    elif harm == "cut":
        (work / SEQUENCE).write_bytes((work / SEQUENCE).read_bytes()[:1501])
    elif harm == "journal":
        text = (work / "journal.jsonl").read_text()
        (work / "journal.jsonl").write_text(text[: len(text) // 2])
    elif harm == "records":
        (work / RECORDS).write_bytes(b"\xff\xfe")
    options = {"duplicates": "keep"} if harm == "other settings" else {}
    prepare([genomes], output, encoding=encoding, **options)  # type: ignore[arg-type]
    prepare([genomes], tmp_path / "fresh", encoding=encoding, **options)  # type: ignore[arg-type]
    assert files_in(output) == files_in(tmp_path / "fresh")


def test_two_at_once(genomes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "c"
    seen = []

    def meanwhile(done: int, total: int, file: str) -> None:
        if not seen:
            process = get_context("fork").Process(target=_second, args=(genomes, output))
            process.start()
            process.join()
            seen.append(process.exitcode)

    prepare([genomes], output, progress=meanwhile)
    assert seen == [7]
    Corpus.open(output).verify()


def _second(genomes: Path, output: Path) -> None:
    try:
        prepare([genomes], output)
    except CorpusError as error:
        os._exit(7 if "another process" in str(error) else 1)
    os._exit(0)


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_a_full_disk(encoding: str, genomes: Path, tmp_path: Path) -> None:
    process = get_context("fork").Process(
        target=_with_file_limit, args=(genomes, tmp_path / "c", encoding)
    )
    process.start()
    process.join()
    assert process.exitcode == 7
    prepare([genomes], tmp_path / "c", encoding=encoding)  # type: ignore[arg-type]
    prepare([genomes], tmp_path / "fresh", encoding=encoding)  # type: ignore[arg-type]
    assert files_in(tmp_path / "c") == files_in(tmp_path / "fresh")


def _with_file_limit(genomes: Path, output: Path, encoding: str) -> None:
    # A file that may not grow fails as one on a full disk does (EFBIG instead of ENOSPC).
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        prepare([genomes], output, encoding=encoding)  # type: ignore[arg-type]
    except OSError as error:
        os._exit(7 if error.filename == str(output) else 8)
    os._exit(0)


@pytest.mark.slow
def test_kill_minus_nine_at_random_times(tmp_path: Path) -> None:
    rng = random.Random(6)
    for index in range(12):
        masked = random_bases(rng, 1_000_001, "acgt") + "N" * 10
        text = random_bases(rng, 1_000_003) + masked
        write_fasta(tmp_path / "in" / f"g{index:02d}.fa", {"r": text})
    prepare([tmp_path / "in"], tmp_path / "whole", encoding="packed")
    expected = files_in(tmp_path / "whole")
    code = (
        "import sys; from evo_data.corpus import draft, prepare; draft._SYNC_BYTES = 1 << 22;"
        "prepare([sys.argv[1]], sys.argv[2], encoding='packed')"
    )
    output = tmp_path / "c"
    kills = 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "in", output])
        try:
            assert process.wait(0.1 + rng.uniform(0.03, 0.06) * kills) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            with pytest.raises(CorpusError):
                Corpus.open(output)
            assert len(list(output.rglob("*.tmp"))) <= 1
    assert kills > 2
    assert files_in(output) == expected
