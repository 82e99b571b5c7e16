"""Who decays, who moves at which rate, and the optimizers."""

from __future__ import annotations

import pytest
import torch

from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.optim import (
    OptimizerConfig,
    build_optimizer,
    orthogonalised,
    parameter_groups,
    train_by_log_rate,
)

CONFIG = StripedHyena2Config(
    name="toy", pattern="SDH*", width=16, num_heads=2, mlp_width=32, filter_groups=2,
    context_length=32, vocab_size=256, mr_length=16, tie_embeddings=False,
)  # fmt: skip


def test_only_projection_matrices_decay() -> None:
    model = StripedHyena2(CONFIG)
    train_by_log_rate(model)
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.3, filter_learning_rate=1e-4))
    by_name = {name: group for group in groups for name in group.parameters}
    assert by_name.keys() == dict(model.named_parameters()).keys()
    decayed = {name for name, group in by_name.items() if group.weight_decay}
    kinds = ("projections.weight", "out_projection.weight", "mlp.l1.weight", "mlp.l2.weight", "mlp.l3.weight")  # fmt: skip
    assert decayed == {f"blocks.{i}.{kind}" for i in range(4) for kind in kinds}
    filters = {name for name, group in by_name.items() if group.name == "filters"}
    assert filters == {name for name in by_name if ".mixer." in name}
    # The omissions of the released training: taps of Hyena-SE, poles and residues.
    assert {
        "blocks.0.mixer.h",
        "blocks.2.mixer.residues",
        "blocks.2.mixer.parametrizations.log_poles.original",
    } <= filters
    assert {g.name: g.learning_rate for g in groups} == {
        "matrices": 3e-3,
        "filters": 1e-4,
        "others": 3e-3,
    }


def test_poles_are_trained_in_the_logarithm_of_their_rate_and_stay_negative() -> None:
    model = StripedHyena2(CONFIG, generator_seed=0)
    before = model.blocks[2].mixer.log_poles.detach().clone()  # type: ignore[union-attr]
    train_by_log_rate(model)
    train_by_log_rate(model)  # once is enough
    mixer = model.blocks[2].mixer
    torch.testing.assert_close(mixer.log_poles, before)  # type: ignore[union-attr]
    with torch.no_grad():
        mixer.parametrizations.log_poles.original.add_(5.0)  # type: ignore[union-attr]
    assert (mixer.log_poles < 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_update_that_is_not_finite_is_skipped_on_the_device(name: str) -> None:
    model = StripedHyena2(CONFIG, generator_seed=0)
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    optimizer = build_optimizer(parameter_groups(model, config), config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    state = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    for parameter, old, own in zip(model.parameters(), before, state, strict=True):
        assert torch.equal(parameter, old)
        for key, value in own.items():
            assert torch.equal(optimizer.state[parameter][key], value), key


def test_muon_moves_matrices_alone_and_its_state_can_be_saved() -> None:
    model = StripedHyena2(CONFIG, generator_seed=0)
    config = OptimizerConfig(name="muon", weight_decay=0.0, learning_rate=0.01)
    groups = parameter_groups(model, config)
    optimizer = build_optimizer(groups, config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    name, matrix = next(iter(groups[0].parameters.items()))
    assert name.endswith("projections.weight")
    before = matrix.detach().clone()
    optimizer.step()
    singular = torch.linalg.svdvals(before - matrix.detach()) / (0.01 * 0.2 * 48**0.5)
    assert singular.min() > 0.5 and singular.max() < 1.3, singular
    assert set(optimizer.state[matrix]) == {"step", "momentum_buffer"}
    assert set(optimizer.state[model.embedding.weight]) == {"step", "exp_avg", "exp_avg_sq"}
    again = build_optimizer(parameter_groups(model, config), config)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(
        again.state[matrix]["momentum_buffer"], optimizer.state[matrix]["momentum_buffer"]
    )


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)])
def test_orthogonalised_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(*shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    aligned = left.T @ orthogonalised(matrix) @ right.T
    off = aligned - aligned.diag().diag()
    assert off.abs().max() < 1e-5
    assert aligned.diag().min() > 0.3 and aligned.diag().max() < 1.3


def test_rates_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate is 0"):
        OptimizerConfig(learning_rate=0.0)
