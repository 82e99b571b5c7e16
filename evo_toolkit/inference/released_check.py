"""The released forward test: do these weights, run here, give the loss that their authors published?

Four sequences, each run alone and whole, without a token before the first base. Loss is the mean
negative log-likelihood of the next token in nats, accuracy how often the likeliest token is the
next one; both are averaged over the four sequences. The sequences are not shipped: the user takes
the file from the evo2 repository.

Source of the figures: evo2's own test of its checkpoints, which computes the loss on bfloat16
logits, so that each sequence's published loss is a bfloat16 number (0.25 to 0.5: steps of 0.002).
Here the loss is computed in float32 and compared as it is; the value rounded as in the released
test is reported beside it.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_data.files import sha256_file
from evo_data.tokenizer import ByteTokenizer
from evo_toolkit.errors import EvoError, UsageError

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

PROMPTS_SHA256 = "371015ef6e1c87bfa2cfe548e3025230f0fdd1a2b63af8a7e110b84341e0493c"
PROMPTS_LENGTHS = (6538, 7056, 6160, 7616)
PROMPTS_HOME = "evo2/test/data/prompts.csv in https://github.com/ArcInstitute/evo2"

TOLERANCE = 1e-3
"""Largest difference of the mean loss that passes, nats per base; that of the released test."""

_LETTERS = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Expected:
    """Published figures of one model: mean loss in nats per base, mean accuracy in percent."""

    loss: float
    accuracy: float


EXPECTED: dict[str, Expected] = {
    "evo2_40b": Expected(0.2159424, 91.673),
    "evo2_40b_base": Expected(0.2149658, 91.741),
    "evo2_20b": Expected(0.2166748, 91.666),
    "evo2_7b": Expected(0.3476563, 86.346),
    "evo2_7b_base": Expected(0.3520508, 85.921),
    "evo2_1b_base": Expected(0.5019531, 79.556),
}


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """One sequence: length in bases, losses in nats per base, accuracy in percent.

    Attributes:
        loss: Cross-entropy in float32.
        loss_bfloat16: Rounded as in the released test: logits and loss in bfloat16.
    """

    length: int
    loss: float
    loss_bfloat16: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class ForwardTest:
    """The measured figures of every sequence beside the published means."""

    model: str
    sequences: tuple[SequenceResult, ...]
    expected: Expected

    @property
    def loss(self) -> float:
        return sum(s.loss for s in self.sequences) / len(self.sequences)

    @property
    def loss_bfloat16(self) -> float:
        return sum(s.loss_bfloat16 for s in self.sequences) / len(self.sequences)

    @property
    def accuracy(self) -> float:
        return sum(s.accuracy for s in self.sequences) / len(self.sequences)

    @property
    def passed(self) -> bool:
        """Whether the mean loss lies within `TOLERANCE`; a loss that is no number does not."""
        return abs(self.loss - self.expected.loss) < TOLERANCE


def expected_of(name: str) -> Expected:
    """The published figures of a model.

    Raises:
        UsageError: if there are none.
    """
    if name not in EXPECTED:
        raise UsageError(
            f"the released forward test has no figures for {name!r}, only for {', '.join(EXPECTED)}; if these weights are one of them, say which with --as"
        )
    return EXPECTED[name]


def read_prompts(
    path: Path | str, *, sha256: str = PROMPTS_SHA256, lengths: tuple[int, ...] = PROMPTS_LENGTHS
) -> tuple[str, ...]:
    """Return the sequences of the released `prompts.csv`, as they stand.

    Args:
        path: The file.
        sha256: What its checksum must be.
        lengths: How long its sequences are.

    Raises:
        EvoError: if it is another file, or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise EvoError(f"{path}: no such file; the prompts are {PROMPTS_HOME}")
    found = sha256_file(path)
    if found != sha256:
        raise EvoError(
            f"{path} is not the released prompts.csv: its sha256 is {found[:12]}..., not {sha256[:12]}...; take {PROMPTS_HOME}, unaltered"
        )
    with path.open(newline="", encoding="utf-8") as handle:
        # The longest cell of letters of each row, so that a header and other columns do not matter.
        longest = [
            max((c for c in map(str.strip, row) if _LETTERS.fullmatch(c)), key=len, default="")
            for row in csv.reader(handle)
        ]
    sequences = tuple(text for text in longest if len(text) >= min(lengths))
    if tuple(map(len, sequences)) != lengths:
        raise EvoError(
            f"{path} has sequences of {[len(s) for s in sequences]} bases where {list(lengths)} were expected; please report this"
        )
    return sequences


@torch.inference_mode()
def run_forward_test(
    model: StripedHyena2, prompts: tuple[str, ...], expected: Expected, *, name: str
) -> ForwardTest:
    """Run every sequence through the model.

    Args:
        model: The model.
        prompts: Sequences of at least 2 bases.
        expected: The published figures.
        name: What the report calls the model.
    """
    results = []
    for text in prompts:
        tokens = torch.from_numpy(ByteTokenizer().encode(text).astype("int64"))
        ids = tokens[None].to(model.device)
        results.append(_measure(model(ids)[0, :-1], ids[0, 1:]))
    return ForwardTest(name, tuple(results), expected)


def _measure(logits: Tensor, targets: Tensor) -> SequenceResult:
    """Figures of one sequence: `[L - 1, V]` logits and the `[L - 1]` tokens that they predict."""
    rounded = F.cross_entropy(logits.to(torch.bfloat16), targets)
    return SequenceResult(
        length=len(targets) + 1,
        loss=float(F.cross_entropy(logits.float(), targets)),
        loss_bfloat16=float(rounded),
        accuracy=100.0 * float((logits.argmax(-1) == targets).double().mean()),
    )
