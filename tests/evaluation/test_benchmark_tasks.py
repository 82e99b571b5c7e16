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
from evo_toolkit.evaluation.benchmarks import (
    brca1_sge,
    essential_genes,
    exons,
    promoters,
    published_splits,
    splice,
    variant_sets,
)
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
from evo_toolkit.statistics import StratifiedAuroc


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
        # A site drawn as its own decoy would be thrown out with it.
        assert "repeated sequences" not in task.left_out
    # The only other GT begins the intron of another transcript: no decoy is left.
    first, second = "C" * 50, "GT" + "A" * 48
    rest = "GT" + "C" * 60 + "AG"
    path.write_text(f"{first} {second}{rest} {'C' * 50} 20 g\n{first}{second} {rest} {'C' * 50} 20 g\n")  # fmt: skip
    with pytest.raises(EvoError, match="no example in it"):
        splice.load_donors([path])
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


def test_genes_are_read_on_their_strand_and_others_drawn(tmp_path: Path) -> None:
    codons = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT" if a + b + c not in ("TAA", "TAG", "TGA")]  # fmt: skip
    random = np.random.default_rng(0)
    parts, table, genes = [bases(50, 1)], ["start\tend\tstrand\tgene\tkeio_essential"], {}
    for index in range(12):
        gene = "ATG" + "".join(random.choice(codons, 98)) + "TAA"
        forward = index % 2 == 0
        start = sum(map(len, parts))
        parts += [gene if forward else reverse_complement(gene.encode()).decode(), bases(20, index)]
        table.append(
            f"{start + 1}\t{start + 300}\t{'+' if forward else '-'}\tg{index}\t{index < 3}"
        )
        genes[f"g{index}"] = gene
    genome = write_fasta(tmp_path / "g.fa", [("c", "".join(parts))])
    (tmp_path / "l.tsv").write_text("\n".join(table))
    task = essential_genes.load_essential([genome, tmp_path / "l.tsv"])
    assert task.targets.sum() == 3
    assert len(task) == 9
    assert task.left_out == {"other genes, not drawn": 3}
    for name, sequence in zip(task.examples.ids, task.examples.sequences, strict=True):
        assert sequence == genes[name.split("_")[0]][:256]
    train = find_genomes([genome])
    with_train = essential_genes.with_conservation(task, [genome, tmp_path / "l.tsv"], train)
    assert with_train.columns["feature.conservation"].tolist() == [1.0] * 9


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

    # Eight positions from the middle on: bases 40 to 47, and 40 down to 33.
    def at(index: int) -> list[bool]:
        text = left + right
        return (changed(text[:index] + swap[text[index]] + text[index + 1 :]) > 0).tolist()

    assert [at(index)[0] for index in (47, 48)] == [True, False]
    assert [at(index)[1] for index in (33, 32)] == [True, False]


def test_variants_have_the_alternate_and_what_it_changes(model: StripedHyena2) -> None:
    text = bases(40, 3)
    second = bases(40, 4)
    alts = np.array(["ACGT".index(text[20]), ("ACGT".index(text[20]) + 1) % 4, "ACGT".index(second[20])], np.uint8)  # fmt: skip
    found = variant_features(model, [text, text, second], alts, ["blocks.0"])["blocks.0"]
    assert found.shape == (3, 128)
    # The reference itself changes nothing, and each variant is held against its own.
    assert np.array_equal(found[[0, 2], 64:], np.zeros((2, 64)))
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
    other = run("ecoli-promoters", "--from", tmp_path / "p.npz", "--features", tmp_path / "f.npz", "-m", "evo2_7b")  # fmt: skip
    assert other.exit_code == 2
    assert "holds features of evo-mini, and -m is evo2_7b" in other.output
    wrong = run("ecoli-promoters", promoter_files[0])
    assert wrong.exit_code == 2
    assert "takes PROMOTERS OTHERS, 1 files were given" in wrong.output


# Published splits


def test_a_published_split_is_kept_and_its_leak_is_told(tmp_path: Path) -> None:
    rows = [(bases(60, i), i % 2) for i in range(24)]
    (tmp_path / "train.csv").write_text("sequence,label\n" + "".join(f"{s},{y}\n" for s, y in rows[:16]))  # fmt: skip
    (tmp_path / "test.csv").write_text("sequence,label\n" + "".join(f"{s},{y}\n" for s, y in [*rows[16:], rows[0]]))  # fmt: skip
    task = published_splits.load_tables([tmp_path / "train.csv", tmp_path / "test.csv"])
    assert task.columns["published_test"].tolist() == [False] * 16 + [True] * 9
    assert task.examples.kind == "binary"
    assert any("1 of 9 test sequences share a 31-mer" in note for note in task.examples.notes)
    result = run("gue", tmp_path / "train.csv", tmp_path / "test.csv", "--no-cnn", "--resamples", 5, "--rounds", 1, "-o", tmp_path / "o.json")  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "o.json").read_text())["figures"]
    assert figures["split"] == "published"
    assert figures["num_examples"] == 9


def test_labels_that_only_the_test_part_has_are_refused(tmp_path: Path) -> None:
    for name, labels in (("train", ("tRNA", "CDS")), ("test", ("0", "1"))):
        rows = [f"{bases(60, i)},{labels[i % 2]}\n" for i in range(8)]
        (tmp_path / f"{name}.csv").write_text("sequence,label\n" + "".join(rows))
    with pytest.raises(EvoError, match=r"test\.csv, line 2: no sequence of the training part has the label '0'; its labels are CDS, tRNA"):  # fmt: skip
        published_splits.load_tables([tmp_path / "train.csv", tmp_path / "test.csv"])


def test_a_test_part_of_one_class_is_refused(tmp_path: Path) -> None:
    for name, classes in (("train", 2), ("test", 1)):
        rows = [f"{bases(60, i)},{i % classes}\n" for i in range(8)]
        (tmp_path / f"{name}.csv").write_text("sequence,label\n" + "".join(rows))
    with pytest.raises(EvoError, match="all rows of the test part have the label '0'; two classes"):
        published_splits.load_tables([tmp_path / "train.csv", tmp_path / "test.csv"])


def test_other_formats_of_published_splits(tmp_path: Path) -> None:
    import pandas as pd

    sequences = [bases(50, i) for i in range(12)]
    labels = [i % 3 for i in range(12)]
    write_fasta(tmp_path / "train.fna", [(f"chr1:{i}|{labels[i]}", sequences[i]) for i in range(6)])
    pd.DataFrame({"sequence": sequences[6:], "label": labels[6:]}).to_parquet(tmp_path / "test.parquet")  # fmt: skip
    task = published_splits.load_tables([tmp_path / "train.fna", tmp_path / "test.parquet"])
    assert task.examples.kind == "multiclass"
    assert list(task.examples.sequences) == sequences
    assert task.targets.tolist() == labels
    for index, sequence in enumerate(sequences):
        folder = tmp_path / "gb" / ("train" if index < 8 else "test") / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.txt").write_text(sequence.lower() + "\n")
    task = published_splits.load_folder([tmp_path / "gb"])
    assert sorted(task.examples.sequences) == sorted(sequences)
    assert task.columns["published_test"].sum() == 4
    with pytest.raises(EvoError, match="has no train/CLASS"):
        published_splits.load_folder([tmp_path])
    (tmp_path / "bad.csv").write_text("seq,label\nACGT,1\n")
    with pytest.raises(EvoError, match=r"bad\.csv has no column sequence; its columns are seq, label"):  # fmt: skip
        published_splits.load_tables([tmp_path / "bad.csv", tmp_path / "bad.csv"])


def test_bend_reads_intervals_and_one_label_or_several(tmp_path: Path) -> None:
    text = bases(400, 1)
    write_fasta(tmp_path / "g.fa", [("chr1", text.lower())])
    header = "chromosome\tstart\tend\tsplit\tlabel\n"
    lines = [f"chr1\t{i * 40}\t{i * 40 + 30}\t{part}\t{i % 2}\n" for i, part in enumerate(["train", "train", "valid", "valid", "test", "test"])]  # fmt: skip
    bed = tmp_path / "t.bed"
    bed.write_text(header + "".join(lines))
    task = published_splits.load_bend([tmp_path / "g.fa", bed])
    assert task.examples.sequences[1] == text[40:70]
    assert task.columns["published_test"].tolist() == [False] * 4 + [True] * 2
    several = [line.replace("\t1\n", "\t0,3\n") for line in lines]
    bed.write_text(header + "".join(several))
    task = published_splits.load_bend([tmp_path / "g.fa", bed])
    assert task.examples.kind == "multilabel"
    assert task.targets[1].tolist() == [True, True]
    bed.write_text(header + lines[0].replace("30", "3000"))
    with pytest.raises(EvoError, match="line 2: 0 to 3000 is no interval within chr1"):
        published_splits.load_bend([tmp_path / "g.fa", bed])


# Variants


@pytest.fixture
def chromosome(tmp_path: Path) -> tuple[Path, str]:
    text = bases(3000, 11)
    return write_fasta(tmp_path / "c.fa", [("17", text)]), text


def other_base(base: str, step: int = 1) -> str:
    return "ACGT"[("ACGT".index(base) + step) % 4]


def test_clinvar_takes_reviewed_clear_variants_that_fit(
    tmp_path: Path, chromosome: tuple[Path, str]
) -> None:
    genome, text = chromosome
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"

    def line(pos: int, meaning: str, ref: str = "", alt: str = "", stars: str = "criteria_provided,_single_submitter", mc: str = "SO:1|missense_variant") -> str:  # fmt: skip
        ref = ref or text[pos - 1]
        return f"chr17\t{pos}\t.\t{ref}\t{alt or other_base(ref)}\t.\t.\tCLNSIG={meaning};CLNREVSTAT={stars};MC={mc};GENEINFO=GENE:1\n"  # fmt: skip

    rows = [
        line(1001, "Pathogenic", mc="SO:1|missense_variant,SO:2|nonsense"),
        line(1501, "Likely_benign"),
        line(1502, "Benign", stars="no_assertion_criteria_provided"),
        line(1503, "Uncertain_significance"),
        line(1504, "Benign", ref=other_base(text[1503], 2)),
        line(1505, "Benign", alt="<DEL>"),
        line(1601, "Benign", alt=text[1600] + 4 * other_base(text[1600])),
        line(1701, "Benign"),
        line(1701, "Pathogenic"),
    ]
    (tmp_path / "c.vcf").write_text(head + "".join(rows))
    found = variant_sets.load_clinvar([genome, tmp_path / "c.vcf"])
    assert found.positive.tolist() == [True, False, False]
    assert found.consequences.tolist() == ["nonsense", "missense_variant", "missense_variant"]
    assert [edit.start for _, _, edit in found.places] == [1000, 1500, 1601]
    assert found.left_out == {"ref_mismatch": 1, "symbolic": 1, "repeated": 1, "labels that contradict each other": 1}  # fmt: skip
    assert set(found.chromosomes) == {"17"}
    again = variant_sets.VariantSet.of_prepared(_through_file(found, tmp_path))
    assert again.places == found.places
    assert again.groups.tolist() == found.groups.tolist()
    (tmp_path / "d.vcf").write_text(head + rows[0])
    with pytest.raises(EvoError, match="no positive and negative variants"):
        variant_sets.load_clinvar([genome, tmp_path / "d.vcf"])


def _through_file(found: variant_sets.VariantSet, folder: Path) -> Any:
    found.prepared("clinvar", {}).save(folder / "v.npz")
    return load_prepared(folder / "v.npz", "clinvar")


def test_tables_of_variants_are_scored_as_score_does(
    tmp_path: Path, chromosome: tuple[Path, str], model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from evo_toolkit.evaluation import variant_tasks
    from evo_toolkit.variants.api import score_variants

    genome, text = chromosome
    rows = ["chrom,pos,ref,alt,label,consequence"]
    for i in range(24):
        pos = 500 + 60 * i
        rows.append(f"17,{pos},{text[pos - 1]},{other_base(text[pos - 1])},{i % 3 == 0},{'a' if i % 2 else 'b'}")  # fmt: skip
    table = tmp_path / "t.csv"
    table.write_text("\n".join(rows))
    prepared = variant_tasks.prepare_variants(find("traitgym"), [genome, table])
    monkeypatch.setattr(variant_tasks, "LEAST_OF_EACH", 2)
    result = variant_tasks.run_variants(prepared, model, window=64, resamples=20)
    figures = result["figures"]
    assert figures["num_positive"] == 8
    assert set(figures["by_consequence"]) == {"a", "b"}
    texts = [f"17-{f[1]}-{f[2]}-{f[3]}" for f in (row.split(",") for row in rows[1:])]
    scores = score_variants(model, texts, genome, window=64, allow_out_of_domain=True)["dll"]
    positive = np.arange(24) % 3 == 0
    expected = StratifiedAuroc(-np.asarray(scores, float), positive)()
    assert figures["all"]["model"]["AUROC"]["value"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UsageError, match="--window 20000 is longer than"):
        variant_tasks.run_variants(prepared, model, window=20_000)
    table.write_text("\n".join([rows[0], rows[1].replace("True", "perhaps")]))
    with pytest.raises(EvoError, match="line 2: label 'perhaps' is none of"):
        variant_tasks.prepare_variants(find("traitgym"), [genome, table])


def test_brca1_windows_hold_the_variant_in_the_middle(tmp_path: Path, chromosome: tuple[Path, str]) -> None:  # fmt: skip
    genome, text = chromosome
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    rows = []
    for i in range(8):
        pos = 1000 + 20 * i
        rows.append(f"17\t{pos}\t.\t{text[pos - 1]}\t{other_base(text[pos - 1])}\t.\t.\tFCLASS={('LOF', 'INT', 'FUNC')[i % 3]};EXPT=X{i // 2};CONS={'Missense' if i % 2 else 'Intronic'};CADD={i}\n")  # fmt: skip
    (tmp_path / "b.vcf").write_text(head + "".join(rows))
    task = brca1_sge.load_brca1([genome, tmp_path / "b.vcf"])
    middle = brca1_sge.WINDOW // 2
    for i, sequence in enumerate(task.examples.sequences):
        assert sequence == text[999 + 20 * i - middle : 999 + 20 * i + middle]
        assert "ACGT"[task.columns["alt"][i]] == other_base(sequence[middle])
    assert task.targets.tolist() == [1, 0, 0, 1, 0, 0, 1, 0]
    assert task.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert task.columns["score.CADD"].tolist() == list(range(8))
    assert task.columns["feature.consequence"].tolist() == [[1, 0], [0, 1]] * 4


# Assays and completion


def test_an_assay_groups_by_place_and_ranks_by_likelihood(tmp_path: Path, model: StripedHyena2) -> None:  # fmt: skip
    from evo_toolkit.evaluation import assay_tasks
    from evo_toolkit.inference.likelihood import log_likelihood

    wild = bases(60, 4)
    variants = [wild[:i] + other_base(wild[i], k) + wild[i + 1 :] for i in (5, 20, 40) for k in (1, 2)]  # fmt: skip
    variants.append(variants[0][:50] + other_base(variants[0][50]) + variants[0][51:])
    values = [
        float(
            log_likelihood(model, [s])[0]
            + log_likelihood(model, [reverse_complement(s.encode())])[0]
        )
        for s in variants
    ]
    table = tmp_path / "d.csv"
    table.write_text("mutated_sequence,DMS_score\n" + "".join(f"{s},{v}\n" for s, v in zip(variants, values, strict=True)))  # fmt: skip
    prepared = assay_tasks.prepare_assay(find("dms"), [table])
    task = LabelledTask.of_prepared(prepared)
    assert task.groups.tolist() == [0, 0, 1, 1, 2, 2, 0]
    assert task.columns["score.mutations"].tolist() == [-1] * 6 + [-2]
    figures = assay_tasks.run_assay(prepared, model, resamples=10)["figures"]
    assert figures["figures"]["model"]["value"] == 1.0
    table.write_text("mutated_sequence,DMS_score\nMKTAYI,1\n")
    with pytest.raises(EvoError, match="line 2: mutated_sequence holds other letters"):
        assay_tasks.prepare_assay(find("dms"), [table])


def test_completion_asks_for_the_rest_of_genes(tmp_path: Path, project_root: Path, model: StripedHyena2) -> None:  # fmt: skip
    from evo_toolkit.evaluation.completion_tasks import (
        prepare_completion,
        recovery,
        run_completion,
        translate,
    )
    from evo_toolkit.evaluation.genomes import encode

    assert translate(encode(b"ATGAANTGGTAAAAA")) == "MXW"
    assert recovery("MKTAYIAKQR", "MKTAYIAKQR") == 1.0
    assert recovery("MKTAYIAKQR", "MKTAYI") == pytest.approx(0.6)
    assert recovery("MKT", "") == 0.0
    demo = project_root / "data" / "evo_data" / "demo"
    prepared = prepare_completion(find("gene-completion"), [demo / "NC_000932.fa", demo / "NC_000932.gff3"], limit=2)  # fmt: skip
    with pytest.raises(EvoError, match="one gene alone has no other gene to stand beside"):
        prepare_completion(find("gene-completion"), [demo / "NC_000932.fa", demo / "NC_000932.gff3"], limit=1)  # fmt: skip
    records = prepared.genomes[0].records
    for prompt, rest in zip(records[::2], records[1::2], strict=True):
        gene = np.concatenate([prompt[512:], rest])
        protein = translate(gene)
        assert len(protein) == gene.size // 3 - 1  # from the start codon to the only stop
        assert 0.25 < (prompt.size - 512) / gene.size <= 0.3
    found = run_completion(prepared, model, resamples=10)["figures"]["figures"]
    assert 0 <= found["model"]["value"] < 0.3
    assert found["another gene"]["value"] < 0.3


def test_nothing_left_is_one_line(tmp_path: Path) -> None:
    one = write_fasta(tmp_path / "one.fa", [("a", bases(40, 1))])
    result = run("ecoli-promoters", one, one)
    assert result.exit_code == 1
    assert "no example is left (left out: 2 repeated sequences)" in result.output
    assert len(result.output.strip().splitlines()) == 1
    few = write_fasta(tmp_path / "two.fa", [("a", bases(40, 1)), ("b", bases(40, 2))])
    other = write_fasta(tmp_path / "three.fa", [("c", bases(40, 2)), ("d", bases(40, 3))])
    assert "no example is left" in run("ecoli-promoters", few, other, "--limit", 1).output
