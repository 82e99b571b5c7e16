"""`evo-toolkit finetune frozen` and `predict` end to end on a chloroplast, and what wrong input is told."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import evo_toolkit as evo
from evo_data.demo_data import demo_file
from evo_data.fasta import Fasta
from evo_data.files import atomic_output
from evo_toolkit.cli import finetune as cli_finetune
from evo_toolkit.cli import finetune_inputs, finetune_splits
from evo_toolkit.cli.main import cli
from evo_toolkit.finetuning import frozen as frozen_method
from evo_toolkit.finetuning.examples import TASK_KINDS
from evo_toolkit.finetuning.heads import Affine, SequenceHead, load_head
from evo_toolkit.finetuning.reading_genome import read_features
from evo_toolkit.finetuning.splits import SPLIT_BY
from evo_toolkit.variants.head import FEATURES, VariantHead

GENOME = demo_file("NC_000932.fa")
FAST = ("--folds", "3", "--inner-folds", "2", "--resamples", "50", "-l", "blocks.1")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)


def frozen(model: Path, *arguments: object) -> Result:
    return run("finetune", "frozen", "-m", model, "--device", "cpu", *arguments, *FAST)


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.fixture(scope="session")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 windows of 60 bases: a BED whose name says whether the middle is coding, and score its GC share."""
    path = tmp_path_factory.mktemp("windows") / "windows.bed"
    with Fasta(GENOME) as genome:
        contig = next(iter(genome.lengths))
        coding = np.zeros(genome.lengths[contig], bool)
        for feature in read_features(demo_file("NC_000932.gff3"), genome):
            if feature.values["type"] == "CDS":
                coding[feature.locus.start : feature.locus.end] = True
        lines = []
        for index, start in enumerate(range(500, 84_500, 1050)):
            bases = genome.fetch(contig, start, start + 60)
            gc = sum(base in b"GC" for base in bases) / 60
            name = "coding" if coding[start + 30] else "other"
            third = "rich" if gc > 0.42 else "poor" if gc < 0.33 else "middling"
            labels = ";".join([*(["gc"] if gc > 0.38 else []), *(["coding"] if name == "coding" else [])])  # fmt: skip
            lines.append(f"{contig}\t{start}\t{start + 60}\t{name}\t{gc:.4f}\t{'+-'[index % 2]}\t{third}\t{labels}\n")  # fmt: skip
    path.write_text("".join(lines))
    return path


def table_of(windows: Path, path: Path, column: int, header: str = "label") -> Path:
    """The windows as a table of sequences."""
    with Fasta(GENOME) as genome, path.open("w") as file:
        file.write(f"id\tsequence\t{header}\n")
        for line, feature in zip(windows.read_text().splitlines(), read_features(windows, genome), strict=True):  # fmt: skip
            locus = feature.locus
            bases = genome.fetch(locus.contig, locus.start, locus.end).decode()
            file.write(f"s{locus.start}\t{bases}\t{line.split(chr(9))[column]}\n")
    return path


def test_choices_of_the_command_are_those_of_the_package() -> None:
    assert finetune_inputs.TASKS == TASK_KINDS
    assert finetune_splits.SPLIT_BY == SPLIT_BY
    assert cli_finetune.ESTIMATORS == frozen_method.FROZEN_ESTIMATORS
    assert finetune_inputs.FEATURES == FEATURES


def test_two_classes_of_a_bed_end_to_end(
    toy_model_dir: Path, windows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = frozen(toy_model_dir, windows, "-g", GENOME, "--task", "binary", "-o", out)
    assert done.exit_code == 0, done.output
    assert "AUROC" in done.output and "composition" in done.output and "4-mers" in done.output
    assert sorted(p.name for p in out.iterdir()) == ["head.safetensors", "predictions.tsv", "report.html", "results.json"]  # fmt: skip
    results = results_of(out)
    assert results["metrics"]["auroc"]["low"] <= results["metrics"]["auroc"]["value"] <= results["metrics"]["auroc"]["high"]  # fmt: skip
    assert set(results["baselines"]) == {"composition", "4-mers"}
    assert results["leaks"][0]["sequences"] == 0 and results["split"]["num_groups"] > 70
    rows = [line.split("\t") for line in (out / "predictions.tsv").read_text().splitlines()]
    assert rows[0] == ["id", "group", "fold", "label", "p_other"] and len(rows) == 82 - 1
    head = load_head(out / "head.safetensors")
    assert isinstance(head, SequenceHead)
    assert head.about["data_digest"] == results["data"]["digest"]
    assert head.about["metrics"]["auroc"] == results["metrics"]["auroc"]
    assert head.label_names == ("coding", "other") and head.outputs == ("other",)
    # Once more: the same bytes; without --force nothing is touched.
    again = frozen(toy_model_dir, windows, "-g", GENOME, "--task", "binary", "-o", tmp_path / "again")  # fmt: skip
    assert again.exit_code == 0
    for name in ("head.safetensors", "predictions.tsv"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    refused = frozen(toy_model_dir, windows, "-g", GENOME, "--task", "binary", "-o", out)
    assert (
        refused.exit_code == 1 and "exists; choose another name or give --force" in refused.output
    )


@pytest.mark.parametrize(
    ("task", "column", "extra", "primary"),
    [
        ("multiclass", 6, ("--classes", "poor,middling,rich", "--balanced"), "mcc"),
        ("multilabel", 7, (), "mean_auroc"),
        ("regression", 4, ("--strands", "concat", "--pool", "max"), "spearman"),
        ("regression", 4, ("--estimator", "mlp"), "spearman"),
    ],
)
def test_other_tasks_of_tables_end_to_end(
    toy_model_dir: Path, windows: Path, tmp_path: Path, task: str, column: int, extra: tuple[str, ...], primary: str
) -> None:  # fmt: skip
    table = table_of(windows, tmp_path / "t.tsv", column)
    out = tmp_path / "out"
    done = frozen(toy_model_dir, table, "--task", task, "-o", out, *extra)
    assert done.exit_code == 0, done.output
    results = results_of(out)
    assert results["primary"] == primary
    # GC shares are something that even a network of random weights sees.
    value = results["metrics"][primary]["value"]
    assert value > (0.5 if primary != "mcc" else 0.1), results["metrics"]
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 2 and "http" not in page.split("<style>")[0].replace(
        "http-equiv", ""
    )
    predicted = run("finetune", "predict", out / "head.safetensors", table, "-m", toy_model_dir, "-o", tmp_path / "p.tsv", "-q")  # fmt: skip
    assert predicted.exit_code == 0, predicted.output
    rows = [line.split("\t") for line in (tmp_path / "p.tsv").read_text().splitlines()]
    assert len(rows) == 82 - 1 and rows[1][0] == "s500"
    # The head was fitted on these, so it does at least as well on them as on what it had not seen.
    if primary == "spearman":
        truth = [float(line.split("\t")[2]) for line in table.read_text().splitlines()[1:]]
        assert np.corrcoef(truth, [float(row[1]) for row in rows[1:]])[0, 1] > 0.5


def test_one_fasta_for_each_class_end_to_end(
    toy_model_dir: Path, windows: Path, tmp_path: Path
) -> None:
    rows = [line.split("\t") for line in table_of(windows, tmp_path / "t.tsv", 3).read_text().splitlines()[1:]]  # fmt: skip
    for name in ("other", "coding"):
        (tmp_path / f"{name}.fa").write_text("".join(f">{i}\n{s.lower()}\n" for i, s, label in rows if label == name))  # fmt: skip
    done = frozen(toy_model_dir, "--class", f"other={tmp_path / 'other.fa'}", "--class", f"coding={tmp_path / 'coding.fa'}", "--task", "binary", "-o", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert results_of(tmp_path / "out")["data"]["label_names"] == ["other", "coding"]
    head = load_head(tmp_path / "out" / "head.safetensors")
    assert isinstance(head, SequenceHead) and head.outputs == ("coding",)


def test_a_test_set_that_repeats_the_training_set_is_one_warning(
    toy_model_dir: Path, windows: Path, tmp_path: Path
) -> None:
    whole = table_of(windows, tmp_path / "t.tsv", 3).read_text().splitlines()
    (tmp_path / "train.tsv").write_text("\n".join(whole[:61]) + "\n")
    (tmp_path / "clean.tsv").write_text("\n".join([whole[0], *whole[61:]]) + "\n")
    (tmp_path / "leaky.tsv").write_text("\n".join([whole[0], *whole[51:]]) + "\n")
    for test, shared in (("clean", 0), ("leaky", 10)):
        done = frozen(toy_model_dir, tmp_path / "train.tsv", "--task", "binary", "--test", tmp_path / f"{test}.tsv", "-o", tmp_path / test)  # fmt: skip
        assert done.exit_code == 0, done.output
        warnings = [line for line in done.output.splitlines() if line.startswith("Warning")]
        assert len(warnings) == (shared > 0)
        if shared:
            assert "10 of 30 test sequences share a 31-mer with the training set (10 of them all they have" in warnings[0]  # fmt: skip
        results = results_of(tmp_path / test)
        assert results["split"]["test_set"] and results["num_folds"] == 1
        assert results["leaks"][0]["sequences"] == shared
        assert warnings == [f"Warning: {text}" for text in results["warnings"]]


def test_overlap_with_the_genomes_a_model_was_trained_on(
    toy_model_dir: Path, windows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = frozen(toy_model_dir, windows, "-g", GENOME, "--task", "binary", "-o", out, "--trained-on", GENOME)  # fmt: skip
    count = len(windows.read_text().splitlines())
    assert f"{count} of {count} test sequences share a 31-mer with the model's training genomes" in done.output  # fmt: skip
    assert results_of(out)["leaks"][1]["kmers"] == 1.0


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 substitutions of the chloroplast; the label is whether the alternate is G or C."""
    path = tmp_path_factory.mktemp("variants") / "v.vcf"
    lines = ["##fileformat=VCFv4.2", '##INFO=<ID=STRONG,Number=1,Type=Integer,Description="x">', "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]  # fmt: skip
    with Fasta(GENOME) as genome:
        contig = next(iter(genome.lengths))
        for index, start in enumerate(range(1000, 61_000, 1000)):
            ref = genome.fetch(contig, start, start + 1).decode()
            alt = [base for base in "ACGT" if base != ref][index % 3]
            lines.append(f"{contig}\t{start + 1}\t.\t{ref}\t{alt}\t.\t.\tSTRONG={int(alt in 'GC')}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_scoring_takes_the_head_that_a_variant_task_writes(
    toy_model_dir: Path, variants: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = frozen(toy_model_dir, variants, "-g", GENOME, "--task", "variant", "--label", "STRONG", "--window", "64", "--name", "strong", "-o", out, "--feature", "difference", "--feature", "alt")  # fmt: skip
    assert done.exit_code == 0, done.output
    results = results_of(out)
    assert results["split"]["by"] == "variants of the same bases"
    assert set(results["baselines"]) == {"composition"}
    head = load_head(out / "head.safetensors")
    assert isinstance(head, VariantHead) and head.features == ("difference", "alt")
    # What is fitted is what scoring applies: the same features, the same outputs.
    model = evo.load_model(toy_model_dir, device="cpu")
    frame = evo.score_variants(model, variants, GENOME, window=64, methods=["head"], heads=[out / "head.safetensors"])  # fmt: skip
    with Fasta(GENOME) as genome:
        from evo_toolkit.finetuning.reading_genome import read_variants

        examples = read_variants(variants, genome, window=64, labels=("STRONG",))
    features = frozen_method.variant_features(model, examples, ["blocks.1"], 64, features=head.features)  # fmt: skip
    expected = [float(head.activated(head.logits(x))[0]) for x in features["blocks.1"]]
    np.testing.assert_allclose(frame["head_strong"], expected, atol=1e-5)
    assert np.corrcoef(expected, np.asarray(examples.targets))[0, 1] > 0.5
    other = run("score", variants, GENOME, "-m", toy_model_dir, "--window", "128", "--head", out / "head.safetensors", "-o", tmp_path / "s.tsv")  # fmt: skip
    assert other.exit_code == 1 and "was fitted with window 64" in other.output
    predict = run("finetune", "predict", out / "head.safetensors", GENOME, "-m", toy_model_dir, "-o", tmp_path / "p.tsv")  # fmt: skip
    assert predict.exit_code == 1 and "is a head for variants" in predict.output


def test_numbers_of_variants_and_no_bootstrap(
    toy_model_dir: Path, variants: Path, tmp_path: Path
) -> None:
    text = (
        variants.read_text().replace("STRONG=1", "STRONG=1.5").replace("STRONG=0", "STRONG=-0.25")
    )
    path = tmp_path / "v.vcf"
    path.write_text(text.replace("Type=Integer", "Type=Float"))
    done = frozen(toy_model_dir, path, "-g", GENOME, "--task", "variant", "--label", "STRONG", "--window", "64", "--split-by", "block", "--block", "5000", "-o", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    bare = run("finetune", "frozen", path, "-g", GENOME, "--task", "variant", "--label", "STRONG", "--window", "64", "-m", toy_model_dir, "-l", "blocks.1", "--resamples", "0", "-o", tmp_path / "bare")  # fmt: skip
    assert bare.exit_code == 0, bare.output
    results = results_of(tmp_path / "bare")
    assert results["problem"] == "regression" and results["metrics"]["spearman"]["low"] is None
    assert results_of(tmp_path / "out")["split"]["by"] == "blocks of 5,000 bases"
    head = load_head(tmp_path / "bare" / "head.safetensors")
    assert (
        isinstance(head, VariantHead) and head.outputs == ("value",) and head.activation == "none"
    )


def test_a_class_in_one_group_cannot_be_judged(toy_model_dir: Path, tmp_path: Path) -> None:
    rows = [("ACGT"[i % 4] * (i + 3), "ab"[i % 2] if i < 12 else "c", f"g{min(i // 2, 6)}") for i in range(15)]  # fmt: skip
    (tmp_path / "t.tsv").write_text("sequence\tlabel\tfamily\n" + "".join("\t".join(row) + "\n" for row in rows))  # fmt: skip
    done = frozen(toy_model_dir, tmp_path / "t.tsv", "--task", "multiclass", "--group", "family", "--split-by", "group", "-o", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 1 and "class 'c' stands in one group alone" in done.output


@pytest.mark.parametrize(
    ("rows", "arguments", "code", "message"),
    [
        ("ACGT\t1\nACCT\t\n", ("--task", "binary"), 1, "t.tsv:3: label is missing (1 of 2 rows"),
        ("ACGT\t1\nACCT\t1\n", ("--task", "binary"), 1, "all 2 examples have one label, '1'"),
        ("ACGT\t1\nACCT\t0\nAAAA\t0\n", ("--task", "binary"), 1, "class '1' has 1 example, and 2 are needed"),
        ("ACGT\t1\n" + "A" * 513 + "\t0\n", ("--task", "binary"), 1, "t.tsv:3: sequence 'row_2' has 513 bases, and the context of toy is 512"),
        ("ACGT\t1\nACCT\t2.5\n", ("--task", "regression", "--estimator", "logistic"), 2, "use ridge or mlp"),
        ("ACGT\t1\nACCT\t0\n", ("--task", "binary", "--label", "y"), 1, "no column 'y'; name one of sequence, label"),
        ("ACGT\t1\nACCT\t0\n", ("--task", "per_base"), 2, "use evo-toolkit finetune head, lora or full"),
        ("ACGT\t1\nACCT\t0\n", ("--task", "binary", "--feature", "alt"), 2, "--feature is for the task variant"),
        ("ACGT\t1\nACCT\t0\n", ("--task", "binary", "--labels", "t.tsv"), 2, "leave --labels out"),
        ("ACGT\t1\nACCT\t0\n", ("--task", "binary", "--window", "2"), 2, "--window is for places in a genome"),
        ("ACGT\t1\nACCT\t0\n", ("--task", "binary", "--annotation", "x.bed"), 2, "--annotation is for the task per_base"),
        ("ACGT\t1\nACCT\t0\n", ("--task", "binary", "--class", "a=b.fa"), 2, "give either DATA or --class"),
        ("ACGT\t1\nACCT\t0\n", ("--task", "binary", "-l", "blocks.9"), 2, "layer 'blocks.9' does not exist in toy"),
        ("ACGT\t1\nACCT\t1\nAAAA\t0\nACCC\t0\n", ("--task", "binary", "--split-by", "group"), 2, "name their column with --group"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(
    toy_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str, arguments: tuple[str, ...], code: int, message: str
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("t.tsv").write_text("sequence\tlabel\n" + rows)
    layer = () if "-l" in arguments else ("-l", "blocks.1")
    done = run("finetune", "frozen", "t.tsv", "-m", toy_model_dir, "-o", "out", *arguments, *layer, "-q")  # fmt: skip
    assert done.exit_code == code, done.output
    assert message in done.output
    assert done.output.startswith("Error: ") and done.output.count("\n") == 1
    assert not Path("out").exists()


def test_a_full_disk_names_the_file_and_leaves_no_half_of_a_run(
    toy_model_dir: Path, windows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, results: object, *, force: bool = False) -> None:
        with atomic_output(path, force=force):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = (windows, "-g", GENOME, "--task", "binary", "-o", tmp_path / "out", "-q")
    monkeypatch.setattr("evo_toolkit.finetuning.report.write_report", full)
    done = frozen(toy_model_dir, *words)
    assert done.exit_code == 1 and not (tmp_path / "out").exists()
    assert "report.html: No space left on device; free some space" in done.output
    monkeypatch.undo()
    assert frozen(toy_model_dir, *words).exit_code == 0
    monkeypatch.setattr("evo_toolkit.finetuning.report.write_report", full)
    assert frozen(toy_model_dir, *words, "--force").exit_code == 1
    # Figures beside a head are always its own.
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not left & {"head.safetensors", "results.json"}


def test_seeds_are_not_negative() -> None:
    done = run("finetune", "frozen", "t.tsv", "-o", "out", "--task", "binary", "--seed", "-1")
    assert done.exit_code == 2 and "-1 is not in the range x>=0" in done.output


def test_everything_in_one_cluster_cannot_be_split(toy_model_dir: Path, tmp_path: Path) -> None:
    base = "ACGTTGCAAGTCCGATAGGCTTAACCGGATATCGCGTACG"
    rows = "".join(f"{base}{'ACGT'[i % 4] * (i + 1)}\t{i % 2}\n" for i in range(12))
    (tmp_path / "t.tsv").write_text("sequence\tlabel\n" + rows)
    done = frozen(toy_model_dir, tmp_path / "t.tsv", "--task", "binary", "-o", tmp_path / "out")
    assert done.exit_code == 2 and "1 groups cannot be spread over 3 folds" in done.output
    torn = frozen(toy_model_dir, tmp_path / "t.tsv", "--task", "binary", "--split-by", "none", "-o", tmp_path / "out")  # fmt: skip
    assert torn.exit_code == 0, torn.output
    assert "test sequences share a 31-mer with the other folds" in torn.output


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "does not say which model it reads; give it with -m"),
        ("toy+mine", "a model with an adapter; give both, as -m toy --adapter FILE.safetensors"),
    ],
)
def test_predict_asks_for_a_model_that_the_head_does_not_name(
    tmp_path: Path, model: str | None, message: str
) -> None:
    affine = Affine(weight=np.ones((1, 4), np.float32), bias=np.zeros(1, np.float32))
    SequenceHead(
        kind="regression", name="h", outputs=("value",), layers=("norm",), pool="mean", strands="fwd",
        window=(4, 4), affine=affine, run={"model": model, "model_sha256": "s"},
    ).save(tmp_path / "h.safetensors")  # fmt: skip
    (tmp_path / "s.fa").write_text(">a\nACGT\n")
    done = run("finetune", "predict", tmp_path / "h.safetensors", tmp_path / "s.fa", "-o", tmp_path / "p.tsv")  # fmt: skip
    assert done.exit_code == 2 and message in done.output and done.output.count("\n") == 1
    assert not (tmp_path / "p.tsv").exists()


def test_predict_refuses_another_model_and_tells_of_odd_lengths(
    toy_model_dir: Path, windows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert frozen(toy_model_dir, windows, "-g", GENOME, "--task", "binary", "-o", out, "-q").exit_code == 0  # fmt: skip
    (tmp_path / "s.fa").write_text(">a\nacgtacgtaa\n>b\n" + "ACGTT" * 12 + "\n")
    head = out / "head.safetensors"
    done = run("finetune", "predict", head, tmp_path / "s.fa", "-m", toy_model_dir, "-o", tmp_path / "p.tsv")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Warning: 1 of 2 sequences are shorter or longer" in done.output
    lines = (tmp_path / "p.tsv").read_text().splitlines()
    assert lines[0] == "id\tp_other\tlabel" and lines[1].startswith("a\t")
    found = SequenceHead.load(head)
    model = evo.load_model(toy_model_dir, device="cpu")
    alone = found.predict(model, ["ACGTT" * 12])[0]
    assert float(lines[2].split("\t")[1]) == pytest.approx(float(alone[0]), abs=1e-5)
    other = run("finetune", "predict", head, tmp_path / "s.fa", "-m", "evo-mini", "-o", tmp_path / "q.tsv")  # fmt: skip
    assert other.exit_code == 2 and "was fitted on toy" in other.output
    assert other.output.count("\n") == 1 and not (tmp_path / "q.tsv").exists()
