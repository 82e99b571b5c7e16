"""Making a corpus from genomes, so that it can be stopped anywhere and never be half a corpus.

Everything is written in a folder `.preparing` within the corpus: the files of the corpus grow at
their ends only, and a journal says after each source how far they reach. A run that finds a journal
cuts the files back to what it says and goes on with the next source. At the end the files move out
of it, the manifest last; a folder without manifest is no corpus.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from evo_data import kmers
from evo_data.corpus.draft import Draft, Meter, Progress
from evo_data.corpus.format import WORK, Corpus
from evo_data.corpus.manifest import FORMAT, INTERVALS, MANIFEST, Encoding, Manifest
from evo_data.corpus.sources import Input, find_sources, folder_name, genome_name
from evo_data.errors import CorpusError, OutputExistsError
from evo_data.files import read_text, sync

Duplicates = Literal["drop", "keep", "error"]
Groups = Mapping[str, str] | Literal["parent"] | None

LOCK = "lock"


def prepare(
    genomes: Sequence[Path | str],
    output: Path | str,
    *,
    encoding: Encoding = "bytes",
    groups: Groups = None,
    duplicates: Duplicates = "drop",
    cluster: bool = True,
    skip_unusable: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make a corpus from genomes and return its manifest.

    Each file becomes one genome, in the order given (folders: alphabetical). Case is kept, U is
    written as T, and every letter but A, C, G, T as N; documents of Megatron corpora are kept byte
    for byte. One record at a time is in memory.

    A run that was stopped is taken up again by the same call: sources that were finished are kept
    if they are unchanged (SHA-256) and what was written of them is as it was. If the corpus is
    there already, made of the same sources in the same way, nothing is done.

    Args:
        genomes: FASTA (plain, gzip, bgzip), GenBank, EMBL, folders of these, Megatron prefixes.
        output: The folder of the corpus; made if absent.
        encoding: "bytes" (a byte a base) or "packed" (2 bits a base).
        groups: None: one group, "all"; "parent": the name of the folder in which a file lies; or
            a mapping from a genome's name, file name or path, as given, to its group.
        duplicates: What becomes of records whose sequence (or its reverse complement) came
            before: "drop" leaves them out, "keep" keeps them, "error" stops. They are reported.
        cluster: Whether genomes that share most k-mers (`evo_data.kmers.clusters`) are weighted
            by one over their number; else every genome has weight 1.
        skip_unusable: Whether damaged and foreign files are left out and reported; otherwise they
            are an error, after all others were read. (Records that are empty or no nucleotides
            are always left out and reported.)
        force: Whether another corpus at `output` may be replaced.
        progress: Called as the input is read.

    Raises:
        CorpusError: if an input cannot be used, or the output belongs to something else.
        OutputExistsError: if there is another corpus and `force` is not given.
        OSError: if the disk is full or forbids writing; the same call takes it up again.
    """
    output = Path(output)
    settings: dict[str, Any] = {"duplicates": duplicates, "clusters": None}
    if cluster:
        settings["clusters"] = {
            "k": kmers.K,
            "scale": kmers.SCALE,
            "threshold": kmers.CLUSTER_CONTAINMENT,
            "of": "larger",
        }
    if encoding not in ("bytes", "packed"):
        raise CorpusError(f"encoding {encoding!r} is not known; use 'bytes' or 'packed'")
    if duplicates not in ("drop", "keep", "error"):
        raise CorpusError(f"duplicates {duplicates!r} is not known; use 'drop', 'keep' or 'error'")
    inputs = find_sources(genomes)
    group_of = _groups([item.path for item in inputs], groups)
    _check_folder(output)

    def existing() -> Manifest | None:
        return _existing(output, inputs, encoding, settings, group_of, skip_unusable)

    if not (output / WORK).exists():
        # Without a lock, and so without writing: a finished corpus may be read-only.
        found = existing()
        if found is not None:
            return found
    with _naming(output), _locked(output) as work:
        _complete_move(work, output)
        if (output / MANIFEST).exists():
            found = existing()
            if found is not None:
                shutil.rmtree(work)
                return found
            if not force:
                raise OutputExistsError(
                    f"{output} is a corpus of other genomes, made in another way, or damaged; choose "
                    "another folder, or give --force to replace it"
                )
        meter = Meter(inputs, progress)
        with Draft(work, encoding, settings, meter) as draft:
            for item in draft.resume(inputs):
                meter.within(item, 0)
                draft.add(item)
                meter.end(item)
            draft.sync()
            manifest = draft.finish(inputs, group_of, skip_unusable)
        _complete_move(work, output)
        shutil.rmtree(work)
    return manifest


def _groups(paths: Sequence[Path], groups: Groups) -> dict[Path, str]:
    """Return each source's group.

    Raises:
        CorpusError: if a mapping lacks one.
    """
    if groups is None:
        return dict.fromkeys(paths, "all")
    if isinstance(groups, str):
        if groups != "parent":
            raise CorpusError(f"groups {groups!r} is not known; use 'parent' or a mapping")
        return {path: folder_name(path) or "all" for path in paths}
    found, missing = {}, []
    for path in paths:
        keys = (genome_name(path), path.name, str(path))
        group = next((groups[key] for key in keys if key in groups), "")
        if group:
            found[path] = group
        else:
            missing.append(keys[0])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CorpusError(
            f"no group for {', '.join(missing[:3])}{more}; the table needs a line for each genome "
            "(its name or file name, a tab, its group)"
        )
    return found


def read_groups(path: Path | str) -> dict[str, str]:
    """Read a table of groups: genome (or file) name, tab, group; lines that begin with # are left.

    Raises:
        EvoDataError: if the table cannot be read.
        CorpusError: naming the line that is wrong, or names a genome again with another group.
    """
    groups: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 2 or not all(columns):
            raise CorpusError(
                f"{path}:{number}: needs two columns, genome and group, separated by a tab"
            )
        name, group = columns
        if groups.setdefault(name, group) != group:
            raise CorpusError(f"{path}:{number}: {name} was in group {groups[name]} before")
    return groups


def _check_folder(output: Path) -> None:
    """Raise if the output can be no corpus of ours."""
    try:
        entries = {entry.name for entry in output.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise CorpusError(f"{output}: is a file; give a folder for the corpus") from None
    except OSError as error:
        raise CorpusError(f"{output}: cannot be used: {error.strerror}") from error
    if WORK in entries or not entries:
        return
    if MANIFEST not in entries:
        raise CorpusError(f"{output}: holds other files and no corpus; give an empty or new folder")
    try:
        ours = json.loads((output / MANIFEST).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise CorpusError(
            f"{output / MANIFEST}: not the manifest of a corpus, or damaged; give another folder, or "
            "delete this one"
        )


def _existing(
    output: Path,
    inputs: Sequence[Input],
    encoding: str,
    settings: dict[str, Any],
    group_of: Mapping[Path, str],
    skip_unusable: bool,
) -> Manifest | None:
    """Return the manifest of the corpus at `output` if it is the one that is asked for."""
    try:
        manifest = Corpus.open(output).manifest
    except CorpusError:
        return None
    assert manifest is not None
    sources = manifest.sources
    if (
        (manifest.encoding, manifest.settings) != (encoding, settings)
        or [source.bytes for source in sources] != [item.bytes for item in inputs]
        or (manifest.unusable and not skip_unusable)
    ):
        return None
    for source, item in zip(sources, inputs, strict=True):
        genome = None if source.genome is None else manifest.genomes[source.genome]
        if genome is not None and genome.group != group_of[item.path]:
            return None
        if source.sha256 != item.sha256():
            return None
    return manifest


@contextmanager
def _naming(output: Path) -> Iterator[None]:
    """Give the errors of writing, which name no file, the name of the output."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(output)) from error
        raise


@contextmanager
def _locked(output: Path) -> Iterator[Path]:
    """Yield the work folder, which no other process uses meanwhile.

    Raises:
        CorpusError: if another process does.
    """
    is_new = not output.exists()
    work = output / WORK
    while True:
        work.mkdir(parents=True, exist_ok=True)
        handle = (work / LOCK).open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise CorpusError(
                f"{output}: another process is preparing this corpus; wait until it is done"
            ) from None
        except OSError:
            pass  # Some network file systems know no locks.
        with suppress(FileNotFoundError):
            if os.fstat(handle.fileno()).st_ino == (work / LOCK).stat().st_ino:
                break
        # Whoever held it was just finishing, and the folder is gone.
        handle.close()
    try:
        yield work
    finally:
        with suppress(OSError):
            if [entry.name for entry in work.iterdir()] == [LOCK]:
                shutil.rmtree(work)
            if is_new:
                output.rmdir()
        handle.close()


def _complete_move(work: Path, output: Path) -> None:
    """Move a finished corpus out of its work folder, if there is one; may be repeated."""
    try:
        manifest = Manifest.loads((work / MANIFEST).read_bytes(), work / MANIFEST)
    except FileNotFoundError:
        return
    # From here to the end there is no manifest, and so no corpus.
    (output / MANIFEST).unlink(missing_ok=True)
    if INTERVALS not in manifest.files:
        (output / INTERVALS).unlink(missing_ok=True)
    for name in manifest.files:
        with suppress(FileNotFoundError):
            (work / name).replace(output / name)
    sync(output)
    (work / MANIFEST).replace(output / MANIFEST)
    sync(output)
