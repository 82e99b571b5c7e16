"""What a network makes of a benchmark's sequences: features for classifiers, by layer.

A causal network has read at each position what stands before it, so every sequence is read on both
strands, and the features of the strands stand side by side.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import reverse_complement
from evo_data.files import atomic_output
from evo_toolkit.errors import EvoError

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

Readout = Literal["mean", "middle", "last"]
"""What is pooled: all positions; the `AROUND` after the middle, in reading direction; the last one."""

AROUND = 8
"""Positions read after the middle: the first to have read the site, and a few more."""

_AT_A_TIME = 512


def untrained(model: StripedHyena2, seed: int) -> StripedHyena2:
    """A network of the same shape with weights as before training, on the same device."""
    from evo_toolkit.model.striped_hyena import StripedHyena2

    fresh = StripedHyena2(model.config, policy=model.policy, generator_seed=seed)
    for name, tensor in [*fresh.named_parameters(), *fresh.named_buffers()]:
        tensor.data = tensor.data.to(model.storage_dtype(name))
    return fresh.to(model.device).eval()


def default_layers(num_blocks: int) -> tuple[str, ...]:
    """Four depths, about evenly spread and never the very last: `blocks.2` and so on.

    Which is best differs from task to task and is chosen within the training folds.
    """
    depths = sorted({max(0, round(num_blocks * share) - 1) for share in (0.25, 0.5, 0.7, 0.9)})
    return tuple(f"blocks.{depth}" for depth in depths)


def sequence_features(
    model: StripedHyena2,
    sequences: Sequence[str],
    layers: Sequence[str],
    *,
    readout: Readout = "mean",
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, NDArray[np.float32]]:
    """Pooled outputs of layers, both strands side by side: `[n, 2 C]` by layer.

    Args:
        model: The network.
        sequences: Upper-case.
        layers: As `evo_toolkit.embed` names them.
        readout: What is pooled on each strand.
        progress: Called with the tokens read since the last call.
    """
    from evo_toolkit.inference.embed import embed

    found: dict[str, list[NDArray[np.float32]]] = {layer: [] for layer in layers}
    for start in range(0, len(sequences), _AT_A_TIME):
        part = sequences[start : start + _AT_A_TIME]
        if readout == "middle":
            whole = bool(model.config.looks_ahead())
            sides = [_read_middle(model, part, layers, strand, whole) for strand in "+-"]
        else:
            sides = [embed(model, part, layers, pool=readout, strands="concat")]
        for layer in layers:
            found[layer].append(np.concatenate([np.asarray(side[layer]) for side in sides], axis=1))
        progress(2 * sum(map(len, part)))
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


def _read_middle(
    model: StripedHyena2, sequences: Sequence[str], layers: Sequence[str], strand: str, whole: bool
) -> Mapping[str, Any]:
    """Means over base `len // 2` and what comes after it in reading direction, `AROUND` in all."""
    from evo_toolkit.inference.embed import embed

    texts, masks = [], []
    for sequence in sequences:
        middle = len(sequence) // 2
        if strand == "-":
            sequence = reverse_complement(sequence.encode()).decode()
            middle = len(sequence) - 1 - middle
        stop = min(len(sequence), middle + AROUND)
        # A causal network's outputs do not depend on what comes later, which need not be read.
        text = sequence if whole else sequence[:stop]
        mask = np.zeros(len(text), np.bool_)
        mask[middle:stop] = True
        texts.append(text)
        masks.append(mask)
    return embed(model, texts, layers, masks=masks)


def variant_features(
    model: StripedHyena2,
    sequences: Sequence[str],
    alts: NDArray[np.uint8],
    layers: Sequence[str],
    *,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, NDArray[np.float32]]:
    """Outputs around a substitution and what it changes of them: `[n, 4 C]` by layer.

    On each strand the positions from the substitution on (`AROUND` of them), of the alternate
    sequence, and their difference from the reference.

    Args:
        model: The network.
        sequences: Of the reference, the substitution at base `len // 2`, 0-based.
        alts: The other base of each (A 0, C 1, G 2, T 3).
        layers: As `evo_toolkit.embed` names them.
        progress: Called with the tokens read since the last call.
    """
    other = []
    for sequence, alt in zip(sequences, alts.tolist(), strict=True):
        middle = len(sequence) // 2
        other.append(sequence[:middle] + "ACGT"[alt] + sequence[middle + 1 :])
    # Variants of one base share a reference, which is read once.
    distinct, index = np.unique(sequences, return_inverse=True)
    pooled = [
        sequence_features(model, texts, layers, readout="middle", progress=progress)
        for texts in (distinct.tolist(), other)
    ]
    return {
        layer: np.concatenate(
            [pooled[1][layer], pooled[1][layer] - pooled[0][layer][index]], axis=1
        )
        for layer in layers
    }


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureFile:
    """Features of one benchmark by networks, to be made on one machine and judged on another.

    Attributes:
        digest: Of the examples (`Examples.digest`).
        model: What the results say of the network (`tasks.model_identity`).
        networks: By network ("model", "untrained"), features `[n, F]` by layer.
        readout: How they were pooled.
    """

    digest: str
    model: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, NDArray[np.float32]]]
    readout: str

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write an `.npz` without pickles, whole or not at all."""
        about = {"digest": self.digest, "model": dict(self.model), "readout": self.readout}
        arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        for network, layers in self.networks.items():
            for layer, values in layers.items():
                arrays[f"{network}/{layer}"] = np.asarray(values, np.float32)
        with atomic_output(path, force=force) as temporary, temporary.open("wb") as handle:
            np.savez(handle, **arrays)

    @classmethod
    def load(cls, path: Path | str, digest: str) -> FeatureFile:
        """Read what `save` wrote.

        Raises:
            EvoError: for another file, or features of other examples.
        """
        networks: dict[str, dict[str, NDArray[np.float32]]] = {}
        try:
            with np.load(path, allow_pickle=False) as data:
                about = json.loads(data["about"].tobytes())
                for name in data.files:
                    network, slash, layer = name.partition("/")
                    if slash:
                        networks.setdefault(network, {})[layer] = data[name]
            found = cls(networks=networks, **about)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            raise EvoError(f"{path} holds no features; make them with --features") from None
        if found.digest != digest:
            raise EvoError(
                f"{path} holds features of other examples (another benchmark, --limit or --seed); give another name or delete it"
            )
        return found
