"""Genomes that a run was given as files, prepared once and kept in a cache."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from evo_data.corpus import Corpus, is_corpus
from evo_data.corpus.manifest import MANIFEST
from evo_data.corpus.prepare import prepare as prepare_corpus
from evo_data.corpus.sources import find_sources
from evo_toolkit.checkpoint.cache import cache_dir
from evo_toolkit.errors import UsageError

_log = logging.getLogger("evo_toolkit")


def open_genomes(
    genomes: Sequence[str], folder: Path | None = None, *, prepare: bool = False
) -> Corpus:
    """Open a corpus, or the one in the cache that is made of some genomes as they are now.

    Args:
        genomes: A corpus, alone; or files of genomes and folders of them.
        folder: Where corpora are kept; None means the toolkit's cache.
        prepare: Whether a corpus that is not there yet is made; runs that start together wait for
            the first.

    Raises:
        EvoDataError, UsageError: if there is no such corpus, or it cannot be made.
    """
    paths = [Path(genome) for genome in genomes]
    if not paths:
        raise UsageError("no genomes are given; name files, a folder or a corpus")
    if len(paths) == 1 and is_corpus(paths[0]):
        return Corpus.open(paths[0])
    for path in paths:
        if is_corpus(path):
            raise UsageError(
                f"{path} is a corpus already; give it alone, or the genomes it is made of"
            )
    output = (folder or cache_dir() / "corpora") / _identity(paths)
    if prepare and not is_corpus(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(output.with_suffix(".lock")):
            _prepare_in_cache(paths, output)
    return Corpus.open(output)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait until no other run on this machine prepares the same genomes."""
    with lock.open("w") as handle:
        with suppress(OSError):  # some network file systems know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _prepare_in_cache(paths: Sequence[Path], output: Path) -> None:
    if is_corpus(output):  # made by the run that was waited for
        return
    _log.info("preparing %s in %s (once)", ", ".join(map(str, paths)), output)
    made = prepare_corpus(paths, output, groups="parent")
    if made.duplicates or made.left_out:
        _log.warning(
            "%d duplicate records and %d that cannot be used were left out; %s names them",
            sum(not duplicate.kept for duplicate in made.duplicates),
            len(made.left_out),
            output / MANIFEST,
        )


def _identity(paths: Sequence[Path]) -> str:
    """A name for what some genomes hold now, by the files' paths, sizes and times of change."""
    entries = []
    for source in find_sources(paths):
        for file in source.files:
            stat = file.stat()
            entries.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return sha256(repr(entries).encode()).hexdigest()[:32]
