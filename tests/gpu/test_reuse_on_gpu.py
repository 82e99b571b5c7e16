"""Reused prefixes on a GPU: near whole windows, and the same bits whatever runs beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.inference.runner import LogProbRunner
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.reading import Wanted
from evo_toolkit.variants.reuse import ReusedPrefixes
from evo_toolkit.variants.suffix import Adaptive
from evo_toolkit.variants.whole_windows import WholeWindows
from evo_toolkit.variants.window_runner import LogProbPair, WindowGroup

WINDOW = 1024


@pytest.fixture(scope="module", params=["default", "exact"])
def model(request: pytest.FixtureRequest, device: torch.device) -> StripedHyena2:
    return load_model("evo-mini", device=str(device), precision=request.param)


def groups(count: int, seed: int = 0) -> list[WindowGroup]:
    rng = np.random.default_rng(seed)
    bases = np.frombuffer(b"ACGT", dtype=np.uint8)
    found = []
    for number in range(count):
        ref = rng.choice(bases, WINDOW)
        alts = []
        for shift in range(1, 2 + number % 3):
            fork = WINDOW // 2 + (0, 0, 5, 37)[number % 4]
            alt = ref.copy()
            alt[fork] = bases[(int(np.flatnonzero(bases == ref[fork])[0]) + shift) % 4]
            alts.append((alt, fork))
        found.append(WindowGroup(ref, alts))
    return found


def deltas(found: Sequence[Sequence[LogProbPair]]) -> np.ndarray:
    middle = WINDOW // 2
    return np.array(
        [
            float((p.alt[middle:].astype(np.float64) - p.ref[middle:]).sum())
            for g in found
            for p in g
        ]
    )


@pytest.mark.parametrize("step", [1, 32])
def test_reuse_is_near_whole_windows(model: StripedHyena2, step: int) -> None:
    given = groups(24)
    whole = deltas(WholeWindows(LogProbRunner(model, WINDOW))(given))
    reused = deltas(ReusedPrefixes(model, WINDOW, step=step)(given))
    if model.policy.compute_dtype is torch.float32:
        np.testing.assert_allclose(reused, whole, atol=1e-4)
        return
    # bfloat16: no further apart than two ways of rounding are, by whole windows in float32.
    full_precision = load_model("evo-mini", device=str(model.device), precision="exact")
    right = deltas(WholeWindows(LogProbRunner(full_precision, WINDOW))(given))
    noise = np.sqrt(np.mean((whole - right) ** 2))
    assert np.sqrt(np.mean((reused - right) ** 2)) < 1.5 * noise


@pytest.mark.parametrize("step", [1, 32])
def test_scores_do_not_depend_on_batch_mates_bit_for_bit(model: StripedHyena2, step: int) -> None:
    given = groups(24)
    runner = ReusedPrefixes(model, WINDOW, step=step)
    together = runner(given)
    backwards = runner(given[::-1])[::-1]
    alone = [runner([group])[0] for group in given[::5]]
    for found, expected in ((backwards, together), (alone, together[::5])):
        for one, other in zip(found, expected, strict=True):
            for pair, wanted in zip(one, other, strict=True):
                assert np.array_equal(pair.ref, wanted.ref, equal_nan=True)
                assert np.array_equal(pair.alt, wanted.alt, equal_nan=True)


@pytest.mark.parametrize("step", [1, 32])
def test_graphs_give_the_same_bits_as_single_launches(
    model: StripedHyena2, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    given = groups(40)
    runner, plain = (ReusedPrefixes(model, WINDOW, step=step, rows=8) for _ in range(2))
    plain._reader.graphs.enabled = False
    graphs = runner._reader.graphs
    assert graphs.enabled == (model.policy.compute_dtype is torch.bfloat16)
    wanted = plain(given)
    for _ in range(2):  # the first call captures
        found = runner(given)
        for one, other in zip(found, wanted, strict=True):
            for pair, expected in zip(one, other, strict=True):
                assert np.array_equal(pair.ref, expected.ref, equal_nan=True)
                assert np.array_equal(pair.alt, expected.alt, equal_nan=True)
    if graphs.enabled:
        assert len(graphs._captured) >= 2
    assert "one kernel at a time" not in caplog.text


@pytest.mark.parametrize("step", [1, 32])
def test_adaptive_suffixes_bases_and_layers_bit_for_bit(model: StripedHyena2, step: int) -> None:
    given = groups(12)
    wanted = Wanted(bases=True, layers=("blocks.1", "norm"))
    runner = ReusedPrefixes(model, WINDOW, step=step, suffix=Adaptive(0.2), wanted=wanted)
    together = runner(given)
    alone = [runner([group])[0] for group in given[::-3]][::-1]
    whole = WholeWindows(LogProbRunner(model, WINDOW), wanted)(given)
    for one, other in zip(alone, together[2::3], strict=True):
        for pair, expected in zip(one, other, strict=True):
            assert len(pair.ref) == len(pair.alt)
            for name in ("ref", "alt", "bases_ref", "bases_alt"):
                values = getattr(pair, name), getattr(expected, name)
                assert np.array_equal(*values, equal_nan=True), name
            for layer in wanted.layers:
                assert np.array_equal(pair.layers_alt[layer], expected.layers_alt[layer])
    lengths = [len(pair.alt) for found in together for pair in found]
    assert min(lengths) < WINDOW
    bound = 1e-4 if model.policy.compute_dtype is torch.float32 else 1.0
    for one, other in zip(together, whole, strict=True):
        for pair, expected in zip(one, other, strict=True):
            assert pair.bases_alt is not None and expected.bases_alt is not None
            apart = np.abs(pair.bases_alt[1:] - expected.bases_alt[1 : len(pair.alt)])
            assert apart.max() < bound
