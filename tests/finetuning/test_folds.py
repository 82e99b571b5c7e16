"""Clusters of near copies, folds that no group straddles, and what training and test share."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evo_data.interval import Interval
from evo_toolkit.errors import UsageError
from evo_toolkit.finetuning.examples import Examples, ExamplesError, TaskKind
from evo_toolkit.finetuning.splits import (
    cluster_sequences,
    corpus_leak_report,
    grouped_folds,
    join_groups,
    leak_report,
    require_same_classes,
    require_trainable,
    sequence_hashes,
    split_groups,
    strata_of,
)

TURN = str.maketrans("ACGTN", "TGCAN")


def turned(sequence: str) -> str:
    return sequence.translate(TURN)[::-1]


def random_sequences(count: int, length: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("ACGT"), length)) for _ in range(count)]


def plain_clusters(sequences: list[str], k: int) -> list[int]:
    """By comparing all pairs."""
    kmers = [
        {min(s[i : i + k], turned(s[i : i + k])) for i in range(len(s) - k + 1) if "N" not in s[i : i + k]}
        for s in sequences
    ]  # fmt: skip
    labels = list(range(len(sequences)))
    for i in range(len(sequences)):
        for j in range(i):
            if kmers[i] & kmers[j]:
                labels = [labels[j] if x == labels[i] else x for x in labels]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(x, len(numbers)) for x in labels]


@pytest.mark.parametrize("k", [5, 31, 32, 33, 40, 64])
def test_clusters_are_those_of_comparing_all_pairs(k: int) -> None:
    base = random_sequences(12, 100, seed=k)
    # One shares exactly k bases, one k - 1, one k on the other strand, one k across an N.
    base.append(base[0][10 : 10 + k] + random_sequences(1, 40, 91)[0])
    base.append(base[1][10 : 10 + k - 1] + "N" + random_sequences(1, 40, 92)[0])
    base.append("T" + turned(base[2][20 : 20 + k]) + random_sequences(1, 40, 93)[0])
    base.append(base[3][: k // 2] + "N" + base[3][k // 2 + 1 : k] + random_sequences(1, 30, 94)[0])
    found = cluster_sequences(base, k)
    if k > 5:
        assert found[12] == found[0] and found[14] == found[2]
        assert found[13] != found[1] and found[15] != found[3]
    assert found.tolist() == plain_clusters(base, k)


def test_short_sequences_belong_together_only_if_the_same() -> None:
    found = cluster_sequences(["ACGTT", "AACGT", "ACGT", "ACGTT" * 10, "A" * 40], 31)
    # The second is the reverse complement of the first.
    assert found.tolist() == [0, 0, 1, 2, 3]
    assert sequence_hashes("", 31).size == 0
    with pytest.raises(UsageError, match="1 to 64"):
        sequence_hashes("A" * 100, 65)


def test_groups_join_where_any_labelling_joins_them() -> None:
    assert join_groups(["a", "a", "b", "c"], [0, 1, 1, 2]).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_folds_hold_groups_whole_and_classes_even(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 400)
    classes = (rng.random(400) < 0.2).astype(np.int64)
    folds = grouped_folds(groups, 5, strata=classes, seed=seed)
    assert sorted(np.concatenate([f.test for f in folds]).tolist()) == list(range(400))
    for fold in folds:
        assert not set(groups[fold.train]) & set(groups[fold.test])
        assert sorted([*fold.train, *fold.test]) == list(range(400))
        assert 60 <= fold.test.size <= 100
        assert abs(classes[fold.test].mean() - classes.mean()) < 0.06
    again = grouped_folds(groups, 5, strata=classes, seed=seed)
    assert all(np.array_equal(a.test, b.test) for a, b in zip(folds, again, strict=True))
    other = grouped_folds(groups, 5, strata=classes, seed=seed + 1)
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(folds, other, strict=True))


def test_too_few_groups_and_classes_in_one_group_are_refused() -> None:
    with pytest.raises(UsageError, match="3 groups cannot be spread over 5 folds"):
        grouped_folds(np.array([0, 1, 2, 2]), 5)
    examples = made("multiclass", np.array([0, 0, 1, 1, 2, 2]), groups=tuple("aabbcc"))
    folds = grouped_folds(np.array([0, 1, 2, 3, 4, 4]), 3)
    with pytest.raises(ExamplesError, match="class 'c' stands in one group alone"):
        require_trainable(examples, folds)


def made(
    kind: TaskKind,
    targets: np.ndarray,
    *,
    groups: tuple[str, ...] | None = None,
    loci: tuple[Interval, ...] | None = None,
    sequences: list[str] | None = None,
) -> Examples:
    n = len(targets)
    return Examples(
        kind=kind,
        ids=tuple(map(str, range(n))),
        sequences=tuple(sequences or random_sequences(n, 50)),
        targets=targets,
        label_names=() if kind == "regression" else tuple("abc"[: int(targets.max()) + 1]),
        groups=groups,
        places=("f",) * n,
        loci=loci,
        windows=((),) * n if kind == "variant" else (),
    )


def test_what_stays_together_by_each_way_to_split() -> None:
    sequences = random_sequences(4, 60)
    sequences[3] = sequences[0][10:] + "A"
    loci = tuple(Interval("c", s, s + 1) for s in (10, 10, 900, 1100))
    contigs = ("c",) * 4
    plain = made("binary", np.array([0, 1, 0, 1]), sequences=sequences)
    assert split_groups(plain)[0].tolist() == [0, 1, 2, 0]
    named = made("binary", np.array([0, 1, 0, 1]), sequences=sequences, groups=tuple("xyyz"))
    assert split_groups(named)[0].tolist() == [0, 1, 1, 0]
    assert split_groups(named, "group")[0].tolist() == [0, 1, 1, 2]
    variants = made("variant", np.array([0, 1, 0, 1]), groups=contigs, loci=loci)
    assert split_groups(variants) [0].tolist() == [0, 0, 1, 2]  # fmt: skip
    assert split_groups(variants, "group")[0].tolist() == [0, 0, 0, 0]
    assert split_groups(variants, "block", block=1000)[0].tolist() == [0, 0, 0, 1]
    genes = made("variant", np.array([0, 1, 0, 1]), groups=tuple("gghh"), loci=loci)
    assert split_groups(genes)[0].tolist() == [0, 0, 1, 1]
    assert split_groups(plain, "none")[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="have no places in a genome"):
        split_groups(plain, "block")
    with pytest.raises(UsageError, match="have no groups"):
        split_groups(plain, "group")


def test_what_folds_are_balanced_by() -> None:
    assert strata_of(made("regression", np.arange(8.0))).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    labels = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], bool)
    many = Examples(kind="multilabel", ids=tuple("abcd"), sequences=("A",) * 4, targets=labels, label_names=("x", "y"), places=("f",) * 4)  # fmt: skip
    assert strata_of(many).tolist() == [2, 1, 1, 0]


def test_what_test_and_training_share(tmp_path: Path) -> None:
    train = random_sequences(5, 80)
    fresh = random_sequences(3, 80, seed=9)
    test = [fresh[0], turned(train[1]), train[2][:31] + fresh[1][:49], fresh[2]]
    found = leak_report(train, test)
    assert (found.sequences, found.identical, found.total) == (2, 1, 4)
    assert found.kmers == pytest.approx((50 + 1) / (4 * 50))
    assert not leak_report(train, fresh).found and not leak_report([], fresh).found
    with gzip.open(tmp_path / "genome.fa.gz", "wt") as file:
        file.write(">x\n" + "".join(train) + "\n")
    whole = corpus_leak_report(test, [tmp_path])
    assert (whole.sequences, whole.identical, whole.kmers) == (2, 1, found.kmers)
    assert not corpus_leak_report(fresh, [tmp_path]).found
    assert "2 of 4 test sequences share a 31-mer with the training part" in str(found)


def test_a_test_set_has_the_classes_of_what_is_trained_on() -> None:
    train = Examples(
        kind="binary", ids=("a", "b"), sequences=("ACGT", "CCCC"), targets=np.array([0, 1]),
        label_names=("no", "yes"), places=("line 1", "line 2"),
    )  # fmt: skip
    require_same_classes(train, replace(train, ids=("c", "d")))
    with pytest.raises(UsageError, match="test set has the classes yes, no and the training set no, yes"):  # fmt: skip
        require_same_classes(train, replace(train, label_names=("yes", "no")))
