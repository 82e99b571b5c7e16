"""Pack genomes into a few megabytes for training: 2 bits a base, near-identical genomes weighted down.

    python recipes/pretrain/pack_genomes.py GENOMES_DIR... -o PACKED_DIR

reads every FASTA file of the folders (gzip, bgzip or plain) and writes

    packed.bin      records back to back, 4 bases a byte, first base in the lowest bits, ACGT = 0..3
    intervals.npz   where a base is not ACGT (read back as N) and where it is soft-masked (lower
                    case): start and end of each run, 0-based half-open positions in the packing
    index.json      genomes (file, checksum, cluster, weight), records (name, offset, length)

Each file is one genome. Genomes that share many 31-mers form a cluster, and a genome's weight is
one over the size of its cluster, so that fifty strains of a species count as one. `read_packed` is
the inverse. Needs numpy alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import gzip
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evo_data.files import atomic_output, check_output, sha256_file

VERSION = 1
PACKED, INTERVALS, INDEX = "packed.bin", "intervals.npz", "index.json"
SUFFIXES = (".fna", ".fa", ".fasta")

SKETCH_K = 31
# One 31-mer in so many enters a sketch: a 5 kb phage keeps about 27.
SKETCH_SCALE = 200
# Two genomes are near strains when this share of the larger one's 31-mers is in the other; 0.95^31
# is 0.20, so it stands for an identity of 95 percent, the usual bound of a species. The larger one
# counts so that a plasmid or a prophage does not halve the weight of the genome it sits in.
NEAR_STRAIN = 0.20

_CODE = np.full(256, 255, np.uint8)
for _value, _letters in enumerate((b"Aa", b"Cc", b"Gg", b"Tt")):
    _CODE[list(_letters)] = _value
_BASES = np.frombuffer(b"ACGT", np.uint8)
_LOWER = 0x20

Bytes = NDArray[np.uint8]
Codes = NDArray[np.uint64]


class PackError(ValueError):
    """Genomes cannot be read or packed; one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Genome:
    """One input file.

    Attributes:
        file: Folder and file name.
        bases: Total length of its records.
        sha256: Of the file.
        cluster: Number of its cluster of near strains.
        weight: One over the number of genomes kept in that cluster.
    """

    file: str
    bases: int
    sha256: str
    cluster: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sequence: index of its genome, name, 0-based offset in the packing, length in bases."""

    genome: int
    name: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class PackedGenomes:
    """A packed folder, unpacked.

    Attributes:
        genomes, records: As in the index.
        sequence: All records back to back, ASCII, soft-masked bases in lower case, anything that
            was not ACGT as N or n, `[total bases]`.
        digest: SHA-256 of the index, which holds those of the other files.
    """

    genomes: tuple[Genome, ...]
    records: tuple[Record, ...]
    sequence: Bytes
    digest: str

    def record_bytes(self, record: Record) -> Bytes:
        """The record's bases, a view."""
        return self.sequence[record.offset : record.offset + record.length]


def read_fasta(path: Path) -> list[tuple[str, Bytes]]:
    """Return (name, ASCII bases with their case) of every record.

    Raises:
        PackError: if the file is not FASTA.
    """
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise PackError(f"cannot read {path}: {error}") from None
    if not text.startswith(b">"):
        raise PackError(f"{path} does not begin with '>'; give FASTA files")
    records = []
    for block in text[1:].split(b"\n>"):
        header, _, body = block.partition(b"\n")
        name = (header.split() or [b""])[0].decode("utf-8", "replace")
        records.append((name, np.frombuffer(body.translate(None, b"\r\n\t "), np.uint8)))
    return records


def is_nucleotide(sequence: Bytes) -> bool:
    """Whether at least nine letters in ten are ACGTN: a protein's are not."""
    known = np.isin(sequence & ~np.uint8(_LOWER), np.frombuffer(b"ACGTN", np.uint8))
    return sequence.size > 0 and bool(known.mean() >= 0.9)


def kmer_codes(sequence: Bytes, k: int) -> tuple[Codes, Codes, NDArray[np.bool_]]:
    """Codes of the k-mers at every position, k at most 32.

    Returns:
        For each of the `len(sequence) - k + 1` positions: the k-mer in base 4 with its first base
        most significant, the same of its reverse complement, and whether all its bases are ACGT.
    """
    code = _CODE[sequence]
    valid = code < 4
    forward = np.where(valid, code, 0).astype(np.uint64)
    reverse = np.uint64(3) - forward
    good = valid
    # Codes of length a + b from codes of lengths a and b, by the binary digits of k.
    whole: tuple[int, Codes, Codes, NDArray[np.bool_]] | None = None
    length = 1
    rest = k
    while True:
        if rest & 1:
            part = (length, forward, reverse, good)
            whole = part if whole is None else _join(whole, part)
        rest >>= 1
        if not rest:
            break
        length, forward, reverse, good = _join(
            (length, forward, reverse, good), (length, forward, reverse, good)
        )
    assert whole is not None
    return whole[1:]


def _join(
    left: tuple[int, Codes, Codes, NDArray[np.bool_]],
    right: tuple[int, Codes, Codes, NDArray[np.bool_]],
) -> tuple[int, Codes, Codes, NDArray[np.bool_]]:
    a, left_forward, left_reverse, left_good = left
    b, right_forward, right_reverse, right_good = right
    n = max(0, min(left_forward.size, right_forward.size - a))
    later = slice(a, a + n)
    forward = (left_forward[:n] << np.uint64(2 * b)) | right_forward[later]
    reverse = (right_reverse[later] << np.uint64(2 * a)) | left_reverse[:n]
    return a + b, forward, reverse, left_good[:n] & right_good[later]


def sketch(sequences: Iterable[Bytes]) -> Codes:
    """Sorted hashes of one canonical 31-mer in `SKETCH_SCALE` (FracMinHash)."""
    kept = [np.zeros(0, np.uint64)]
    for sequence in sequences:
        forward, reverse, good = kmer_codes(sequence, SKETCH_K)
        code = np.minimum(forward, reverse)[good]
        # Finaliser of splitmix64: every bit of the code moves every bit of the hash.
        code = (code ^ (code >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        code = (code ^ (code >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        code ^= code >> np.uint64(31)
        kept.append(code[code < np.uint64(2**64 // SKETCH_SCALE)])
    return np.unique(np.concatenate(kept))


def shared_hashes(sketches: Sequence[Codes]) -> NDArray[np.int64]:
    """How many hashes each pair of sketches has in common, `[n, n]`."""
    n = len(sketches)
    hashes = np.concatenate([np.zeros(0, np.uint64), *sketches])
    owner = np.repeat(np.arange(n), [s.size for s in sketches])
    order = np.argsort(hashes, kind="stable")
    hashes, owner = hashes[order], owner[order]
    shared = np.diag([s.size for s in sketches]).astype(np.int64)
    distance = 1
    while distance < hashes.size:
        same = hashes[distance:] == hashes[:-distance]
        if not same.any():
            break
        pairs = owner[:-distance][same] * n + owner[distance:][same]
        counts = np.bincount(pairs, minlength=n * n).reshape(n, n)
        shared += counts + counts.T
        distance += 1
    return shared


def cluster_genomes(sketches: Sequence[Codes]) -> list[int]:
    """Cluster numbers from 0, by single linkage of near strains (`NEAR_STRAIN`)."""
    sizes = np.array([max(s.size, 1) for s in sketches])
    near = shared_hashes(sketches) >= NEAR_STRAIN * np.maximum(sizes[:, None], sizes[None, :])
    labels = np.arange(len(sketches))
    while True:  # the smallest label of all neighbours, until nothing moves
        spread = np.where(near, labels[None, :], len(sketches)).min(axis=1, initial=len(sketches))
        spread = np.minimum(spread, labels)
        if (spread == labels).all():
            break
        labels = spread
    return [int(x) for x in np.unique(labels, return_inverse=True)[1]]


def choose(bases: Sequence[int], clusters: Sequence[int], max_bases: int) -> list[int]:
    """Indices of the genomes to keep within `max_bases`.

    While they are too many, the cluster with most members (of those, the one with most bases) loses
    its shortest.
    """
    kept = set(range(len(bases)))
    while sum(bases[i] for i in kept) > max_bases:
        size = Counter(clusters[i] for i in kept)
        total = Counter[int]()
        for i in kept:
            total[clusters[i]] += bases[i]
        worst = max(size, key=lambda c: (size[c], total[c], c))
        kept.remove(min((i for i in kept if clusters[i] == worst), key=lambda i: (bases[i], i)))
    return sorted(kept)


def _runs(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return edges[::2].astype(np.int64), edges[1::2].astype(np.int64)


def _fill(length: int, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    change = np.zeros(length + 1, np.int8)
    change[starts] = 1
    change[ends] -= 1  # two runs never touch, so a start is not also an end
    return np.cumsum(change[:-1], dtype=np.int8).astype(bool)


def write_packed(
    directory: Path,
    genomes: Sequence[Genome],
    records: Sequence[Record],
    sequence: Bytes,
    *,
    force: bool,
) -> None:
    """Write the three files; the index, by which a folder is recognised, comes last."""
    code = _CODE[sequence]
    other_start, other_end = _runs(code > 3)
    lower_start, lower_end = _runs((sequence & _LOWER).astype(bool))
    code = np.where(code > 3, 0, code).astype(np.uint8)
    code = np.concatenate([code, np.zeros(-code.size % 4, np.uint8)]).reshape(-1, 4)
    packed = code[:, 0] | code[:, 1] << 2 | code[:, 2] << 4 | code[:, 3] << 6
    with atomic_output(directory / PACKED, force=force) as path:
        path.write_bytes(packed.tobytes())
    with atomic_output(directory / INTERVALS, force=force) as path, path.open("wb") as handle:
        np.savez_compressed(
            handle,
            other_start=other_start,
            other_end=other_end,
            lower_start=lower_start,
            lower_end=lower_end,
        )
    index = {
        "format": "packed genomes",
        "version": VERSION,
        "bases": int(sequence.size),
        "sha256": {name: sha256_file(directory / name) for name in (PACKED, INTERVALS)},
        "genomes": [asdict(genome) for genome in genomes],
        "records": [[r.genome, r.name, r.offset, r.length] for r in records],
    }
    with atomic_output(directory / INDEX, force=force) as path:
        path.write_text(json.dumps(index, separators=(",", ":")) + "\n", encoding="utf-8")


def read_packed(directory: Path | str) -> PackedGenomes:
    """Unpack a folder that `pack_genomes.py` wrote.

    Raises:
        PackError: if files are missing or damaged.
    """
    directory = Path(directory)
    try:
        text = (directory / INDEX).read_bytes()
        index = json.loads(text)
        if index.get("version") != VERSION:
            raise PackError(
                f"{directory} has version {index.get('version')}; pack the genomes again"
            )
        for name, digest in index["sha256"].items():
            if sha256_file(directory / name) != digest:
                raise PackError(f"{directory / name} is damaged; pack the genomes again")
        packed = np.fromfile(directory / PACKED, np.uint8)
        intervals = dict(np.load(directory / INTERVALS))
    except (OSError, json.JSONDecodeError) as error:
        raise PackError(
            f"{directory} is no folder of packed genomes ({error}); make one with pack_genomes.py"
        ) from None
    bases = int(index["bases"])
    quads = _BASES[(np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3]
    sequence = quads[packed].reshape(-1)[:bases]
    sequence[_fill(bases, intervals["other_start"], intervals["other_end"])] = ord("N")
    sequence |= _fill(bases, intervals["lower_start"], intervals["lower_end"]) * np.uint8(_LOWER)
    return PackedGenomes(
        genomes=tuple(Genome(**values) for values in index["genomes"]),
        records=tuple(
            Record(genome=g, name=name, offset=offset, length=length)
            for g, name, offset, length in index["records"]
        ),
        sequence=sequence,
        digest=hashlib.sha256(text).hexdigest(),
    )


def find_fasta(directories: Iterable[Path], exclude: Iterable[str]) -> list[Path]:
    """FASTA files of the folders in order of name, less those whose name matches a pattern.

    Raises:
        PackError: if a folder holds none.
    """
    patterns = list(exclude)
    found = []
    for directory in directories:
        files = [
            path
            for path in sorted(directory.glob("*"))
            if path.name.removesuffix(".gz").endswith(SUFFIXES)
        ]
        if not files:
            raise PackError(f"{directory} has no FASTA file ({', '.join(SUFFIXES)}, also .gz)")
        found += [p for p in files if not any(fnmatch.fnmatch(p.name, x) for x in patterns)]
    return found


def pack(
    directories: Sequence[Path],
    output: Path,
    *,
    max_bases: int,
    exclude: Sequence[str] = (),
    overlap_with: Path | None = None,
    force: bool = False,
) -> None:
    """Read, cluster, choose, write, and print what was kept."""
    output.mkdir(parents=True, exist_ok=True)
    for name in (PACKED, INTERVALS, INDEX):
        check_output(output / name, force=force)
    paths, contents, sketches = [], [], []
    for path in find_fasta(directories, exclude):
        records = []
        for name, sequence in read_fasta(path):
            if is_nucleotide(sequence):
                records.append((name, sequence))
            else:
                print(f"left out: {path.name} {name}: {sequence.size} letters, not nucleotides")
        if records:
            paths.append(path)
            contents.append(records)
            sketches.append(sketch(sequence for _, sequence in records))
    bases = [sum(sequence.size for _, sequence in records) for records in contents]
    clusters = cluster_genomes(sketches)
    kept = choose(bases, clusters, max_bases)
    if not kept:
        raise PackError(f"nothing to pack: no genome fits {max_bases:,} bases; raise --max-bases")

    size = Counter(clusters[i] for i in kept)
    number = {cluster: n for n, cluster in enumerate(dict.fromkeys(clusters[i] for i in kept))}
    genomes: list[Genome] = []
    records_out: list[Record] = []
    pieces: list[Bytes] = []
    offset = 0
    for i in kept:
        genomes.append(
            Genome(
                file=f"{paths[i].parent.name}/{paths[i].name}",
                bases=bases[i],
                sha256=sha256_file(paths[i]),
                cluster=number[clusters[i]],
                weight=1 / size[clusters[i]],
            )
        )
        for name, sequence in contents[i]:
            records_out.append(
                Record(genome=len(genomes) - 1, name=name, offset=offset, length=sequence.size)
            )
            pieces.append(sequence)
            offset += sequence.size
    write_packed(output, genomes, records_out, np.concatenate(pieces), force=force)
    _report(genomes, [paths[i].name for i in range(len(paths)) if i not in set(kept)], output)
    if overlap_with is not None:
        _report_overlap(genomes, [sketches[i] for i in kept], read_packed(overlap_with))


def _report(genomes: Sequence[Genome], dropped: Sequence[str], output: Path) -> None:
    members: dict[int, list[Genome]] = {}
    for genome in genomes:
        members.setdefault(genome.cluster, []).append(genome)
    for cluster, group in sorted(members.items(), key=lambda item: (-len(item[1]), item[0])):
        names = ", ".join(g.file for g in group[:3]) + (", ..." if len(group) > 3 else "")
        print(
            f"cluster {cluster:3d}: {len(group):2d} genomes {sum(g.bases for g in group):>11,} bases: {names}"
        )
    if dropped:
        print(f"dropped for size, {len(dropped)}: {' '.join(dropped)}")
    total = sum(g.bases for g in genomes)
    weighted = sum(g.bases * g.weight for g in genomes)
    on_disk = sum((output / name).stat().st_size for name in (PACKED, INTERVALS, INDEX))
    print(
        f"kept {len(genomes)} genomes in {len(members)} clusters: {total:,} bases, {weighted:,.0f} after weighting, {on_disk / 2**20:.2f} MiB in {output}"
    )


def _report_overlap(
    genomes: Sequence[Genome], sketches: Sequence[Codes], other: PackedGenomes
) -> None:
    everything = sketch(other.record_bytes(record) for record in other.records)
    for genome, own in zip(genomes, sketches, strict=True):
        share = np.isin(own, everything, assume_unique=True).mean() if own.size else 0.0
        print(f"{genome.file}: {share:.4f} of its 31-mers occur in the other packing")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="GENOMES_DIR")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PACKED_DIR")
    parser.add_argument(
        "--max-bases", type=int, default=210_000_000,
        help="drop near strains until no more bases are left (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN",
        help="leave out files whose name matches, as in a shell; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--overlap-with", type=Path, metavar="PACKED_DIR",
        help="also print which share of each genome's 31-mers occurs in this packing",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an existing packing")
    options = parser.parse_args(arguments)
    try:
        pack(
            options.directories,
            options.output,
            max_bases=options.max_bases,
            exclude=options.exclude,
            overlap_with=options.overlap_with,
            force=options.force,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
