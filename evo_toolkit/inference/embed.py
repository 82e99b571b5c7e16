"""Embeddings: outputs of layers by name, pooled over positions, of one strand or of both."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evo_toolkit.inference.batching import CHUNK, alone, batches, checked_masks, encode
from evo_toolkit.inference.readings import (
    POOLS,
    STRANDS,
    Pool,
    Pooled,
    Reading,
    Strands,
    Values,
    readings_of,
)
from evo_toolkit.inference.runner import default_rows, padded

if TYPE_CHECKING:
    import pandas as pd

    from evo_toolkit.model.striped_hyena import StripedHyena2

ALL_LAYERS = "all"
"""Stands for the residual stream after every block, and `norm`."""

Embedded = dict[str, list[Values]]

_log = logging.getLogger("evo_toolkit")

_BLOCK = re.compile(r"blocks\.(\d+)(?:\.|$)")

# What the released implementation calls places whose output is the same.
_RELEASED_NAMES: Mapping[str, str] = {
    "embedding_layer": "embedding",
    "out_filter_dense": "out_projection",
    "filter": "mixer",
    "inner_mha_cls": "out_projection",
}

# Sequences that are embedded together: so many forwards' worth, and about so many bytes of results.
_FORWARDS_PER_GROUP = 64
_CPU_BYTES_PER_GROUP = 256 << 20
# Every position of one layer of a large model, for as many tokens as a forward on a GPU has.
_GPU_BYTES_PER_GROUP = 1 << 30
# Bases in a row of a forward whose tokens are counted for that.
_USUAL = 256

_Item = TypeVar("_Item")
_ReadingsOf = Callable[[_Item], Sequence[Reading]]


def resolve_layer(model: StripedHyena2, name: str) -> str:
    """The name of a module of ours whose output can be embedded.

    Released names such as `blocks.3.filter` are understood. `projections` has no released twin:
    its channels are in blocks [q | k | v] here and interleaved there.

    Raises:
        ValueError: for a name that no module has, or one that does not run.
    """
    resolved = ".".join(_RELEASED_NAMES.get(part, part) for part in name.split("."))
    inside_a_block = _BLOCK.match(resolved) is not None
    known = dict(model.named_modules())
    if resolved in ("norm", "embedding") or (inside_a_block and resolved in known):
        return resolved
    last = len(model.blocks) - 1
    raise ValueError(
        f"layer {name!r} does not exist in {model.config.name}; use for example blocks.{last // 2} (residual stream), "
        f"blocks.{last // 2}.mlp.l3, or norm; blocks run from 0 to {last}"
    )


def expand_layers(model: StripedHyena2, layers: str | Sequence[str]) -> list[str]:
    """Names of layers, each once, with `all` as the residual stream after every block and `norm`.

    Raises:
        ValueError: for a name that no layer has, or when none is given.
    """
    wanted: dict[str, None] = {}
    for name in [layers] if isinstance(layers, str) else layers:
        if name == ALL_LAYERS:
            wanted |= dict.fromkeys([f"blocks.{i}" for i in range(len(model.blocks))] + ["norm"])
        else:
            resolve_layer(model, name)
            wanted[name] = None
    if not wanted:
        raise ValueError("no layer was named; use for example blocks.0")
    return list(wanted)


def column_names(layer: str, channels: int, strands: Strands = "fwd") -> list[str]:
    """What the columns of a layer's embedding are called: `blocks.4_0`, or `blocks.4_fwd_0` of "concat".

    Args:
        channels: Columns that the embedding has, both strands' counted.
    """
    if strands != "concat":
        return [f"{layer}_{channel}" for channel in range(channels)]
    half = channels // 2
    return [f"{layer}_{strand}_{channel}" for strand in ("fwd", "rc") for channel in range(half)]


@contextmanager
def _captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the named modules during the block, the first element of a tuple."""
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    owner = threading.get_ident()

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            # Hooks fire for every thread that runs the model; only this one's outputs count.
            if threading.get_ident() == owner:
                outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class LayerProbe:
    """Runs chunks and keeps the outputs of layers.

    Attributes:
        num_blocks: As many as the deepest layer needs, or all.
    """

    def __init__(
        self, model: StripedHyena2, names: Sequence[str], *, all_blocks: bool = False
    ) -> None:
        """Prepare.

        Args:
            names: As `resolve_layer` returns them.
            all_blocks: Run all blocks, for whoever needs what the model predicts as well.
        """
        self.model = model
        self.names = list(names)
        depths = [int(match[1]) + 1 for name in names if (match := _BLOCK.match(name))]
        whole = all_blocks or any(name == "norm" for name in names)
        self.num_blocks = len(model.blocks) if whole else max(depths, default=0)

    def run(
        self, ids: Tensor, state: Any = None, *, return_state: bool
    ) -> tuple[dict[str, Tensor], Tensor, Any]:
        """Outputs `[B, L, C]` by layer, what the last block run gives `[B, L, D]`, and the state."""
        with _captured(
            self.model, [n for n in self.names if n not in ("norm", "embedding")]
        ) as out:
            hidden, state = self.model.hidden(
                ids, state, return_state=return_state, num_blocks=self.num_blocks
            )
        if "norm" in self.names:
            out["norm"] = self.model.norm(hidden)
        if "embedding" in self.names:
            out["embedding"] = nn.functional.embedding(ids, self.model.embedding.weight)
        assert set(out) == set(self.names), set(self.names) - set(out)
        return out, hidden, state


class EmbeddingRunner:
    """Embeds readings with one model, in the shapes that `evo_toolkit.inference.batching` fixes.

    Attributes:
        layers: Names as given, `all` expanded.
        shapes: (rows, length) of the forwards so far; a long sequence's chunks count as one row.
    """

    def __init__(
        self,
        model: StripedHyena2,
        layers: str | Sequence[str],
        *,
        pool: Pool = "mean",
        strands: Strands = "fwd",
    ) -> None:
        """Prepare.

        Raises:
            ValueError: for an unknown layer, pool or strands.
        """
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; use one of {', '.join(POOLS)}")
        if strands not in STRANDS:
            raise ValueError(f"strands is {strands!r}; use one of {', '.join(STRANDS)}")
        self.model = model
        self.layers = expand_layers(model, layers)
        self.pool, self.strands = pool, strands
        self.shapes: set[tuple[int, int]] = set()
        self._names = {given: resolve_layer(model, given) for given in self.layers}
        self._probe = LayerProbe(model, sorted(set(self._names.values())))
        self._most_rows: dict[int, int] = {}

    @torch.inference_mode()
    def embed(self, sequences: Sequence[Sequence[Reading]]) -> Embedded:
        """Embeddings of sequences, given as their one or two readings (forward first).

        Returns:
            For each layer one array per sequence: `[C]`, or `[positions, C]` for "none"; twice as
            many channels for "concat".
        """
        readings = [reading for sequence in sequences for reading in sequence]
        found: dict[str, list[Values]] = {
            name: [np.empty(0, np.float32)] * len(readings) for name in self._probe.names
        }
        lengths = [len(reading.tokens) for reading in readings]
        whole = bool(self.model.config.looks_ahead())
        for indices, shape in alone(lengths) if whole else batches(lengths, self.model.device):
            self._run(readings, indices, shape, found)
        for index, reading in enumerate(readings):
            if len(reading.tokens) > CHUNK and not whole:
                self._run_long(reading, index, found)
        ends = np.cumsum([len(sequence) for sequence in sequences]).tolist()
        return {
            given: [
                self._combined(found[name][end - len(sequence) : end])
                for sequence, end in zip(sequences, ends, strict=True)
            ]
            for given, name in self._names.items()
        }

    def groups(
        self, sequences: Iterable[_Item], readings: _ReadingsOf[_Item]
    ) -> Iterator[list[_Item]]:
        """Yield sequences, in order, in groups that can be embedded in bounded memory.

        A sequence's embedding does not depend on its group; with "none" a group holds one sequence at
        least, however long.

        Args:
            sequences: Whatever stands for them.
            readings: The readings of one.
        """
        config, device = self.model.config, self.model.device
        most_bases = _FORWARDS_PER_GROUP * default_rows(_USUAL, device) * _USUAL
        most_bytes = _GPU_BYTES_PER_GROUP if device.type == "cuda" else _CPU_BYTES_PER_GROUP
        most_rows = most_bytes // (4 * config.width * len(self.layers))
        group: list[_Item] = []
        bases = rows = 0
        for sequence in sequences:
            lengths = [len(reading.tokens) for reading in readings(sequence)]
            added = sum(lengths) if self.pool == "none" else len(lengths)
            if group and (bases + sum(lengths) > most_bases or rows + added > most_rows):
                yield group
                group, bases, rows = [], 0, 0
            group.append(sequence)
            bases += sum(lengths)
            rows += added
        if group:
            yield group

    def stream(
        self, sequences: Iterable[Sequence[Reading]]
    ) -> Iterator[tuple[list[Sequence[Reading]], Embedded]]:
        """Yield `groups` of sequences, given as their readings, with their embeddings."""
        for group in self.groups(sequences, lambda sequence: sequence):
            yield group, self.embed(group)

    def _run(
        self,
        readings: Sequence[Reading],
        indices: Sequence[int],
        shape: tuple[int, int],
        found: dict[str, list[Values]],
    ) -> None:
        """One forward; several with fewer rows where memory does not suffice."""
        rows, length = min(shape[0], self._most_rows.get(shape[1], shape[0])), shape[1]
        for start in range(0, len(indices), rows):
            part = indices[start : start + rows]
            try:
                self._forward(readings, part, (rows, length), found)
                continue
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
            # Only here, since the error's traceback held the tensors.
            torch.cuda.empty_cache()
            self._most_rows[length] = rows // 2
            _log.warning(
                "out of memory with %d rows of %d bases; using %d", rows, length, rows // 2
            )
            self._run(readings, indices[start:], (rows // 2, length), found)
            return

    def _forward(
        self,
        readings: Sequence[Reading],
        indices: Sequence[int],
        shape: tuple[int, int],
        found: dict[str, list[Values]],
    ) -> None:
        ids = torch.from_numpy(padded([readings[i].tokens for i in indices], shape))
        outputs, _, _ = self._probe.run(ids.to(self.model.device), return_state=False)
        self.shapes.add(shape)
        for name, output in outputs.items():
            for row, index in enumerate(indices):
                pooled = Pooled(readings[index], self.pool)
                pooled.add(output[row, : len(readings[index].tokens)], 0)
                found[name][index] = pooled.result()

    def _run_long(self, reading: Reading, index: int, found: dict[str, list[Values]]) -> None:
        """One long sequence, chunk after chunk; but for "none" one chunk is held at a time."""
        ids = torch.from_numpy(reading.tokens.astype(np.int64))[None].to(self.model.device)
        pooled = {name: Pooled(reading, self.pool) for name in self._probe.names}
        state = None
        self.shapes.add((1, CHUNK))
        for start in range(0, len(reading.tokens), CHUNK):
            outputs, _, state = self._probe.run(
                ids[:, start : start + CHUNK], state, return_state=True
            )
            for name, output in outputs.items():
                pooled[name].add(output[0], start)
        for name in self._probe.names:
            found[name][index] = pooled[name].result()

    def _combined(self, strands: Sequence[Values]) -> Values:
        if len(strands) == 1:
            return strands[0]
        forward, backward = strands
        if self.strands == "concat":
            return np.concatenate([forward, backward], axis=-1)
        return ((forward.astype(np.float64) + backward) / 2).astype(np.float32)


@overload
def embed(
    model: StripedHyena2,
    sequences: Sequence[str | bytes],
    layers: str | Sequence[str],
    *,
    pool: Pool = ...,
    strands: Strands = ...,
    masks: Sequence[NDArray[np.bool_]] | None = ...,
    as_frame: Literal[False] = ...,
    ids: Sequence[str] | None = ...,
) -> dict[str, Values | list[Values]]: ...
@overload
def embed(
    model: StripedHyena2,
    sequences: Sequence[str | bytes],
    layers: str | Sequence[str],
    *,
    pool: Pool = ...,
    strands: Strands = ...,
    masks: Sequence[NDArray[np.bool_]] | None = ...,
    as_frame: Literal[True],
    ids: Sequence[str] | None = ...,
) -> pd.DataFrame: ...
def embed(
    model: StripedHyena2,
    sequences: Sequence[str | bytes],
    layers: str | Sequence[str],
    *,
    pool: Pool = "mean",
    strands: Strands = "fwd",
    masks: Sequence[NDArray[np.bool_]] | None = None,
    as_frame: bool = False,
    ids: Sequence[str] | None = None,
) -> dict[str, Values | list[Values]] | pd.DataFrame:
    """Outputs of layers by name.

    Runs only as many blocks as the deepest layer needs, all layers in the same pass. A sequence's
    embedding does not depend on the others; sequences longer than 16,384 tokens go through the states in
    chunks, exactly (but for models that look ahead, which take each sequence whole and without padding).

    Args:
        sequences: Text or bytes, case as given (models were trained on upper case).
        layers: One name or several: `blocks.12` (residual stream after block 12),
            `blocks.12.mlp.l3`, `blocks.12.mixer`, `norm` (final norm), `embedding`; `all` is the
            residual stream after every block, and `norm`.
        pool: Over the n positions that the mask keeps: "mean"; "max" (channel by channel); "last" in
            reading direction, which alone has seen the whole sequence; "center", the n // 2-th, 0-based, on
            the forward strand; or "none".
        strands: "fwd": as given. "rc": the reverse complement. "both": the mean of the two, which a
            sequence shares with its reverse complement (but for "center" of an even n, where the
            middle is another base). "concat": forward channels, then those of the reverse complement.
            "center" is the same base on both; row i of "none" is about base i of the forward strand on
            both.
        masks: One boolean array per sequence, True where the position counts; default all.
        as_frame: Return a pandas DataFrame.
        ids: Names of the sequences, for the DataFrame's index; default their numbers.

    Returns:
        For each layer, under the name given, `[n, C]` float32 (2C for "concat"); for `pool="none"` a list of
        `[positions, C]`. As a DataFrame: one row per sequence, or per position for "none" (index `id`,
        `position`, 0-based among the kept ones), and one float32 column per channel, `blocks.12_0` and so on.

    Raises:
        ValueError: for an unknown layer, pool or strands, an empty sequence, a mask of another length or
            one that keeps nothing (unless `pool` is "none"), or other than one id per sequence.
    """
    if isinstance(sequences, str | bytes):
        raise ValueError("sequences is one string; give a list of sequences, such as [sequence]")
    runner = EmbeddingRunner(model, layers, pool=pool, strands=strands)
    tokens = encode(sequences)
    if ids is not None and len(ids) != len(tokens):
        raise ValueError(f"{len(ids)} ids for {len(tokens)} sequences; give one for each")
    checked = checked_masks(masks, [len(t) for t in tokens])
    for index, mask in enumerate(checked):
        if mask is not None and pool != "none" and not mask.any():
            raise ValueError(f"mask {index} keeps no position, so {pool} has nothing to pool")
    found = runner.embed([readings_of(t, m, strands) for t, m in zip(tokens, checked, strict=True)])
    if as_frame:
        return _frame(runner, found, list(range(len(tokens))) if ids is None else list(ids))
    if pool == "none":
        return dict(found)
    return {
        layer: np.stack(values) if values else np.empty((0, 0), np.float32)
        for layer, values in found.items()
    }


def _frame(runner: EmbeddingRunner, found: Embedded, ids: Sequence[object]) -> pd.DataFrame:
    import pandas as pd

    rows = {layer: np.concatenate([np.atleast_2d(v) for v in values]) if values else np.empty((0, 0), np.float32) for layer, values in found.items()}  # fmt: skip
    columns = [
        name
        for layer, values in rows.items()
        for name in column_names(layer, values.shape[1], runner.strands)
    ]
    index: pd.Index | pd.MultiIndex = pd.Index(ids, name="id")
    if runner.pool == "none":
        lengths = [len(values) for values in found[runner.layers[0]]]
        index = pd.MultiIndex.from_arrays(
            [
                np.repeat(np.asarray(ids, dtype=object), lengths),
                np.concatenate([np.arange(n) for n in lengths]) if lengths else [],
            ],
            names=["id", "position"],
        )
    frame = pd.DataFrame(np.concatenate(list(rows.values()), axis=1), index=index, columns=columns)
    frame.attrs["evo_toolkit"] = {
        "model": runner.model.config.name,
        "model_sha256": runner.model.sha256,
        "precision": runner.model.policy.describe(),
        "pool": runner.pool,
        "strands": runner.strands,
        "notes": list(runner.model.notes),
    }
    return frame
