"""Loaders of benchmarks on small made files of their formats, and the commands on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from evo_data.alphabet import reverse_complement
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.evaluation.benchmarks import essential_genes, exons, promoters, splice
from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask, train_overlap
from evo_toolkit.evaluation.features import (
    FeatureFile,
    default_layers,
    sequence_features,
    untrained,
    variant_features,
)
from evo_toolkit.evaluation.genomes import find_genomes
from evo_toolkit.evaluation.prepared import load_prepared
from evo_toolkit.evaluation.registry import BENCHMARKS, find
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.striped_hyena import StripedHyena2


def bases(count: int, seed: int, gc: float = 0.5) -> str:
    p = [(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), count, p=p))


def write_fasta(path: Path, records: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f">{name}\n{text}\n" for name, text in records))
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, args)])


@pytest.fixture(scope="module")
def model() -> StripedHyena2:
    config = StripedHyena2Config(
        name="tiny", pattern="SH*", width=32, mlp_width=64, num_heads=2, filter_groups=4,
        context_length=512, domains=("bacteria",),
    )  # fmt: skip
    return StripedHyena2(config, generator_seed=0).eval()


@pytest.fixture
def promoter_files(tmp_path: Path) -> list[Path]:
    positives = [(f"p{i}_[TIM|S|x]", bases(60, i, 0.4).lower()) for i in range(40)]
    positives += [(f"c{i}_[ICWHO|W|x],[TIM|S|x]", bases(60, 100 + i)) for i in range(5)]
    negatives = [(f"n{i}", bases(60, 200 + i, 0.55)) for i in range(60)]
    return [
        write_fasta(tmp_path / "p.fa", [*positives, positives[0]]),
        write_fasta(tmp_path / "n.fa", negatives),
    ]


def test_promoters_lose_their_case_their_computed_ones_and_their_composition(
    promoter_files: list[Path],
) -> None:
    task = promoters.load_promoters(promoter_files)
    assert {c for text in task.examples.sequences for c in text} == set("ACGT")
    assert task.left_out["computational promoters"] == 5
    assert task.left_out["repeated sequences"] == 1
    content = promoters.gc_content(task.examples.sequences)
    assert np.array_equal(np.sort(content[task.targets == 1]), np.sort(content[task.targets == 0]))
    assert 10 < len(task) < 80
    assert task.examples.label_names == ("other", "promoter")


def test_sequences_that_share_31_bases_are_one_group(tmp_path: Path) -> None:
    one, two = bases(80, 1), bases(80, 2)
    table = tmp_path / "t.txt"
    near = one[40:] + two[:40]
    turned = reverse_complement(near.encode()).decode()
    lines = [(one, 3.5), (two, -0.25), (turned, 7.0), (bases(80, 3), 0.0), (one, 4.0)]
    table.write_text("".join(f"{text}\t{value}\n" for text, value in lines))
    task = promoters.load_activity([table])
    # The repeat has another value, so neither copy says which is right.
    assert task.left_out["repeated sequences"] == 2
    assert task.groups.tolist()[:2] == [task.groups[0]] * 2
    assert task.groups[2] != task.groups[0]
    assert task.targets == pytest.approx(np.arcsinh([-0.25, 7.0, 0.0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ACGT\n", "t.txt, line 1: 1 columns"),
        ("ACGT 1\nAC-T 2\n", "t.txt, line 2: the sequence holds '-'"),
        ("ACGT 1\nACTT high\n", "t.txt, line 2: label 'high' is no number"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "t.txt"
    table.write_text(text)
    with pytest.raises(EvoError, match=message):
        promoters.load_activity([table])


def test_decoys_are_other_gts_and_ags_of_the_same_line(tmp_path: Path) -> None:
    lines = []
    for index in range(12):
        left, inner, right = bases(50, index), bases(90, 50 + index), bases(50, 99 + index)
        lines.append(f"{left} GT{inner}AG {right} 20 gene{index // 3}")
    lines.append(f"{bases(50, 7)} GT{bases(60, 8)}AG {bases(50, 9)} 9 rare")
    lines.append(f"{bases(50, 7)} GC{bases(60, 8)}AG {bases(50, 9)} 99 odd")
    path = tmp_path / "eie.txt"
    path.write_text("\n".join(lines))
    for load, at, motif in (
        (splice.load_donors, slice(40, 42), "GT"),
        (splice.load_acceptors, slice(38, 40), "AG"),
    ):
        task = load([path])
        texts = np.array(task.examples.sequences)
        assert {text[at] for text in texts} == {motif}
        assert {len(text) for text in texts} == {80}
        sites = [line.split() for line in lines[:12]]
        true = {
            (a + b + c)[10:90] if motif == "GT" else (a + b + c)[len(a + b) - 40 : len(a + b) + 40]
            for a, b, c, _, _ in sites
        }
        assert set(texts[task.targets == 1]) <= true
        assert not set(texts[task.targets == 0]) & true
        assert task.targets.sum() <= 8  # two of each of four genes, none of `rare` and `odd`
        assert len(set(task.groups)) == 4
    path.write_text("ACGT GTAG ACGT many g\n")
    with pytest.raises(EvoError, match="line 1: not exon, intron"):
        splice.load_donors([path])


def test_exon_windows_join_the_strands_at_the_position(tmp_path: Path) -> None:
    rows, texts = ["organism\tgene_name\tstrand\tlabel\tforward_seq\treverse_seq"], []
    for index in range(6):
        text = bases(600, index)
        texts.append(text)
        turned = reverse_complement(text[299:].encode()).decode().lower()
        rows.append(f"species{index % 3}\tg\t+\t{index % 2}.0\t{text[:300]}\t{turned}")
    table = tmp_path / "t.tsv"
    table.write_text("\n".join(rows))
    task = exons.load_exons([table])
    assert list(task.examples.sequences) == [text[52:548] for text in texts]
    assert task.groups.max() == 2
    table.write_text("\n".join([rows[0], rows[1].replace("\t0.0\t", "\tmaybe\t")]))
    with pytest.raises(EvoError, match="line 2: label 'maybe'"):
        exons.load_exons([table])


def test_genes_with_common_proteins_are_one_family() -> None:
    proteins = [
        b"MKTAYIAKQRQISFVKSHFS",
        b"MAAAAYIAKQRQIGG",
        b"MWWWWWWYYYYYYCCC",
        b"MPPPPPISFVKSHPP",
    ]
    # The second shares eight with the first, the last only seven.
    assert essential_genes._families(proteins).tolist() == [0, 0, 1, 2]


def test_overlap_counts_both_strands_of_each_sequence(tmp_path: Path) -> None:
    genome = bases(3000, 5)
    write_fasta(tmp_path / "g.fa", [("a", genome[:1500]), ("b", genome[1500:])])
    turned = reverse_complement(genome[100:180].encode()).decode()
    other = "ACGT".replace(genome[240], "")[0] + bases(39, 9)
    texts = [turned, genome[200:240] + other, bases(80, 10), genome[1470:1530], "ACGT"]
    shares = train_overlap(texts, find_genomes([tmp_path / "g.fa"]))
    # 40 of 80 bases are 10 of the 50 31-mers; over the end of a record there is none.
    assert shares.tolist() == [1.0, 0.2, 0.0, 0.0, 0.0]


def test_a_limit_draws_whole_groups() -> None:
    task = _task(60).with_groups([f"g{i // 6}" for i in range(60)])
    few = task.limited(25, seed=1)
    assert len(few) == 24
    assert set(np.bincount(few.groups)) == {6}
    assert few.left_out == {"not drawn": 36}
    assert task.limited(60, 0) is task


def _task(count: int) -> LabelledTask:
    from evo_toolkit.finetuning.examples import RawExample, examples_of

    rows = [
        RawExample(id=f"s{i}", sequence=bases(40 + i % 3, i), labels=(str(i % 2),), place="x")
        for i in range(count)
    ]
    return LabelledTask(examples=examples_of(rows, "binary", source="x"))


def test_a_prepared_task_is_read_back(tmp_path: Path) -> None:
    task = _task(20)
    task = LabelledTask(examples=task.examples, columns={"score.x": np.arange(20.0)}, left_out={"a": 2})  # fmt: skip
    task.prepared("ecoli-promoters", {"more": 1}).save(tmp_path / "p.npz")
    prepared = load_prepared(tmp_path / "p.npz", "ecoli-promoters")
    again = LabelledTask.of_prepared(prepared)
    assert again.examples.sequences == task.examples.sequences
    assert np.array_equal(again.targets, task.targets)
    assert np.array_equal(again.groups, task.groups)
    assert again.columns["score.x"].tolist() == list(range(20))
    assert again.left_out == {"a": 2}


# Features


def test_strands_stand_side_by_side(model: StripedHyena2) -> None:
    text = bases(50, 1)
    turned = reverse_complement(text.encode()).decode()
    for readout in ("mean", "middle", "last"):
        found = sequence_features(model, [text + "A", turned], ["blocks.1"], readout=readout)  # type: ignore[arg-type]
        assert found["blocks.1"].shape == (2, 64)
    one = sequence_features(model, [text], ["blocks.1"])["blocks.1"][0]
    other = sequence_features(model, [turned], ["blocks.1"])["blocks.1"][0]
    assert np.allclose(one[:32], other[32:], atol=1e-6)
    assert not np.allclose(one[:32], one[32:], atol=1e-3)


def test_the_middle_is_read_with_what_comes_before_it_on_each_strand(model: StripedHyena2) -> None:
    left, right = bases(40, 1), bases(40, 2)
    whole = sequence_features(model, [left + right], ["blocks.2"], readout="middle")["blocks.2"][0]

    def changed(text: str) -> np.ndarray[Any, Any]:
        new = sequence_features(model, [text], ["blocks.2"], readout="middle")["blocks.2"][0]
        return np.abs(new - whole).reshape(2, 32).max(axis=1)

    swap = {"A": "C", "C": "G", "G": "T", "T": "A"}
    assert (changed(swap[left[0]] + left[1:] + right) > 0).tolist() == [True, False]
    assert (changed(left + right[:-1] + swap[right[-1]]) > 0).tolist() == [False, True]
    assert (changed(left + swap[right[0]] + right[1:]) > 0).all()


def test_variants_have_the_alternate_and_what_it_changes(model: StripedHyena2) -> None:
    text = bases(40, 3)
    alts = np.array(["ACGT".index(text[20]), ("ACGT".index(text[20]) + 1) % 4], np.uint8)
    found = variant_features(model, [text, text], alts, ["blocks.0"])["blocks.0"]
    assert found.shape == (2, 128)
    assert np.array_equal(found[0, 64:], np.zeros(64))  # the reference itself changes nothing
    assert (found[1, 64:] != 0).any()
    assert np.allclose(found[1, :64] - found[1, 64:], found[0, :64], atol=1e-6)


def test_an_untrained_network_has_the_shape_and_not_the_weights(model: StripedHyena2) -> None:
    one, same = untrained(model, 3), untrained(model, 3)
    assert not np.allclose(one.embedding.weight.detach(), model.embedding.weight.detach())
    assert np.array_equal(one.embedding.weight.detach(), same.embedding.weight.detach())
    assert default_layers(10) == ("blocks.1", "blocks.4", "blocks.6", "blocks.8")
    assert default_layers(1) == ("blocks.0",)


def test_features_of_other_examples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    made = FeatureFile(digest="a", model={"name": "m"}, networks={"model": {"blocks.0": np.ones((2, 3), np.float32)}}, readout="mean")  # fmt: skip
    made.save(path)
    again = FeatureFile.load(path, "a")
    assert again.networks["model"]["blocks.0"].tolist() == [[1, 1, 1], [1, 1, 1]]
    with pytest.raises(EvoError, match="features of other examples"):
        FeatureFile.load(path, "b")
    path.write_bytes(b"PK")
    with pytest.raises(EvoError, match="holds no features"):
        FeatureFile.load(path, "a")


# The commands


def test_every_benchmark_says_where_its_data_come_from() -> None:
    names = [one.name for one in BENCHMARKS]
    assert len(set(names)) == len(names)
    listed = run("list")
    for one in BENCHMARKS:
        assert one.name in listed.output
        described = run("list", one.name).output
        assert one.data in described
        assert all(published.source in described for published in one.published)
        assert run(one.name, "--help").exit_code == 0
        assert run(one.name).exit_code == 2
    with pytest.raises(UsageError, match="no benchmark 'x'"):
        find("x")


def test_a_benchmark_from_files_to_figures(tmp_path: Path, promoter_files: list[Path]) -> None:
    known = promoters.load_promoters(promoter_files).examples.sequences[0]
    train = write_fasta(tmp_path / "t.fa", [("t", known + bases(500, 77))])
    common = ["--no-cnn", "--resamples", 20, "--folds", 3, "--rounds", 2]
    first = run("ecoli-promoters", *promoter_files, "--train", train, "--prepare", tmp_path / "p.npz", "-m", "evo-mini", "--layers", "blocks.0", "--features", tmp_path / "f.npz", "-o", tmp_path / "a.json", *common)  # fmt: skip
    assert first.exit_code == 0, first.output
    assert "untrained" in first.stdout
    assert "31-mers also in the training genomes" in first.stdout
    # Elsewhere: from the prepared file and the features, without the model.
    second = run("ecoli-promoters", "--from", tmp_path / "p.npz", "--features", tmp_path / "f.npz", "-o", tmp_path / "b.json", *common)  # fmt: skip
    assert second.exit_code == 0, second.output
    found = [json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json")]
    assert found[0]["figures"] == found[1]["figures"]
    assert found[1]["model"]["name"] == "evo-mini"
    figures = found[0]["figures"]
    assert set(figures["figures"]) == {"model", "untrained", "composition", "kmers", "positions"}
    assert figures["without_overlap"]["num_examples"] == figures["num_examples"] - 1
    assert {layer for one in figures["chosen"] for layer, _ in one["model"]} == {"blocks.0"}
    assert run("ecoli-promoters", "--from", tmp_path / "p.npz", "--limit", 5).exit_code == 2
    wrong = run("ecoli-promoters", promoter_files[0])
    assert wrong.exit_code == 2
    assert "takes 2 files (PROMOTERS OTHERS), 1 were given" in wrong.output
