"""What a model must beat: bits per base of base composition and of an interpolated Markov chain.

    python recipes/pretrain/markov_baseline.py --train PACKED_DIR --val PACKED_DIR -o baseline.json

The chain of order k mixes the counts of all shorter contexts by Witten and Bell's rule: after a
context h that was seen c(h) times with T(h) different bases behind it,

    p_k(x | h) = (c(hx) + T(h) p_{k-1}(x | h')) / (c(h) + T(h)),   h' = h without its oldest base.

It is trained on both strands of the training genomes with their weights and evaluated on both
strands of every validation genome. Composition is that of the validation genome itself (both
strands), which a chain of order 0 could reach only if it knew the genome. Needs numpy alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pack_genomes import Bytes, PackedGenomes, kmer_codes, read_packed

from evo_data.files import atomic_output

ORDER = 11
Floats = NDArray[np.float64]


def genome_pieces(packed: PackedGenomes, genome: int) -> Iterator[Bytes]:
    """The sequences of one genome's records."""
    for record in packed.records:
        if record.genome == genome:
            yield packed.record_bytes(record)


def weighted_counts(packed: PackedGenomes, order: int) -> Floats:
    """Counts of the (order + 1)-mers of both strands, each genome with its weight: `[4 ** (order + 1)]`."""
    size = 4 ** (order + 1)
    total = np.zeros(size)
    for index, genome in enumerate(packed.genomes):
        codes = []
        for sequence in genome_pieces(packed, index):
            forward, reverse, good = kmer_codes(sequence, order + 1)
            codes += [forward[good].astype(np.int64), reverse[good].astype(np.int64)]
        total += genome.weight * np.bincount(np.concatenate(codes), minlength=size)
    return total


def interpolated_bits(counts: Floats) -> list[NDArray[np.float32]]:
    """`-log2 p_k(x | h)` for every k up to the order of the counts.

    Args:
        counts: Of all (order + 1)-mers hx, `[4 ** (order + 1)]`.

    Returns:
        For each k, `[4 ** (k + 1)]`, indexed by the code of hx.
    """
    by_order = [counts]
    while by_order[0].size > 4:
        by_order.insert(0, by_order[0].reshape(4, -1).sum(axis=0))  # over the oldest base
    shorter = np.full(4, 0.25)
    tables = []
    for level in by_order:
        table = level.reshape(-1, 4)
        kinds = (table > 0).sum(axis=1, keepdims=True)
        seen = table.sum(axis=1, keepdims=True)
        # Probabilities for h' repeat for each oldest base that h adds.
        below = np.tile(shorter.reshape(-1, 4), (table.shape[0] // (shorter.size // 4), 1))
        mixed = (table + kinds * below) / np.maximum(seen + kinds, 1e-300)
        shorter = np.where(seen > 0, mixed, below).reshape(-1)
        tables.append(-np.log2(np.maximum(shorter, 1e-30)).astype(np.float32))
    return tables


def chain_bits(packed: PackedGenomes, tables: Sequence[NDArray[np.float32]]) -> Floats:
    """Mean bits per base of every genome (both strands) by order: `[genomes, orders]`.

    Every order is judged on the same bases: those with a full context of ACGT.
    """
    order = len(tables) - 1
    result = np.zeros((len(packed.genomes), len(tables)))
    for index in range(len(packed.genomes)):
        count = 0
        for sequence in genome_pieces(packed, index):
            forward, reverse, good = kmer_codes(sequence, order + 1)
            for strand in (forward[good].astype(np.int64), reverse[good].astype(np.int64)):
                count += strand.size
                for k, table in enumerate(tables):
                    result[index, k] += table[strand & (table.size - 1)].sum(dtype=np.float64)
        result[index] /= max(count, 1)
    return result


def composition_bits(packed: PackedGenomes) -> Floats:
    """Entropy in bits per base of every genome's own composition over both strands."""
    result = []
    for index in range(len(packed.genomes)):
        counts = np.zeros(256)
        for sequence in genome_pieces(packed, index):
            counts += np.bincount(sequence & 0xDF, minlength=256)
        gc = counts[[ord("G"), ord("C")]].sum() / counts[list(b"ACGT")].sum()
        shares = np.array([gc / 2, gc / 2, (1 - gc) / 2, (1 - gc) / 2])
        result.append(-(shares * np.log2(np.maximum(shares, 1e-30))).sum())
    return np.array(result)


def baseline(train: PackedGenomes, val: PackedGenomes, order: int = ORDER) -> dict[str, Any]:
    """Both baselines, means over the validation genomes and each genome's own.

    Returns:
        `composition` and `markov` in bits per base, `markov_order` (the best order up to `order`,
        chosen on the validation genomes, in the baseline's favour), `markov_by_order`,
        `per_genome`, and the digests of the two packings.
    """
    composition = composition_bits(val)
    by_order = chain_bits(val, interpolated_bits(weighted_counts(train, order)))
    means = by_order.mean(axis=0)
    best = int(means.argmin())
    return {
        "train": train.digest,
        "val": val.digest,
        "composition": float(composition.mean()),
        "markov": float(means[best]),
        "markov_order": best,
        "markov_by_order": [float(x) for x in means],
        "per_genome": {
            genome.file: {"composition": float(own), "markov": float(row[best])}
            for genome, own, row in zip(val.genomes, composition, by_order, strict=True)
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True, metavar="PACKED_DIR")
    parser.add_argument("--val", type=Path, required=True, metavar="PACKED_DIR")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--order", type=int, default=ORDER, help="default %(default)s, at most 13")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    options = parser.parse_args(arguments)
    if not 0 <= options.order <= 13:
        parser.error(f"--order {options.order} is out of range; use 0 to 13 (4 GB at 13)")
    started = time.monotonic()
    try:
        result = baseline(read_packed(options.train), read_packed(options.val), options.order)
        with atomic_output(options.output, force=options.force) as path:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"composition {result['composition']:.4f}, Markov order {result['markov_order']} {result['markov']:.4f} bits per base ({time.monotonic() - started:.0f} s)"
    )


if __name__ == "__main__":
    main()
