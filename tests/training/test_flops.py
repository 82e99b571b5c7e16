"""Operation counts against torch's own counter and by enumeration."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.flops import forward_flops, peak_flops, training_flops

SHAPE = {
    "name": "toy", "width": 16, "num_heads": 2, "mlp_width": 32, "filter_groups": 2,
    "context_length": 32, "vocab_size": 256, "mr_length": 16,
}  # fmt: skip


def test_dense_products_are_those_that_torch_counts() -> None:
    config = StripedHyena2Config(pattern="S", **SHAPE)  # type: ignore[arg-type]
    model = StripedHyena2(config)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 24, dtype=torch.int64))
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "mm" in str(op))
    filters = 24 * (2 * 3 * 3 * 16 + 2 * 7 * 16)
    assert forward_flops(config, 24) - filters == products


def test_attention_counts_the_pairs_it_attends_to() -> None:
    one = StripedHyena2Config(pattern="*", **SHAPE)  # type: ignore[arg-type]
    linear = 2 * (4 * 16 * 16 + 3 * 16 * 32) + 2 * 16 * 256
    pairs = sum(1 for i in range(10) for j in range(10) if j <= i)
    # Two products of E operations, two each, for every head: D in all.
    assert forward_flops(one, 10) == 10 * linear + pairs * 2 * (2 * 16)


@pytest.mark.parametrize(("symbol", "per_base"), [("S", 2 * 7 * 16), ("D", 2 * 16 * 16), ("H", 4 * 16 * 16)])  # fmt: skip
def test_filters_count_their_taps(symbol: str, per_base: int) -> None:
    with_mixer = StripedHyena2Config(pattern=symbol, **SHAPE)  # type: ignore[arg-type]
    attention = StripedHyena2Config(pattern="*", **SHAPE)  # type: ignore[arg-type]
    difference = forward_flops(with_mixer, 8) - forward_flops(attention, 8)
    assert difference == 8 * (2 * 3 * 48 + per_base) - 4 * 16 * 36
    assert training_flops(with_mixer, 8) == 3 * forward_flops(with_mixer, 8)


@pytest.mark.parametrize(("head_width", "per_base"), [(1, 0), (4, 3 * 16 * 4)])
def test_h3_counts_its_shift_its_pairs_and_their_complex_recurrence(
    head_width: int, per_base: int
) -> None:
    config = StripedHyena2Config(pattern="3", h3_head_width=head_width, ssm_order=5, **SHAPE)  # type: ignore[arg-type]
    linear = 2 * (4 * 16 * 16 + 3 * 16 * 32) + 2 * 16 * 256
    # A complex times a complex is 4 + 2, plus a real is 1; the real part of another product is 2 + 2.
    modes = 16 * head_width * 5 * (6 + 1 + 4)
    assert forward_flops(config, 10) == 10 * (linear + 2 * 64 * 16 + per_base + modes)


def test_s4d_projects_one_stream() -> None:
    config = StripedHyena2Config(pattern="4", ssm_order=5, **SHAPE)  # type: ignore[arg-type]
    linear = 2 * (2 * 16 * 16 + 3 * 16 * 32) + 2 * 16 * 256
    assert forward_flops(config, 10) == 10 * (linear + 16 * 5 * 11)


def test_peaks_by_name() -> None:
    assert peak_flops("NVIDIA H200") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA GH200 480GB") == 989.4e12
    assert peak_flops("NVIDIA L40") is None  # not an L4
    assert peak_flops("NVIDIA GeForce GTX 1080") is None
