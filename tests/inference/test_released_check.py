"""The released forward test, on a model whose loss is known by arithmetic."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.inference import released_check
from evo_toolkit.inference.likelihood import log_likelihood
from evo_toolkit.inference.released_check import (
    EXPECTED,
    PROMPTS_LENGTHS,
    PROMPTS_SHA256,
    TOLERANCE,
    Expected,
    ForwardTest,
    SequenceResult,
    expected_of,
    read_prompts,
    run_forward_test,
)
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.registry import MODELS
from evo_toolkit.model.striped_hyena import StripedHyena2


class Oracle:
    """Gives the next token the probability `exp(-loss)` and the 511 others equal parts of the rest."""

    def __init__(self, loss: float, name: str = "evo2_7b") -> None:
        self.loss = loss
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(name=name)

    def __call__(self, ids: Tensor) -> Tensor:
        p = math.exp(-self.loss)
        logits = torch.zeros(*ids.shape, 512)
        logits[:, :-1].scatter_(-1, ids[:, 1:, None], math.log(p * 511 / (1 - p)))
        return logits


def run(model: Any, prompts: tuple[str, ...], expected: Expected) -> ForwardTest:
    return run_forward_test(model, prompts, expected, name="x")


def test_loss_of_a_model_that_knows_the_next_base() -> None:
    test = run(Oracle(0.3), ("ACGTACGT", "AAAAAAANNN"), Expected(0.3, 100.0))
    assert [s.length for s in test.sequences] == [8, 10]
    assert [s.loss for s in test.sequences] == pytest.approx([0.3, 0.3], abs=1e-6)
    assert test.accuracy == 100.0 and test.passed


def test_means_are_over_sequences_and_not_over_bases() -> None:
    class Uneven(Oracle):
        def __call__(self, ids: Tensor) -> Tensor:
            self.loss = 0.1 if ids.shape[1] == 3 else 0.5
            return super().__call__(ids)

    test = run(Uneven(0.0), ("ACG", "ACGTACGTACGT"), Expected(0.3, 100.0))
    assert test.loss == pytest.approx(0.3, abs=1e-5)


def test_figures_against_a_direct_computation() -> None:
    logits = torch.randn(6, 512, generator=torch.Generator().manual_seed(1))
    logits[2, 65] = 9.0
    ids = torch.tensor([71, 84, 67, 65, 65, 78])

    class Fixed(Oracle):
        def __call__(self, _: Tensor) -> Tensor:
            return logits[None]

    (one,) = run(Fixed(0.0), ("GTCAAN",), Expected(0, 0)).sequences
    rows = logits.double().tolist()
    losses = [
        math.log(sum(math.exp(x) for x in rows[t])) - rows[t][int(ids[t + 1])] for t in range(5)
    ]
    hits = [rows[t].index(max(rows[t])) == int(ids[t + 1]) for t in range(5)]
    assert one.loss == pytest.approx(sum(losses) / 5, rel=1e-6)
    assert one.accuracy == pytest.approx(100 * sum(hits) / 5) and any(hits)


def test_loss_is_the_mean_of_log_likelihood() -> None:
    config = StripedHyena2Config(
        name="tiny", pattern="SDH*", width=32, num_heads=2, mlp_width=48, filter_groups=4,
        context_length=128,
    )  # fmt: skip
    model = StripedHyena2(config, generator_seed=0).eval()
    text = "ACGTTGCANNACGT" * 5
    (one,) = run(model, (text,), Expected(0, 0)).sequences
    assert one.loss == pytest.approx(-log_likelihood(model, [text], reduce="mean")[0], abs=1e-5)


def test_loss_is_computed_in_float32_and_the_released_rounding_stands_beside_it() -> None:
    (one,) = run(Oracle(0.3476563), ("ACGT" * 50,), Expected(0, 0)).sequences
    assert one.loss == pytest.approx(0.3476563, abs=1e-6)
    assert float(torch.tensor(one.loss_bfloat16).bfloat16()) == one.loss_bfloat16
    assert one.loss_bfloat16 == pytest.approx(one.loss, abs=0.004)
    assert one.loss_bfloat16 != one.loss


@pytest.mark.parametrize(
    ("loss", "passed"),
    [
        (0.3, True),
        (0.3009, True),
        (0.2991, True),
        (0.3011, False),
        (0.2989, False),
        (math.nan, False),
    ],
)
def test_tolerance(loss: float, passed: bool) -> None:
    result = ForwardTest("x", (SequenceResult(9, loss, 0.3, 50.0),), Expected(0.3, 50.0))
    assert TOLERANCE == 1e-3
    assert result.passed is passed


def test_published_figures_belong_to_known_models() -> None:
    assert set(EXPECTED) <= set(MODELS)
    assert expected_of("evo2_7b").loss == 0.3476563
    with pytest.raises(UsageError, match=r"evo-mini.*evo2_7b.*--as"):
        expected_of("evo-mini")
    # Every published loss is a mean of four bfloat16 numbers, the smallest above 1/32.
    for figures in EXPECTED.values():
        steps = figures.loss * 4 * 2**12
        assert steps == pytest.approx(round(steps), abs=5e-3)


def write_prompts(path: Path, text: str) -> str:
    path.write_text(text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        "Sequence\nACGTNACGTN\nacgtACGTacgt\n",
        'id,"sequence",n\r\n1,"ACGTNACGTN",10\r\nsecond,acgtACGTacgt,12\r\n',
        "ACGTNACGTN,\nacgtACGTacgt,",
    ],
)
def test_prompts_whatever_other_columns_there_are(tmp_path: Path, text: str) -> None:
    digest = write_prompts(tmp_path / "p.csv", text)
    found = read_prompts(tmp_path / "p.csv", sha256=digest, lengths=(10, 12))
    assert found == ("ACGTNACGTN", "acgtACGTacgt"), "as they stand, case included"


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    digest = write_prompts(path, "ACGT\n")
    with pytest.raises(EvoError, match=rf"{digest[:12]}.*371015ef6e1c.*ArcInstitute/evo2"):
        read_prompts(path)
    with pytest.raises(EvoError, match=r"no such file.*evo2/test/data/prompts\.csv"):
        read_prompts(tmp_path / "absent.csv")
    with pytest.raises(EvoError, match="expected"):
        read_prompts(path, sha256=digest, lengths=(4, 4))


def test_facts_about_the_released_file() -> None:
    assert len(PROMPTS_SHA256) == 64 and PROMPTS_SHA256.startswith("371015ef")
    assert PROMPTS_LENGTHS == (6538, 7056, 6160, 7616)
    assert "prompts.csv" in released_check.PROMPTS_HOME
