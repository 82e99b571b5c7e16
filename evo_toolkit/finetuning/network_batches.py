"""Examples as batches for a model, on one strand or both.

Shapes: n examples, R rows, L positions, K classes, labels or tracks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo_data.tokenizer import ByteTokenizer
from evo_toolkit.finetuning.examples import UNLABELLED, Examples
from evo_toolkit.finetuning.network_tasks import PER_POSITION, NetworkConfig
from evo_toolkit.inference.batching import bucket_length

Batch = Mapping[str, Tensor]


def batch_of(
    examples: Examples, indices: Sequence[int], config: NetworkConfig
) -> dict[str, Tensor]:
    """A batch of examples; an index ~i is example i with no weight.

    Returns:
        `input_ids` `[R, L]` int64, padded on the right, and `lengths` `[R]`; of variants the windows of
        each example's strands follow each other, reference first, with `forks` `[R]`, and R is a
        multiple of n; otherwise R is n. `targets` by kind: `[n]`, `[n, K]`, `[n, L]` or
        `[n, bins, K]`; `weights` `[n]` float32.
    """
    chosen = [i if i >= 0 else ~i for i in indices]
    batch: dict[str, Tensor] = {
        "weights": torch.tensor([float(i >= 0) for i in indices]),
    }
    rows: list[NDArray[np.uint8]] = []
    if examples.kind == "variant":
        for i in chosen:
            for window in examples.windows[i]:
                rows += [window.ref, window.alt]
        forks = [w.fork for i in chosen for w in examples.windows[i] for _ in range(2)]
        batch["forks"] = torch.tensor(forks)
    else:
        rows = [np.frombuffer(examples.sequences[i].encode(), np.uint8) for i in chosen]
    lengths = [len(row) for row in rows]
    longest = bucket_length(max(lengths)) if len(set(lengths)) > 1 else max(lengths)
    ids = np.full((len(rows), longest), ByteTokenizer.pad_id, np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
    batch["input_ids"], batch["lengths"] = torch.from_numpy(ids), torch.tensor(lengths)
    batch["targets"] = _targets(examples, chosen, longest, config)
    return batch


def _targets(
    examples: Examples, chosen: Sequence[int], longest: int, config: NetworkConfig
) -> Tensor:
    if isinstance(examples.targets, np.ndarray):
        values = examples.targets[list(chosen)]
        kind = np.int64 if values.dtype.kind == "i" else np.float32
        return torch.from_numpy(values.astype(kind))
    if examples.kind == "per_base":
        labels = np.full((len(chosen), longest), UNLABELLED, np.int64)
        for at, i in enumerate(chosen):
            labels[at, : len(examples.targets[i])] = examples.targets[i]
        return torch.from_numpy(labels)
    tracks = examples.targets[0].shape[1]
    numbers = np.full((len(chosen), -(-longest // config.bin_size), tracks), np.nan, np.float32)
    for at, i in enumerate(chosen):
        found = binned(examples.targets[i], config.bin_size)
        numbers[at, : len(found)] = found
    return torch.from_numpy(numbers)


def binned(values: NDArray[np.floating], size: int) -> NDArray[np.float32]:
    """Means over bins of so many rows, NaN left out: `[L, K]` to `[ceil(L / size), K]`."""
    L, K = values.shape
    padded = np.full((-(-L // size) * size, K), np.nan)
    padded[:L] = values
    cells = padded.reshape(-1, size, K)
    there = ~np.isnan(cells)
    counts = there.sum(axis=1)
    sums = np.where(there, cells, 0.0).sum(axis=1)
    means: NDArray[np.float32] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(
        np.float32
    )
    return means


def _complements() -> Tensor:
    table = torch.arange(256)
    for a, b in ("AT", "CG"):
        table[ord(a)], table[ord(b)] = ord(b), ord(a)
    return table


def other_strand(ids: Tensor, lengths: Tensor) -> Tensor:
    """Reverse complement of right-padded rows `[R, L]`, padded on the right again."""
    table = _complements().to(ids.device)
    return turned(table[ids], lengths, fill=ByteTokenizer.pad_id)


def turned(values: Tensor, lengths: Tensor, *, fill: float = 0) -> Tensor:
    """Rows `[R, L, ...]` with their first `lengths` positions in reverse order."""
    L = values.shape[1]
    at = torch.arange(L, device=values.device)
    source = lengths[:, None] - 1 - at
    inside = source >= 0
    index = source.clamp(min=0)
    shape = (*index.shape, *[1] * (values.dim() - 2))
    found = values.gather(1, index.view(shape).expand_as(values))
    return torch.where(inside.view(shape), found, torch.as_tensor(fill, dtype=values.dtype))


def model_rows(batch: Batch, config: NetworkConfig) -> Tensor:
    """What the model reads of a batch, `[rows, L]`: of sequences, their other strands at the end."""
    ids = batch["input_ids"]
    if "forks" in batch or config.strands == "fwd":
        return ids
    return torch.cat([ids, other_strand(ids, batch["lengths"])])


def rows_of(
    values: Tensor, examples: Examples, indices: Sequence[int], config: NetworkConfig
) -> list[NDArray[np.float32]]:
    """The answers of a batch one by one, without what is only padding."""
    rows = []
    for row, i in zip(values.float().cpu().numpy(), indices, strict=True):
        if examples.kind in PER_POSITION:
            size = config.bin_size if examples.kind == "track" else 1
            row = row[: -(-len(examples.sequences[i]) // size)]
        rows.append(np.asarray(row))
    return rows
