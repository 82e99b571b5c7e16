"""Sequences of any length in a short list of shapes.

The shape a sequence runs in depends on its own length alone, never on its batch-mates: short ones
are padded on the right to a bucket (the model is causal, so padding changes nothing before it),
long ones go chunk after chunk through the model's states in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evo_data.tokenizer import ByteTokenizer
from evo_toolkit.inference.runner import default_rows

if TYPE_CHECKING:
    import torch

CHUNK = 16_384
"""Longest sequence that runs in one piece, and the length of the pieces of longer ones."""

_SMALLEST = 64


def bucket_length(length: int) -> int:
    """The padded length for a sequence: the next of 64, 96, 128, 192, 256, ... up to `CHUNK`."""
    size = _SMALLEST
    while size < length:
        if size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


def encode(sequences: Sequence[str | bytes]) -> list[NDArray[np.uint8]]:
    """Tokens of every sequence, case as given.

    Raises:
        ValueError: for an empty sequence, naming its index.
    """
    tokenizer = ByteTokenizer()
    encoded = []
    for index, sequence in enumerate(sequences):
        if not isinstance(sequence, str | bytes):
            raise ValueError(f"sequence {index} is a {type(sequence).__name__}; give text or bytes")
        tokens = tokenizer.encode(sequence)
        if len(tokens) == 0:
            raise ValueError(f"sequence {index} is empty; every sequence needs at least one base")
        encoded.append(tokens)
    return encoded


def batches(
    lengths: Sequence[int], device: torch.device
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Group sequences of at most `CHUNK` tokens: (indices, (rows, length)) per forward."""
    by_bucket: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        if length <= CHUNK:
            by_bucket.setdefault(bucket_length(length), []).append(index)
    for length, indices in sorted(by_bucket.items()):
        rows = default_rows(length, device)
        for start in range(0, len(indices), rows):
            yield indices[start : start + rows], (rows, length)


def alone(lengths: Sequence[int]) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """As `batches`, one sequence in each and nothing padded, however long: for models that look ahead."""
    for index, length in enumerate(lengths):
        yield [index], (1, length)


def checked_masks(
    masks: Sequence[NDArray[np.bool_]] | None, lengths: Sequence[int]
) -> list[NDArray[np.bool_] | None]:
    """One mask or None per sequence.

    Raises:
        ValueError: when a mask does not fit its sequence.
    """
    if masks is None:
        return [None] * len(lengths)
    if len(masks) != len(lengths):
        raise ValueError(f"{len(masks)} masks for {len(lengths)} sequences; give one for each")
    checked: list[NDArray[np.bool_] | None] = []
    for index, (mask, length) in enumerate(zip(masks, lengths, strict=True)):
        array = np.asarray(mask, dtype=bool)
        if array.shape != (length,):
            raise ValueError(
                f"mask {index} has shape {array.shape}; its sequence has {length} tokens"
            )
        checked.append(array)
    return checked
