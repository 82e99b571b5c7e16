"""The objective: sums, gradients, slices, recomputation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training import loss as loss_module
from evo_toolkit.training.loss import NextTokenObjective, weighted_nll

CONFIG = StripedHyena2Config(
    name="toy", pattern="SDH*", width=16, num_heads=2, mlp_width=32, filter_groups=2,
    context_length=32, vocab_size=256, mr_length=16,
)  # fmt: skip


def rows(count: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(count, 6, dtype=dtype, requires_grad=True)
    w = torch.randn(11, 6, dtype=dtype, requires_grad=True)
    return x, w, torch.randint(11, (count,)), torch.rand(count)


@pytest.mark.parametrize("slice_rows", [1, 4, 7, 100])
def test_sum_and_gradients_are_those_of_cross_entropy(
    slice_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "_ROWS_CPU", slice_rows)
    x, w, targets, weights = rows(7)
    total = weighted_nll(x, w, targets, weights)
    found = torch.autograd.grad(3 * total, (x, w))
    direct = (F.cross_entropy(x @ w.T, targets, reduction="none") * weights).sum()
    wanted = torch.autograd.grad(3 * direct, (x, w))
    torch.testing.assert_close(total, direct)
    torch.testing.assert_close(found, wanted)


def test_a_target_of_no_weight_counts_for_nothing() -> None:
    x, w, targets, weights = rows(7)
    weights[3] = 0
    other = targets.clone()
    other[3] = (other[3] + 1) % 11
    assert weighted_nll(x, w, targets, weights) == weighted_nll(x, w, other, weights)
    (gradient,) = torch.autograd.grad(weighted_nll(x, w, targets, weights), x)
    assert not gradient[3].any()
    assert gradient[2].any()


@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_recomputed_activations_give_the_same_gradients(blocks: int) -> None:
    model = StripedHyena2(CONFIG, generator_seed=1)
    ids, targets = torch.randint(256, (2, 2, 33))[..., :32].unbind(0)
    weights = torch.rand(2, 32)

    def gradients(checkpoint_blocks: int) -> list[torch.Tensor]:
        objective = NextTokenObjective(model, checkpoint_blocks=checkpoint_blocks)
        total, weight = objective(ids, targets, weights)
        assert torch.equal(weight, weights.sum(dtype=torch.float64))
        return list(torch.autograd.grad(total, list(model.parameters())))

    for kept, again in zip(gradients(0), gradients(blocks), strict=True):
        assert torch.equal(kept, again)


def test_the_objective_agrees_with_the_scoring_path() -> None:
    model = StripedHyena2(CONFIG, generator_seed=1)
    tokens = torch.randint(256, (2, 33))
    weights = torch.rand(2, 32)
    objective = NextTokenObjective(model)
    total, _ = objective(tokens[:, :-1], tokens[:, 1:], weights)
    with torch.no_grad():
        each = -model.token_log_probs(tokens)[:, 1:]
        torch.testing.assert_close(objective(tokens[:, :-1], tokens[:, 1:], None), each)
    torch.testing.assert_close(total, (each.double() * weights).sum(), rtol=1e-6, atol=0)
