"""The gradient of Hyena-LI's state before a chunk, alone: the twin against autograd, in float64."""

from __future__ import annotations

import pytest
import torch

from evo_kernels import LIState, hyena_li, hyena_li_adjoint_state
from evo_kernels.errors import KernelError


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("L", [1, 2, 63, 64, 130])
def test_equals_autograd(L: int, tail: bool) -> None:
    B, D, N = 2, 3, 4
    g = torch.Generator().manual_seed(L)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, dy, featurizer = randn(B, L, 3 * D), randn(B, L, D), randn(3 * D, 3)
    log_poles, residues, skip = -randn(D, N).abs(), randn(D, N), randn(D)
    before = randn(B, 2, 3 * D) if tail else torch.zeros(B, 2, 3 * D, dtype=torch.float64)
    modal = randn(B, D, N).requires_grad_()
    y, _ = hyena_li(x, featurizer, log_poles, residues, skip, LIState(before, modal))
    (wanted,) = torch.autograd.grad(y, modal, dy)
    found = hyena_li_adjoint_state(dy, x, featurizer, log_poles, residues, before if tail else None)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_shapes_are_checked() -> None:
    x, featurizer, poles = torch.zeros(1, 4, 6), torch.zeros(6, 3), -torch.ones(2, 3)
    with pytest.raises(KernelError, match="dy"):
        hyena_li_adjoint_state(torch.zeros(1, 3, 2), x, featurizer, poles, poles)
    with pytest.raises(KernelError, match="feature_tail"):
        hyena_li_adjoint_state(
            torch.zeros(1, 4, 2), x, featurizer, poles, poles, torch.zeros(1, 1, 6)
        )
