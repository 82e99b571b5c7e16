"""What is read of windows: log-probabilities of their tokens and, where asked for, more.

Positions are those of a row of tokens in reading direction; entry t is about token t, given those
before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo_data.alphabet import BASES
from evo_kernels.launch import on_device
from evo_toolkit.inference.embed import LayerProbe, resolve_layer
from evo_toolkit.inference.graphs import Graphs, wants_graphs
from evo_toolkit.inference.runner import padded
from evo_toolkit.model.state import AttentionState
from evo_toolkit.variants.positions import base_log_probs

if TYPE_CHECKING:
    from evo_toolkit.model.state import ModelState
    from evo_toolkit.model.striped_hyena import StripedHyena2

Tokens = NDArray[np.uint8]
LogProbs = NDArray[np.float32]
Layers = Mapping[str, NDArray[np.float32]]

_BASE_COLUMNS = [ord(base) for base in BASES]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for beside the log-probabilities of a window's tokens.

    Attributes:
        bases: The log-probabilities of A, C, G and T at every position.
        layers: Names of layers, whose outputs are averaged from the fork on.
        alternate: Whether alternates are read at all.
    """

    bases: bool = False
    layers: tuple[str, ...] = ()
    alternate: bool = True


LOG_PROBS = Wanted()


@dataclass(slots=True)
class Row:
    """A row of tokens that is read once, in one piece or in several.

    Attributes:
        tokens: `[n]`.
        forks: Positions from which layers are averaged.
        log_probs: Of each piece that was read, `[k]` nats.
        bases: Of each piece, `[k, 4]` nats.
        sums: Of each piece, by fork, each layer's sum over the positions from the fork on, `[C]`.
    """

    tokens: Tokens
    forks: set[int] = field(default_factory=set)
    log_probs: list[LogProbs] = field(default_factory=list)
    bases: list[LogProbs] = field(default_factory=list)
    sums: list[dict[int, dict[str, NDArray[np.float64]]]] = field(default_factory=list)

    @property
    def num_read(self) -> int:
        """Tokens that were read so far."""
        return sum(map(len, self.log_probs))

    def means(self, fork: int, pieces: int) -> Layers:
        """Each layer's mean output from a fork to the end of so many pieces."""
        end = sum(map(len, self.log_probs[:pieces]))
        if not self.sums or fork >= end:
            return {}
        read = [piece[fork] for piece in self.sums[:pieces]]
        return {
            name: (np.sum([sums[name] for sums in read], axis=0) / (end - fork)).astype(np.float32)
            for name in read[0]
        }


class Read(NamedTuple):
    """What a forward over a piece of rows gives.

    Attributes:
        outputs: Of the wanted layers, `[B, L, C]`.
        log_probs: `[B, L]` float32, nats; NaN where nothing came before.
        bases: `[B, L, 4]` float32, nats, if wanted.
        state: If asked for.
        following: `[B, V]` log-probabilities of what comes next, if a state was asked for.
    """

    outputs: dict[str, Tensor]
    log_probs: Tensor
    bases: Tensor | None
    state: ModelState | None
    following: Tensor | None


class WindowReader:
    """Runs rows of tokens in given shapes and keeps what is wanted of them.

    Results come from the device when `collect` is called, so that until then nothing waits.

    Attributes:
        graphs: Of the forwards that recur.
    """

    def __init__(self, model: StripedHyena2, wanted: Wanted = LOG_PROBS) -> None:
        self.model = model
        self.wanted = wanted
        self._names = {name: resolve_layer(model, name) for name in wanted.layers}
        self._probe = LayerProbe(model, sorted(set(self._names.values())), all_blocks=True)
        plain = not wanted.bases and not wanted.layers
        self.graphs = Graphs(plain and wants_graphs(model))
        self._pending: list[tuple[Tensor, Callable[[LogProbs], None]]] = []

    def hidden(
        self, ids: Tensor, state: ModelState | None = None, *, return_state: bool = False
    ) -> tuple[dict[str, Tensor], Tensor, ModelState | None]:
        """Outputs of the wanted layers, what the last block gives, and the state."""
        if not self._names:
            hidden, state = self.model.hidden(ids, state, return_state=return_state)
            return {}, hidden, state
        return self._probe.run(ids, state, return_state=return_state)

    def following(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the token after the last position, `[B, V]` float32."""
        return self.model.head(hidden[:, -1:])[:, 0].float().log_softmax(-1)

    def bases_following(self, following: Tensor) -> Tensor:
        """Those of A, C, G and T, `[B, 4]`."""
        return following[:, _BASE_COLUMNS]

    def bases(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of A, C, G and T after each position, `[B, L, 4]` float32."""
        return base_log_probs(self.model, hidden).float()

    def ids(self, tokens: Sequence[Tokens], shape: tuple[int, int]) -> Tensor:
        """Rows of tokens, padded to a shape."""
        return on_device(torch.from_numpy(padded(tokens, shape)), self.model.device)

    def later(self, values: Tensor, keep: Callable[[LogProbs], None]) -> None:
        """Hand an array over when results are collected."""
        self._pending.append((values, keep))

    def collect(self) -> None:
        """Wait for all results so far, and hand them over."""
        pending, self._pending = self._pending, []
        for values, keep in pending:
            keep(values.cpu().numpy())

    def forget(self) -> None:
        """Drop what was not collected, of forwards that did not all fit into memory."""
        self._pending = []

    def forward(
        self, ids: Tensor, state: ModelState | None, following: Tensor | None, *, return_state: bool
    ) -> Read:
        """Read a piece of every row; arguments as of `read`."""
        outputs, hidden, state = self.hidden(ids, state, return_state=return_state)
        found = self.model.gather_log_probs(hidden[:, :-1], ids[:, 1:]).float()
        rows = len(ids)
        if following is None:
            first = found.new_full((rows, 1), float("nan"))
        else:
            first = following.gather(1, ids[:, :1])
        log_probs, bases = torch.cat([first, found], dim=1), None
        if self.wanted.bases:
            if following is None:
                first = found.new_full((rows, len(BASES)), float("nan"))
            else:
                first = self.bases_following(following)
            bases = torch.cat([first[:, None], self.bases(hidden[:, :-1])], dim=1)
        after = self.following(hidden) if return_state else None
        return Read(outputs, log_probs, bases, state, after)

    @torch.inference_mode()
    def read(
        self,
        rows: Sequence[Row],
        shape: tuple[int, int],
        state: ModelState | None = None,
        following: Tensor | None = None,
        *,
        return_state: bool = False,
    ) -> tuple[ModelState | None, Tensor | None]:
        """Read the next piece of rows, as long as the shape is; `collect` keeps what is wanted of it.

        Args:
            rows: At most as many as the shape has.
            shape: (rows, length) of the forward.
            state: What the tokens before left, of as many rows as the shape has; None at the start.
            following: `[B, V]` log-probabilities of the piece's first tokens; None at the start of
                a sequence, where there are none.
            return_state: Whether the rows will be read on.

        Returns:
            The state and the `[B, V]` log-probabilities of what comes next, if asked for.
        """
        starts = [row.num_read for row in rows]
        pieces = [
            row.tokens[start : start + shape[1]] for row, start in zip(rows, starts, strict=True)
        ]
        ids = self.ids(pieces, shape)
        if return_state:
            read = self.forward(ids, state, following, return_state=True)
        else:
            if state is not None and self.graphs.enabled:
                state = _without_prefixes(state)
            read = self.graphs(
                (shape, state is None),
                lambda inputs: self.forward(*inputs, return_state=False),
                (ids, state, following),
            )

        def keep(log_probs: LogProbs) -> None:
            for index, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
                row.log_probs.append(log_probs[index, : len(piece)].copy())

        def keep_bases(bases: LogProbs) -> None:
            for index, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
                row.bases.append(bases[index, : len(piece)].copy())

        self.later(read.log_probs, keep)
        if read.bases is not None:
            self.later(read.bases, keep_bases)
        if self._names:
            for index, (row, piece, start) in enumerate(zip(rows, pieces, starts, strict=True)):
                row.sums.append(self._sums(read.outputs, index, row.forks, start, len(piece)))
        return read.state, read.following

    def read_all(self, rows: Sequence[Row], shape: tuple[int, int]) -> None:
        """Read rows of tokens whole, in forwards of one shape."""
        for start in range(0, len(rows), shape[0]):
            self.read(rows[start : start + shape[0]], shape)
        self.collect()

    def _sums(
        self, outputs: Mapping[str, Tensor], index: int, forks: set[int], start: int, length: int
    ) -> dict[int, dict[str, NDArray[np.float64]]]:
        """Sums of a row's layers over the positions of a piece from each fork on."""
        return {
            fork: {
                given: outputs[name][index, max(fork - start, 0) : length].double().sum(0).cpu().numpy()
                for given, name in self._names.items()
            }
            for fork in forks
        }  # fmt: skip


def _without_prefixes(state: ModelState) -> ModelState:
    """A state that leaves it to others to keep its prefixes alive."""
    return tuple(
        layer._replace(prefix_k=None, prefix_v=None)
        if isinstance(layer, AttentionState) and layer.table is not None
        else layer
        for layer in state
    )
