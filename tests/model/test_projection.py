"""The products in Hyena-LI's layout: values, gradients, and the layout of both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evo_toolkit.model.projection import _IntoChannelFirst, _OutOfChannelFirst


def _leaf(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_into_channel_first() -> None:
    x, weight = _leaf(2, 5, 3, seed=0), _leaf(4, 3, seed=1)
    y = _IntoChannelFirst.apply(x, weight)
    torch.testing.assert_close(y.transpose(1, 2), F.linear(x, weight))
    assert y.is_contiguous()
    assert torch.autograd.gradcheck(_IntoChannelFirst.apply, (x, weight))
    assert torch.autograd.gradgradcheck(_IntoChannelFirst.apply, (x, weight))
    (grad_x,) = torch.autograd.grad(y.sum(), x)
    assert grad_x.is_contiguous()


@pytest.mark.parametrize("with_bias", [False, True])
def test_out_of_channel_first(with_bias: bool) -> None:
    x, weight = _leaf(2, 3, 5, seed=0), _leaf(4, 3, seed=1)
    bias = _leaf(4, seed=2) if with_bias else None
    y = _OutOfChannelFirst.apply(x, weight, bias)
    torch.testing.assert_close(y, F.linear(x.transpose(1, 2), weight, bias))
    assert y.is_contiguous()
    assert torch.autograd.gradcheck(_OutOfChannelFirst.apply, (x, weight, bias))
    assert torch.autograd.gradgradcheck(_OutOfChannelFirst.apply, (x, weight, bias))
    (grad_x,) = torch.autograd.grad(y.sum(), x)
    assert grad_x.is_contiguous()
