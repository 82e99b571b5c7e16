"""Windows by arithmetic against windows by hand, counting, and brute force on tiny genomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from evo_data.alphabet import reverse_complement
from evo_data.corpus import Corpus
from evo_data.errors import EvoDataError
from evo_data.packing import pack_stretches
from evo_data.splits import Segment
from evo_data.tags import tag_mask
from evo_data.training_windows import EOD, PAD, TrainingWindows, Window

LENGTHS = (100, 33, 17, 16, 18, 5, 1, 0, 2, 64, 3, 3)


def random_bases(rng: np.random.Generator, length: int, letters: bytes = b"ACGT") -> bytes:
    return bytes(rng.choice(np.frombuffer(letters, np.uint8), length))


def epoch_of(windows: TrainingWindows, epoch: int) -> Iterator[Window]:
    return (windows.window(epoch, i) for i in range(len(windows)))


def targets_of(window: Window) -> list[tuple[int, int]]:
    """(record, forward position) of every target with a weight."""
    found = []
    for piece in window.pieces:
        for j in range(piece.stop - piece.start):
            at = piece.at + j - 1
            if at >= 0 and window.target_weight[at] > 0:
                forward = piece.start + j if window.strand == "+" else piece.stop - 1 - j
                found.append((piece.record, forward))
    return found


def check_against_genome(window: Window, corpus: Corpus, length: int, soft_mask: float) -> None:
    """Everything in a window is what its pieces say, written down base by base."""
    tokens, weights = [], []
    for piece in window.pieces:
        if tokens:
            tokens.append(EOD)
            weights.append(0.0)
        assert piece.at == len(tokens)
        raw = corpus.read(piece.record, piece.start, piece.stop).tobytes()
        if window.strand == "-":
            raw = reverse_complement(raw)
        for j, letter in enumerate(raw):
            tokens.append(ord(chr(letter).upper()))
            known = {"A": 1.0, "C": 1.0, "G": 1.0, "T": 1.0}.get(chr(letter).upper(), 0.0)
            weights.append(0.0 if j == 0 else known * (soft_mask if letter > 96 else 1.0))
    filled = length + 1 - len(tokens)
    assert filled >= 0
    assert window.tokens.dtype == np.uint8
    assert window.tokens.tolist() == tokens + [PAD] * filled
    assert window.target_weight.dtype == np.float32
    np.testing.assert_array_equal(
        window.target_weight, np.array((weights + [0.0] * filled)[1:], np.float32)
    )


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("pack_short", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 16, 17, 99, 150])
def test_forward_every_base_but_the_first_is_a_target_once(
    make_corpus: Any, length: int, pack_short: bool, shift: bool
) -> None:
    rng = np.random.default_rng(length)
    corpus = make_corpus([random_bases(rng, n) for n in LENGTHS], [random_bases(rng, 41)])
    windows = TrainingWindows(
        corpus, context_length=length, pack_short=pack_short, shift=shift, seed=3
    )
    expected = {
        (at, p) for at, record in enumerate(corpus.records) for p in range(1, record.length)
    }
    assert windows.num_targets == len(expected)
    for epoch in (0, 1, 5):
        seen: Counter[tuple[int, int]] = Counter()
        packed = 0
        for window in epoch_of(windows, epoch):
            check_against_genome(window, corpus, length, 0.1)
            seen.update(targets_of(window))
            packed += len(window.pieces) > 1 or PAD in window.tokens
        assert set(seen) == expected
        assert set(seen.values()) == {1}
        assert pack_short <= (packed <= windows.num_packed)


def test_both_strands_every_window_is_read_from_either_side(make_corpus: Any) -> None:
    rng = np.random.default_rng(1)
    corpus = make_corpus([random_bases(rng, n, b"ACGTacgtN") for n in LENGTHS])
    forward = TrainingWindows(corpus, context_length=16, seed=2)
    both = TrainingWindows(corpus, context_length=16, seed=2, strands="both")
    assert len(both) == 2 * len(forward)
    seen = Counter((window.strand, frozenset(p[:3] for p in window.pieces)) for window in epoch_of(both, 4))  # fmt: skip
    each = [frozenset(p[:3] for p in window.pieces) for window in epoch_of(forward, 0)]
    assert seen == Counter((strand, pieces) for strand in "+-" for pieces in each)
    for window in epoch_of(both, 4):
        check_against_genome(window, corpus, 16, 0.1)


def test_random_strands_are_a_fair_and_new_choice(make_corpus: Any) -> None:
    corpus = make_corpus([random_bases(np.random.default_rng(2), 8001)])
    windows = TrainingWindows(corpus, context_length=8, strands="random", seed=9)
    strands = [[window.strand for window in epoch_of(windows, epoch)] for epoch in (0, 1)]
    for of_epoch in strands:
        assert 400 < of_epoch.count("-") < 600  # 500 expected, standard deviation 16
    assert 400 < sum(a == b for a, b in zip(*strands, strict=True)) < 600
    again = TrainingWindows(corpus, context_length=8, strands="random", seed=9)
    assert [window.strand for window in epoch_of(again, 1)] == strands[1]
    other = TrainingWindows(corpus, context_length=8, strands="random", seed=10)
    assert [window.strand for window in epoch_of(other, 1)] != strands[1]


def test_soft_mask_and_other_letters(make_corpus: Any) -> None:
    corpus = make_corpus([b"AcgTNnRAtG"])
    windows = TrainingWindows(corpus, context_length=9, soft_mask_weight=0.25)
    window = windows.window(0, 0)
    assert window.tokens.tobytes() == b"ACGTNNRATG"
    assert window.target_weight.tolist() == [0.25, 0.25, 1, 0, 0, 0, 1, 0.25, 1]


def test_packing_by_hand(make_corpus: Any) -> None:
    corpus = make_corpus([b"AAAA", b"CCC", b"GG"])
    window = TrainingWindows(corpus, context_length=11).window(0, 0)
    # Longest first; 4 + 1 + 3 + 1 + 2 = 11 of 12 tokens.
    assert window.tokens.tobytes() == b"AAAA\0CCC\0GG\x01"
    assert window.target_weight.tolist() == [1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 0]
    reverse = TrainingWindows(corpus, context_length=11, strands="both", shuffle=False).window(0, 1)
    assert reverse.strand == "-"
    assert reverse.tokens.tobytes() == b"CC\0GGG\0TTTT\x01"
    assert reverse.target_weight.tolist() == [1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_pack_loses_nothing_and_wastes_little(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(3, 60))
    sizes = rng.integers(2, capacity + 1, int(rng.integers(0, 80))).tolist()
    packs = pack_stretches(sizes, capacity)
    assert sorted(at for pack in packs for at in pack) == list(range(len(sizes)))
    used = [sum(sizes[at] for at in pack) + len(pack) - 1 for pack in packs]
    assert all(tokens <= capacity for tokens in used)
    # Two packs that would fit into one are never left.
    used.sort()
    assert len(used) < 2 or used[0] + 1 + used[1] > capacity


def test_weights_decide_how_often_exactly(make_corpus: Any) -> None:
    rng = np.random.default_rng(3)
    weights = {"g0": 1.0, "g1": 0.25, "g2": 2.5, "g3": 0.0, "g4": 1 / 48}
    corpus = make_corpus(*([random_bases(rng, 81)] for _ in weights))  # 10 windows each
    windows = TrainingWindows(corpus, context_length=8, weights=weights, seed=4)
    total = sum(10 * weight for weight in weights.values())
    assert len(windows) == round(total)
    assert windows.num_left_out == 1
    epochs = 480
    counts: Counter[tuple[int, int]] = Counter()
    for epoch in range(epochs):
        of_epoch = Counter(
            (window.pieces[0].record, window.pieces[0].start) for window in epoch_of(windows, epoch)
        )
        for at in range(5):
            for start in range(0, 80, 8):
                # The lengths of an epoch are whole, so all weights are scaled a little.
                weight = weights[f"g{at}"] * len(windows) / total
                assert int(weight) <= of_epoch[at, start] <= int(weight) + 1
        counts.update(of_epoch)
    for at in range(5):
        expected = weights[f"g{at}"] * epochs * len(windows) / total
        for start in range(0, 80, 8):
            # Evenly over the epochs: far less spread than a choice by lot (sqrt(480 p q) = 9).
            assert abs(counts[at, start] - expected) <= 2


def test_cluster_weights_and_factors_multiply(make_corpus: Any) -> None:
    corpus = make_corpus(
        [b"ACGT" * 20], [b"ACGA" * 20], groups=["bacteria", "phage"], weights=[0.5, 0.5]
    )
    assert len(TrainingWindows(corpus, context_length=79)) == 1
    assert len(TrainingWindows(corpus, context_length=79, cluster_weights=False)) == 2
    more = TrainingWindows(corpus, context_length=79, weights={"phage": 8, "g0": 2})
    assert len(more) == 5
    assert Counter(window.group for window in epoch_of(more, 0)) == {0: 1, 1: 4}
    assert more.groups == ["bacteria", "phage"]
    of_two = TrainingWindows(corpus, context_length=79, groups=["a", "phage", "bacteria"])
    assert of_two.window(0, 0).group in (1, 2)


def test_order_is_new_in_every_epoch_and_the_same_for_ever(make_corpus: Any) -> None:
    corpus = make_corpus([b"ACGTA" * 100, b"GGCAT" * 4], [b"TTGAC" * 60])
    windows = TrainingWindows(
        corpus, context_length=16, strands="random", shift=True, seed=2026, weights={"g1": 0.3}
    )

    def order(made: TrainingWindows, epoch: int) -> list[tuple[int, int, str]]:
        return [(w.pieces[0].record, w.pieces[0].start, w.strand) for w in epoch_of(made, epoch)]

    assert order(windows, 0) != order(windows, 1)
    assert [w.tokens.tobytes() for w in map(windows.sample, range(60, 70))] == [
        windows.window(n // len(windows), n % len(windows)).tokens.tobytes() for n in range(60, 70)
    ]
    # Golden: a run that resumes after an update must read on in the same order. Never change it.
    assert order(windows, 1)[:8] == GOLDEN
    in_order = TrainingWindows(corpus, context_length=16, shuffle=False)
    starts = [w.pieces[0].start for w in epoch_of(in_order, 0) if w.pieces[0].record == 0]
    assert starts[:31] == list(range(0, 496, 16))


GOLDEN = [(0, 256, "-"), (0, 272, "+"), (0, 435, "-"), (0, 64, "-"), (0, 355, "+"), (0, 224, "-"), (0, 16, "-"), (0, 483, "-")]  # fmt: skip


def test_shift_moves_the_grid(make_corpus: Any) -> None:
    corpus = make_corpus([random_bases(np.random.default_rng(6), 16 * 20 + 8)])
    windows = TrainingWindows(corpus, context_length=16, shift=True)
    phases = Counter(
        window.pieces[0].start % 16
        for epoch in range(20)
        for window in epoch_of(windows, epoch)
        if window.pieces[0].stop - window.pieces[0].start == 17
    )
    assert set(phases) == {0, 7}
    assert min(phases.values()) > 50


def test_segments_are_kept_to(make_corpus: Any) -> None:
    corpus = make_corpus([b"ACGT" * 100], [b"GGCA" * 10])
    segments = [Segment(0, 10, 75), Segment(0, 200, 201), Segment(0, 300, 400)]
    windows = TrainingWindows(corpus, context_length=16, segments=segments, strands="random")
    assert windows.num_left_out == 1
    assert windows.num_targets == 64 + 99
    for window in epoch_of(windows, 0):
        for piece in window.pieces:
            assert any(s.start <= piece.start and piece.stop <= s.stop for s in segments)
            assert piece.record == 0
    with pytest.raises(EvoDataError, match=r"\[350, 500\) is not within record g0r0 of 400"):
        TrainingWindows(corpus, context_length=16, segments=[Segment(0, 350, 500)])


def test_lineage_tags_stand_before_every_stretch_unscored(make_corpus: Any) -> None:
    rng = np.random.default_rng(7)
    corpus = make_corpus([random_bases(rng, 100), random_bases(rng, 9)], [random_bases(rng, 7)])
    tags = {"g0": "|d__Bacteria;|"}
    windows = TrainingWindows(corpus, context_length=40, tags=tags, strands="random")
    seen: Counter[tuple[int, int]] = Counter()
    for window in epoch_of(windows, 0):
        seen.update(targets_of(window))
        for piece in window.pieces:
            tag = tags.get(corpus.genomes[corpus.records[piece.record].genome].name, "").upper()
            before = window.tokens[piece.at - len(tag) : piece.at].tobytes()
            assert before == tag.encode()
            assert not window.target_weight[max(0, piece.at - len(tag) - 1) : piece.at].any()
    assert windows.num_targets == sum(seen.values()) == 99 + 8 + 6
    with pytest.raises(EvoDataError, match="tag of 14 letters leaves no room in a context of 14"):
        TrainingWindows(corpus, context_length=14, tags=tags)
    with pytest.raises(EvoDataError, match="printable"):
        TrainingWindows(corpus, context_length=40, tags={"g0": "|\0|"})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("ACGT", "...."),
        ("AC|d__B;p__C|GT", "..xxxxxxxxxxx.."),
        ("ia;p__C|GT", "xxxxxxxx.."),  # a tag cut by the left end
        ("GT|d__Bact", "..xxxxxxxx"),  # and by the right end
        ("AC|GT|AC", "..x..x.."),  # bars alone are no tag
        ("AC@GT#AC", "..x..x.."),
        ("AC\0a_b\0AC", "...xxx..."[:9]),
        ("", ""),
        ("|", "x"),
        ("a b", "xxx"),
    ],
)
def test_tag_mask(text: str, masked: str) -> None:
    mask = tag_mask(np.frombuffer(text.encode(), np.uint8))
    assert "".join("x" if m else "." for m in mask) == masked


def test_tags_within_the_sequence_are_unscored_and_read_forward(make_corpus: Any) -> None:
    sequence = b"|d__Bacteria;p__Acg|" + b"ACGGT" * 4 + b"\0" + b"CCGTA" * 4
    corpus = make_corpus([sequence])
    windows = TrainingWindows(corpus, context_length=len(sequence) - 1, strands="both")
    for window in epoch_of(windows, 0):
        assert window.strand == "+"
        assert window.tokens.tobytes() == sequence.upper()
        weights = window.target_weight.tolist()
        assert weights == [0.0] * 19 + [1.0] * 20 + [0.0] + [0.0] + [1.0] * 19


def test_all_n_gives_windows_without_weight(make_corpus: Any) -> None:
    windows = TrainingWindows(make_corpus([b"N" * 50]), context_length=16, strands="random")
    assert [float(window.target_weight.sum()) for window in epoch_of(windows, 0)] == [0.0] * 4


@pytest.mark.parametrize("length", [49, 50, 51, 1_000_000])
def test_a_corpus_shorter_than_a_window_is_one_window(make_corpus: Any, length: int) -> None:
    windows = TrainingWindows(make_corpus([b"ACGTA" * 10]), context_length=length)
    assert len(windows) == 1
    window = windows.window(0, 0)
    assert window.tokens.size == length + 1
    assert window.target_weight.sum() == 49


@pytest.mark.parametrize(
    ("sequences", "options", "message"),
    [
        ([b"A"], {}, "of 1 stretches of bases none has two"),
        ([b""], {}, "no window can be cut"),
        ([], {}, "of 0 stretches"),
        ([b"ACGT"], {"weights": {"g0": 0}}, "weight above 0"),
        ([b"ACGT"], {"weights": {"g0": -1}}, "from 0 to 1000000"),
        ([b"ACGT"], {"weights": {"g0": float("nan")}}, "weight of g0 is nan"),
        ([b"ACGT"], {"weights": {"g0": float("inf")}}, "weight of g0 is inf"),
        ([b"ACGT"], {"weights": {"g7": 1}}, "weights: 'g7' is not in the corpus, which has g0"),
        ([b"ACGT"], {"tags": {"g7": "x"}}, "tags: 'g7' is not in"),
        ([b"ACGT"], {"context_length": 0}, "context_length 0 is too small"),
        ([b"ACGT"], {"strands": "backward"}, "strands 'backward' is not known"),
        ([b"ACGT"], {"soft_mask_weight": 2}, "not within 0 to 1"),
        ([b"ACGT"], {"seed": 2**64}, "64 bits"),
        ([b"ACGT"], {"groups": ["x"]}, "do not name 'all'"),
    ],
)
def test_what_cannot_be_done_is_said(
    make_corpus: Any, sequences: list[bytes], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvoDataError, match=message):
        TrainingWindows(make_corpus(sequences), **{"context_length": 16, **options})


def test_extreme_weights(make_corpus: Any) -> None:
    corpus = make_corpus([b"ACGT" * 30], [b"TTGCA" * 30])
    heavy = TrainingWindows(corpus, context_length=16, weights={"g0": 1e6, "g1": 1e-300})
    assert len(heavy) == 8_000_000
    windows = [heavy.window(0, i) for i in range(0, 8_000_000, 99_991)]
    assert {window.pieces[0].record for window in windows} == {0}
    light = TrainingWindows(corpus, context_length=16, weights={"all": 1e-9})
    assert len(light) == 1
    seen = {light.window(epoch, 0).pieces[0][:2] for epoch in range(200)}
    assert len(seen) == light.num_windows  # a single window an epoch comes round to all of them


def test_positions_outside_are_refused(make_corpus: Any) -> None:
    windows = TrainingWindows(make_corpus([b"ACGT" * 30]), context_length=16)
    for epoch, i in [(0, len(windows)), (0, -1), (-1, 0)]:
        with pytest.raises(EvoDataError, match="there are 8, from 0"):
            windows.window(epoch, i)


def test_digest_tells_windows_apart(make_corpus: Any) -> None:
    corpus = make_corpus([b"ACGT" * 30], [b"GGCA" * 30])
    options: list[dict[str, Any]] = [
        {},
        {"context_length": 17},
        {"seed": 1},
        {"strands": "random"},
        {"shuffle": False},
        {"shift": True},
        {"weights": {"g0": 2}},
        {"weights": {"g1": 2}},
        {"pack_short": False},
        {"segments": [Segment(0, 0, 100)]},
        {"segments": [Segment(1, 0, 100)]},
        {"tags": {"g0": "|x_|"}},
    ]
    digests = [TrainingWindows(corpus, **{"context_length": 16, **o}).digest for o in options]
    assert len(set(digests)) == len(digests)
    assert digests[0] == TrainingWindows(corpus, context_length=16).digest
