"""Files of fitted heads: safetensors whose metadata say what is in them, and nothing is executed.

All heads have the metadata

    format, format_version   evo_toolkit.head, 2
    kind                     variant, or what it says of a sequence: binary, multiclass, multilabel,
                             regression, per_base, track
    name                     letters, digits, _ and -
    outputs                  JSON list of the names of K outputs
    layers                   JSON list of the layers whose outputs are read
    activation               none, sigmoid or softmax
    run                      JSON: what features must be made with, model_sha256 among it
    about                    JSON: labels, estimator, metric with its interval, digest of the data

and the float32 tensors `weight` [K, H] and `bias` [K], where features were standardised `mean` and
`scale` [F], and where there are hidden layers (H = F without) `hidden.I.weight`, `hidden.I.bias`. What else
there is depends on the kind (`evo_toolkit.variants.head`, `evo_toolkit.finetuning.heads`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo_data.files import atomic_output
from evo_toolkit.checkpoint.ordered import in_order
from evo_toolkit.errors import EvoError

FORMAT, FORMAT_VERSION = "evo_toolkit.head", "2"
VARIANT = "variant"
ACTIVATIONS = ("none", "sigmoid", "softmax")
ADVICE = "fit it again with evo-toolkit finetune, or ask who made it"

# What heads for variants said before there were others.
_EARLIER = ("evo_toolkit.variant_head", "1")
NAME = re.compile(r"[A-Za-z0-9_-]+")
_TENSORS = re.compile(r"weight|bias|mean|scale")
_HIDDEN = re.compile(r"hidden\.\d+\.(weight|bias)")
_UNFIT = re.compile(r"[^A-Za-z0-9_-]+")


class HeadFile(NamedTuple):
    """Metadata and tensors of a head's file."""

    metadata: dict[str, str]
    tensors: dict[str, NDArray[Any]]

    @property
    def kind(self) -> str:
        return self.metadata["kind"]


def read_head_file(path: Path | str) -> HeadFile:
    """Read a head of any kind.

    Raises:
        EvoError: if the file is none, or of a later version.
        OSError: if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    with path.open("rb"):  # whose errors name the file
        pass
    try:
        with safe_open(path, "numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError) as error:
        raise EvoError(f"{path} is no safetensors file ({error}); {ADVICE}") from error
    given = metadata.get("format"), metadata.get("format_version")
    if given == _EARLIER:
        metadata["kind"] = VARIANT
    elif given[0] not in (FORMAT, _EARLIER[0]):
        raise EvoError(f"{path} does not say that it is a {FORMAT}; {ADVICE}")
    elif given[1] != FORMAT_VERSION:
        raise EvoError(
            f"{path} has format version {given[1]}; this program reads {FORMAT_VERSION}, a newer one may read it"
        )
    if "kind" not in metadata:
        raise EvoError(f"{path} does not say what kind of head it is; {ADVICE}")
    for name, tensor in tensors.items():
        # What is not read would be missing from the outputs, and nobody would know.
        if not _TENSORS.fullmatch(name) and (
            metadata["kind"] == VARIANT or not _HIDDEN.fullmatch(name)
        ):
            raise EvoError(
                f"{path} has a tensor {name[:40]!r}, which no head of its kind has; {ADVICE}"
            )
        if tensor.dtype.kind != "f":
            raise EvoError(
                f"{path} holds {name} as {tensor.dtype}, and heads are float32; {ADVICE}"
            )
    return HeadFile(metadata, tensors)


@contextmanager
def whole_head(path: Path | str) -> Iterator[None]:
    """Turn what making a head of a file's parts raises into one line that names the file.

    Raises:
        EvoError: for parts that are missing, or do not go together.
    """
    try:
        yield
    except RecursionError:
        raise EvoError(
            f"{path} is no complete head (JSON that is nested too deeply); {ADVICE}"
        ) from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, EvoError):
            raise EvoError(f"{path}: {error}") from error
        raise EvoError(
            f"{path} is no complete head ({type(error).__name__}: {error}); {ADVICE}"
        ) from error


def write_head_file(
    path: Path | str,
    kind: str,
    metadata: Mapping[str, object],
    tensors: Mapping[str, NDArray[Any] | None],
    *,
    force: bool = False,
) -> None:
    """Write a head, whole or not at all.

    Args:
        metadata: Texts as they are, all else as JSON.
        tensors: None for one that the head does without.
    """
    from safetensors.numpy import save

    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }
    data = save(
        {
            name: np.ascontiguousarray(values, dtype=np.float32)
            for name, values in tensors.items()
            if values is not None
        },
        {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind, **texts},
    )
    # Not by save_file, whose files nobody else may read.
    with atomic_output(path, force=force) as temporary:
        temporary.write_bytes(in_order(data))


def json_names(text: str) -> tuple[str, ...]:
    """A JSON list of texts.

    Raises:
        ValueError: if it is something else.
    """
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{text[:40]} is no JSON list of names")
    return tuple(found)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: if it is something else.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"{text[:40]} is no JSON object")
    return found


def fit_name(text: str) -> str:
    """A text as names in heads are written: letters, digits, _ and -."""
    return _UNFIT.sub("_", text).strip("_") or "x"


def fit_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Several such texts, made different where they would become the same."""
    found: list[str] = []
    for text in texts:
        name, number = fit_name(text), 2
        while name in found:
            name, number = f"{fit_name(text)}_{number}", number + 1
        found.append(name)
    return tuple(found)


def activated(logits: NDArray[np.floating], activation: str) -> NDArray[np.float64]:
    """`[..., K]` outputs of `[..., K]` values y: y, sigmoid(y), or softmax(y) over the last axis."""
    y = np.asarray(logits, dtype=np.float64)
    if activation == "sigmoid":
        # Of the side that cannot overflow.
        small = np.exp(-np.abs(y))
        return np.where(y >= 0, 1 / (1 + small), small / (1 + small))
    if activation == "softmax":
        odds = np.exp(y - y.max(axis=-1, keepdims=True))
        shares: NDArray[np.float64] = odds / odds.sum(axis=-1, keepdims=True)
        return shares
    return y
