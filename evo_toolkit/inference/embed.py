"""Embeddings: outputs of layers by name, pooled over positions."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evo_toolkit.inference.batching import CHUNK, alone, batches, checked_masks, encode
from evo_toolkit.inference.runner import padded

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

Pool = Literal["mean", "last", "none"]
POOLS: tuple[Pool, ...] = ("mean", "last", "none")

_BLOCK = re.compile(r"blocks\.(\d+)(?:\.|$)")

# What the released implementation calls places whose output is the same.
_RELEASED_NAMES: Mapping[str, str] = {
    "embedding_layer": "embedding",
    "out_filter_dense": "out_projection",
    "filter": "mixer",
    "inner_mha_cls": "out_projection",
}


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


def _pool(
    values: NDArray[np.float32], mask: NDArray[np.bool_] | None, pool: Pool
) -> NDArray[np.float32]:
    """`[L, C]` to `[C]`, or the kept rows for "none"."""
    kept = values if mask is None else values[mask]
    if pool == "none":
        return kept
    if pool == "last":
        return kept[-1].copy()  # a view would keep every position alive
    return kept.mean(axis=0, dtype=np.float64).astype(np.float32)


@torch.inference_mode()
def embed(
    model: StripedHyena2,
    sequences: Sequence[str | bytes],
    layers: str | Sequence[str],
    *,
    pool: Pool = "mean",
    masks: Sequence[NDArray[np.bool_]] | None = None,
) -> dict[str, NDArray[np.float32] | list[NDArray[np.float32]]]:
    """Outputs of layers by name.

    Runs only as many blocks as the deepest layer needs. A sequence's embedding does not depend on
    the others; sequences longer than 16,384 tokens go through the states in chunks, exactly (but for
    models that look ahead, which take each sequence whole and without padding).

    Args:
        sequences: Text or bytes, case as given (models were trained on upper case).
        layers: One name or several: `blocks.12` (residual stream after block 12),
            `blocks.12.mlp.l3`, `blocks.12.mixer`, `norm` (final norm), `embedding`.
        pool: "mean" or "last" over the positions that the mask keeps, or "none".
        masks: One boolean array per sequence, True where the position counts; default all.

    Returns:
        For each layer, under the name given, `[n, C]` float32; for `pool="none"` a list of
        `[positions, C]`.

    Raises:
        ValueError: for an unknown layer or pool, an empty sequence, a mask of another length or one
            that keeps nothing (unless `pool` is "none").
    """
    if isinstance(sequences, str | bytes):
        raise ValueError("sequences is one string; give a list of sequences, such as [sequence]")
    if pool not in POOLS:
        raise ValueError(f"pool is {pool!r}; use one of {', '.join(POOLS)}")
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise ValueError("no layer was named; use for example blocks.0")
    names = {given: resolve_layer(model, given) for given in wanted}
    tokens = encode(sequences)
    checked = checked_masks(masks, [len(t) for t in tokens])
    for index, mask in enumerate(checked):
        if mask is not None and pool != "none" and not mask.any():
            raise ValueError(f"mask {index} keeps no position, so {pool} has nothing to pool")

    probe = LayerProbe(model, sorted(set(names.values())))
    pooled: dict[str, list[NDArray[np.float32]]] = {
        name: [np.empty(0, np.float32)] * len(tokens) for name in probe.names
    }
    lengths = [len(t) for t in tokens]
    whole = bool(model.config.looks_ahead())
    for indices, shape in alone(lengths) if whole else batches(lengths, model.device):
        ids = torch.from_numpy(padded([tokens[i] for i in indices], shape)).to(model.device)
        outputs, _, _ = probe.run(ids, return_state=False)
        for name, output in outputs.items():
            for row, index in enumerate(indices):
                values = output[row, : len(tokens[index])].float().cpu().numpy()
                pooled[name][index] = _pool(values, checked[index], pool)
    for index, values in enumerate(tokens):
        if len(values) > CHUNK and not whole:
            found = _embed_long(probe, values, checked[index], pool)
            for name in probe.names:
                pooled[name][index] = found[name]
    if pool == "none":
        return {given: pooled[name] for given, name in names.items()}
    return {
        given: np.stack(pooled[name]) if tokens else np.empty((0, 0), np.float32)
        for given, name in names.items()
    }


def _embed_long(
    probe: LayerProbe, tokens: NDArray[np.uint8], mask: NDArray[np.bool_] | None, pool: Pool
) -> dict[str, NDArray[np.float32]]:
    """One long sequence, chunk after chunk; "mean" and "last" hold one chunk at a time."""
    ids = torch.from_numpy(tokens.astype(np.int64))[None].to(probe.model.device)
    sums: dict[str, NDArray[np.float64]] = {}
    latest: dict[str, NDArray[np.float32]] = {}
    pieces: dict[str, list[NDArray[np.float32]]] = {name: [] for name in probe.names}
    kept, state = 0, None
    for start in range(0, len(tokens), CHUNK):
        outputs, _, state = probe.run(ids[:, start : start + CHUNK], state, return_state=True)
        keep = slice(None) if mask is None else mask[start : start + CHUNK]
        for name, output in outputs.items():
            values = output[0].float().cpu().numpy()[keep]
            if pool == "none":
                pieces[name].append(values)
            elif len(values):
                sums[name] = sums.get(name, 0.0) + values.sum(axis=0, dtype=np.float64)
                latest[name] = values[-1].copy()
        kept += len(values)
    if pool == "none":
        return {name: np.concatenate(parts) for name, parts in pieces.items()}
    if pool == "last":
        return latest
    return {name: (total / kept).astype(np.float32) for name, total in sums.items()}
