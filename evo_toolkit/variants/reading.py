"""What is read of windows: log-probabilities of their tokens and, where asked for, more.

Positions are those of a row of tokens in reading direction; entry t is about token t, given those
before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo_data.alphabet import BASES
from evo_toolkit.inference.embed import LayerProbe, resolve_layer
from evo_toolkit.inference.runner import padded
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


class WindowReader:
    """Runs rows of tokens in given shapes and keeps what is wanted of them."""

    def __init__(self, model: StripedHyena2, wanted: Wanted = LOG_PROBS) -> None:
        self.model = model
        self.wanted = wanted
        self._names = {name: resolve_layer(model, name) for name in wanted.layers}
        self._probe = LayerProbe(model, sorted(set(self._names.values())), all_blocks=True)

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
        return torch.from_numpy(padded(tokens, shape)).to(self.model.device)

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
        """Read the next piece of rows, as long as the shape is, and keep what is wanted of it.

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
        outputs, hidden, state = self.hidden(ids, state, return_state=return_state)
        found = self.model.gather_log_probs(hidden[:, :-1], ids[:, 1:]).float()
        first = (
            found.new_full((shape[0], 1), float("nan"))
            if following is None
            else following.gather(1, ids[:, :1])
        )
        log_probs = torch.cat([first, found], dim=1).cpu().numpy()
        bases = None
        if self.wanted.bases:
            first = (
                found.new_full((shape[0], len(BASES)), float("nan"))
                if following is None
                else self.bases_following(following)
            )
            rest = self.bases(hidden[:, :-1])
            bases = torch.cat([first[:, None], rest], dim=1).cpu().numpy()
        for index, (row, piece, start) in enumerate(zip(rows, pieces, starts, strict=True)):
            row.log_probs.append(log_probs[index, : len(piece)].copy())
            if bases is not None:
                row.bases.append(bases[index, : len(piece)].copy())
            if self._names:
                row.sums.append(self._sums(outputs, index, row.forks, start, len(piece)))
        return state, self.following(hidden) if return_state else None

    def read_all(self, rows: Sequence[Row], shape: tuple[int, int]) -> None:
        """Read rows of tokens whole, in forwards of one shape."""
        for start in range(0, len(rows), shape[0]):
            self.read(rows[start : start + shape[0]], shape)

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
