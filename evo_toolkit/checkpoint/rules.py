"""How tensors of a foreign checkpoint become ours: one rule per tensor, checked before anything is read.

Layouts. Ours keeps every filter lag 0 first and channels in blocks [q | k | v]. Released checkpoints
interleave the three roles by channel in Hyena layers, hold q, k, v per head in attention layers, and
store featurizer and Hyena-SE taps with lag 0 last (Hyena-MR: first).
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_toolkit.checkpoint.names import tensor_shapes
from evo_toolkit.checkpoint.source import (
    WEIGHT_DTYPES,
    MappedFile,
    Origin,
    Spec,
    WeightSource,
    owned,
    require_fit,
)
from evo_toolkit.errors import CheckpointError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.layers import unreleased_layers
from evo_toolkit.model.rotary import rotary_frequencies

_log = logging.getLogger("evo_toolkit")


def deinterleave(x: Tensor) -> Tensor:
    """Rows 3c, 3c+1, 3c+2 (q, k, v of channel c) to blocks [q | k | v]: `[3D, ...]`."""
    return x.reshape(-1, 3, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def interleave(x: Tensor) -> Tensor:
    """Inverse of `deinterleave`."""
    return x.reshape(3, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def heads_to_blocks(x: Tensor, num_heads: int) -> Tensor:
    """Rows per head [q | k | v] to [all q heads | all k heads | all v heads]: `[3D, ...]`."""
    return x.reshape(num_heads, 3, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def blocks_to_heads(x: Tensor, num_heads: int) -> Tensor:
    """Inverse of `heads_to_blocks`."""
    return x.reshape(3, num_heads, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


@dataclass(frozen=True, slots=True)
class Input:
    """A foreign tensor that a rule reads.

    Attributes:
        keys: Spellings of its key; the first that is present counts.
        shape: Its shape; with `longer`, the last axis may exceed it.
    """

    keys: tuple[str, ...]
    shape: tuple[int, ...]
    longer: bool = False

    def accepts(self, shape: tuple[int, ...]) -> bool:
        if self.longer and len(shape) == len(self.shape):
            return shape[:-1] == self.shape[:-1] and shape[-1] >= self.shape[-1]
        return shape == self.shape


@dataclass(frozen=True, slots=True)
class Rule:
    """One of our tensors from foreign ones.

    Attributes:
        name: Our name.
        inputs: What it is made from.
        convert: Inputs to our tensor; may return a view.
        dtype: Dtype of the result when it is not that of the first input.
    """

    name: str
    inputs: tuple[Input, ...]
    convert: Callable[..., Tensor]
    dtype: torch.dtype | None = None


def _same(x: Tensor) -> Tensor:
    return x


def rule(
    name: str, key: str, shape: tuple[int, ...], convert: Callable[[Tensor], Tensor] = _same
) -> Rule:
    """A rule with one input of one spelling."""
    return Rule(name, (Input((key,), shape),), convert)


# Keys that published files are known to carry beyond the weights.
_KNOWN_EXTRA = re.compile(r"_extra_state$|^unembed\.weight$|\.mixer\.mixer\.filter\.t$")


class ForeignSource(WeightSource):
    """A flat dictionary of tensors read through rules.

    Args:
        content: Key to tensor, as read from the file; what no rule reads is reported once.
        layer_of: Matches a key that belongs to a layer, with the layer's number as group 1.
        first_layer: What that number is for layer 0.
        ignored: Matches keys that are known to carry no weights of the model.
        fp8_scales: Matches keys of FP8 scales of the input projections.
    """

    def __init__(
        self,
        path: Path,
        config: StripedHyena2Config,
        content: Mapping[str, Any],
        rules: Sequence[Rule],
        *,
        format: str,
        layer_of: re.Pattern[str],
        first_layer: int,
        ignored: re.Pattern[str],
        fp8_scales: re.Pattern[str],
    ) -> None:
        self.path = path
        self.config = config
        self.format = format
        self._content = content
        self._rules = {r.name: r for r in rules}
        self._mapping = MappedFile(path)
        self._keys: dict[tuple[str, int], str] = {}
        self._defaults: dict[str, Tensor] = {}
        self.has_fp8_scales = any(
            fp8_scales.search(key) and _holds_something(value) for key, value in content.items()
        )
        self._check(layer_of, first_layer, ignored)

    def _check(self, layer_of: re.Pattern[str], first_layer: int, ignored: re.Pattern[str]) -> None:
        assert self.path is not None
        odd = unreleased_layers(self.config.pattern)
        if odd:
            raise CheckpointError(
                f"{self.path} is a {self.format} checkpoint, which has no {odd} layers; give the configuration that belongs to this file"
            )
        missing: list[str] = []
        wrong: list[str] = []
        for r in self._rules.values():
            for index, wanted in enumerate(r.inputs):
                key = next((k for k in wanted.keys if k in self._content), None)
                if key is None:
                    if r.name.endswith(".inv_freq"):
                        # A function of the configuration; some exporters leave it out.
                        self._defaults[r.name] = self._frequencies()
                        continue
                    missing.append(f"{wanted.keys[0]} {list(wanted.shape)}")
                    continue
                self._keys[r.name, index] = key
                value = self._content[key]
                if not isinstance(value, Tensor) or value.layout != torch.strided:
                    wrong.append(f"{key} is a {type(value).__name__}, wanted {list(wanted.shape)}")
                elif value.dtype not in WEIGHT_DTYPES:
                    wrong.append(f"{key} is {value.dtype}, wanted floating point")
                elif not wanted.accepts(tuple(value.shape)):
                    wrong.append(f"{key} is {list(value.shape)}, wanted {list(wanted.shape)}")
        used = set(self._keys.values())
        extra = [key for key in self._content if key not in used]
        for key in extra:
            layer = layer_of.search(key)
            if layer and int(layer.group(1)) - first_layer >= self.config.num_layers:
                wrong.append(f"{key} belongs to a layer that the configuration does not have")
        require_fit(missing, wrong, path=self.path, config=self.config)
        unknown = [key for key in extra if not (_KNOWN_EXTRA.search(key) or ignored.search(key))]
        if unknown:
            _log.warning(
                "%s: %d keys are not part of the model and were left out: %s",
                self.path, len(unknown), ", ".join(unknown[:3]) + (" ..." if len(unknown) > 3 else ""),
            )  # fmt: skip
        elif extra:
            _log.info("%s: %d extra keys known to carry no weights left out", self.path, len(extra))

    def _frequencies(self) -> Tensor:
        config = self.config
        return rotary_frequencies(
            config.head_width, config.rotary_base, through_bf16=config.rotary_bf16_frequencies
        )

    def check_frequencies(self) -> None:
        """Warn where the file's rotary frequencies are not those of the configured base.

        The file's are used: they are what the weights were trained with.
        """
        for name in self._rules:
            if name.endswith(".inv_freq") and name not in self._defaults:
                found = self.tensor(name, dtype=torch.float32)
                # bf16 rounding alone is below 0.4 %.
                if not torch.allclose(found, self._frequencies(), rtol=0.005, atol=0.0):
                    _log.warning(
                        "%s: its rotary frequencies are not those of rotary_base %g; the file's are used",
                        self.path, self.config.rotary_base,
                    )  # fmt: skip
                return

    def specs(self) -> dict[str, Spec]:
        shapes = tensor_shapes(self.config)
        result = {}
        for name, r in self._rules.items():
            if name in self._defaults:
                dtype = self._defaults[name].dtype
            else:
                dtype = r.dtype or self._content[self._keys[name, 0]].dtype
            result[name] = Spec(dtype, shapes[name])
        return result

    def tensor(
        self, name: str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        r = self._rules[name]
        if name in self._defaults:
            return owned(self._defaults[name], dtype, device, (self._defaults[name],))
        inputs = [self._content[self._keys[name, i]].detach() for i in range(len(r.inputs))]
        result = owned(r.convert(*inputs), dtype or r.dtype, device, inputs)
        for mapped in inputs:
            self._mapping.release(mapped)
        return result

    def origin(self) -> Origin:
        assert self.path is not None
        return Origin(self.path)


def _holds_something(payload: object) -> bool:
    if isinstance(payload, io.BytesIO):
        return payload.getbuffer().nbytes > 0
    if isinstance(payload, bytes | bytearray):
        return len(payload) > 0
    if isinstance(payload, Tensor):
        return payload.numel() > 0
    return payload is not None


def require_tied(path: Path, content: Mapping[str, Any], embedding: str, unembedding: str) -> None:
    """Raise CheckpointError if a tied configuration is given for a file whose two matrices differ."""
    first, second = content.get(embedding), content.get(unembedding)
    if isinstance(first, Tensor) and isinstance(second, Tensor) and not torch.equal(first, second):
        raise CheckpointError(
            f"{path}: {unembedding} differs from {embedding}, but the configuration ties them (tie_embeddings); give the configuration that belongs to this file"
        )
