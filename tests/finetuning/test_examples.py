"""Labelled sequences: what is read, what the targets are, and what each wrong row is told."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from evo_data.fasta import Fasta
from evo_toolkit.finetuning.examples import (
    Examples,
    ExamplesError,
    RawExample,
    class_counts,
    examples_of,
)
from evo_toolkit.finetuning.reading import read_class_fastas, read_fasta, read_table
from evo_toolkit.finetuning.reading_genome import (
    read_intervals,
    read_per_base,
    read_tracks,
    read_variants,
)

GENOME = "ACGTACGTTTGACCAGTNACGGCATTACGATTACAGGCATCAGTTCAGGAT" * 4


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def genome(tmp_path: Path) -> Fasta:
    write(tmp_path / "genome.fa", f">chr1\n{GENOME}\n>chr2\n{GENOME[::-1]}\n")
    return Fasta(tmp_path / "genome.fa")


def table(tmp_path: Path, rows: str, name: str = "t.tsv") -> Path:
    return write(tmp_path / name, rows.replace(" ", "\t"))


def test_a_table_gives_upper_case_sequences_and_two_classes(tmp_path: Path) -> None:
    path = table(
        tmp_path, "id sequence label group\na acgu yes g1\nb ACRT no g2\n\nc GGGG yes g1\n"
    )
    found = read_table(path, "binary", group="group")
    assert found.ids == ("a", "b", "c")
    assert found.sequences == ("ACGT", "ACNT", "GGGG")
    assert found.label_names == ("no", "yes")
    assert np.array_equal(found.targets, [1, 0, 1])
    assert found.groups == ("g1", "g2", "g1")
    assert found.places == (f"{path}:2", f"{path}:3", f"{path}:5")
    assert class_counts(found) == {"no": 1, "yes": 2}


def test_several_labels_make_one_class(tmp_path: Path) -> None:
    path = table(tmp_path, "sequence label\nAC LOF\nAG FUNC\nAT INT\n")
    found = read_table(path, "binary", classes=("FUNC|INT", "LOF"))
    assert found.label_names == ("FUNC|INT", "LOF") and found.targets.tolist() == [1, 0, 0]
    # As a test set is read: by the class names of the training set.
    assert read_table(path, "binary", classes=found.label_names).digest == found.digest
    with pytest.raises(ExamplesError, match=r"t\.tsv:3: label 'FUNC' is none of the classes 'INT', 'LOF'"):  # fmt: skip
        read_table(path, "binary", classes=("INT", "LOF"))
    with pytest.raises(ExamplesError, match="all 3 examples have one label"):
        read_table(path, "binary", classes=("FUNC|INT|LOF", "other"))
    with pytest.raises(ExamplesError, match="are not all different"):
        read_table(path, "binary", classes=("FUNC|INT", "INT|LOF"))


def test_csv_gzip_and_parquet_read_alike(tmp_path: Path) -> None:
    import pandas as pd

    rows = [("x", "ACGT", 1), ("y", "TTTT", 0)]
    frame = pd.DataFrame(rows, columns=["id", "sequence", "label"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write((tmp_path / "t.csv").read_text())
    found = [read_table(tmp_path / n, "binary") for n in ("t.csv", "t.csv.gz", "t.parquet")]
    assert len({examples.digest for examples in found}) == 1
    assert np.array_equal(found[0].targets, [1, 0])


def test_long_sequences_and_quotes_are_read(tmp_path: Path) -> None:
    """The csv module alone refuses fields of more than 131,072 letters."""
    path = write(tmp_path / "t.csv", f'id,sequence,label\n"a, b",ACGT,1\nc,{"A" * 140_000},0\n')
    found = read_table(path, "binary")
    assert found.ids == ("a, b", "c") and len(found.sequences[1]) == 140_000
    write(path, f'id,sequence,label\n"a",{"A" * 140_000},1\n')
    with pytest.raises(ExamplesError, match=r"t\.csv:2: cannot be read as a row"):
        read_table(path, "binary")


def test_regression_and_numeric_classes_keep_their_order(tmp_path: Path) -> None:
    path = table(tmp_path, "sequence label\nAC 2\nAG 10\nAT 1\n")
    found = read_table(path, "regression")
    assert np.array_equal(found.targets, [2.0, 10.0, 1.0])
    assert found.ids == ("row_1", "row_2", "row_3")
    assert read_table(path, "multiclass").label_names == ("1", "2", "10")


def test_labels_that_may_occur_together(tmp_path: Path) -> None:
    one = table(tmp_path, "sequence label\nAC a;b\nAG \nAT b\n".replace("AG \n", "AG\t\n"))
    found = read_table(one, "multilabel")
    assert found.label_names == ("a", "b")
    assert found.targets.tolist() == [[True, True], [False, False], [False, True]]
    two = table(tmp_path, "sequence a b\nAC 1 1\nAG 0 0\nAT 0 1\n", "two.tsv")
    assert (
        read_table(two, "multilabel", labels=("a", "b")).targets.tolist() == found.targets.tolist()
    )


def test_one_letter_for_each_base(tmp_path: Path) -> None:
    path = table(tmp_path, "sequence label\nACGT IE.E\nAC EI\n")
    found = read_table(path, "per_base", classes=("I", "E"))
    assert [t.tolist() for t in found.targets] == [[0, 1, -1, 1], [1, 0]]
    assert class_counts(found) == {"I": 2, "E": 3}


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("binary", "sequence label\nAC 1\nAG \n", r"t.tsv:3: label is missing \(1 of 2 rows"),
        ("binary", "sequence label\nAC 1\nAG 1\n", "all 2 examples have one label, '1'"),
        ("binary", "sequence label\nAC 1\nAG 0\nAT 2\n", "t.tsv:4: label '2' is a third class"),
        ("binary", "sequence label\nAC 1\nA-G 0\n", "t.tsv:3: the sequence holds '-'"),
        ("binary", "sequence label\nAC 1\n 0\n", "t.tsv:3: the sequence is empty"),
        ("binary", "id sequence label\na AC 1\na AG 0\n", "t.tsv:3: id 'a' is already that of .*t.tsv:2"),
        ("binary", "sequence label\nAC 1\nAG\n", "t.tsv:3: 1 columns where the header has 2"),
        ("binary", "sequence class\nAC 1\n", "t.tsv: no column 'label'; name one of sequence, class"),
        ("regression", "sequence label\nAC 1\nAG high\n", "t.tsv:3: label 'high' is no number"),
        ("regression", "sequence label\nAC 1\nAG nan\n", "t.tsv:3: label 'nan' is no number"),
        ("multiclass", "sequence label\nAC a\nAG b\nAT NaN\n", r"t.tsv:4: label is missing \(1 of 3 rows"),
        ("binary", "sequence label\nAC 1\nAG .\n", r"t.tsv:3: label is missing \(1 of 2 rows"),
        ("per_base", "sequence label\nAC IE\nAGT IE\n", "t.tsv:3: 2 targets for a sequence of 3"),
        ("binary", "sequence label\n", "no example in it"),
        ("binary", "", "the table is empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_one_line_that_names_it(
    tmp_path: Path, kind: str, rows: str, message: str
) -> None:
    path = table(tmp_path, rows.replace(" \n", "\t\n").replace("\n 0", "\n\t0"))
    with pytest.raises(ExamplesError, match=message) as error:
        read_table(path, kind)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_two_classes_are_named_for_a_binary_task(tmp_path: Path) -> None:
    path = table(tmp_path, "sequence label\nAC 1\nAG 0\n")
    with pytest.raises(
        ExamplesError, match=r"^3 classes are named \('0', '1', '2'\); binary has two"
    ):
        read_table(path, "binary", classes=("0", "1", "2"))
    found = read_table(path, "binary", classes=("1", "0"))
    assert found.label_names == ("1", "0") and found.targets.tolist() == [0, 1]  # type: ignore[union-attr]


def test_same_sequence_with_two_labels_is_noted(tmp_path: Path) -> None:
    path = table(tmp_path, "sequence label\nACGT 1\nacgt 0\nGG 1\n")
    assert "1 examples have the sequence of another and a different label" in read_table(path, "binary").notes[0]  # fmt: skip


def test_values_of_which_few_rule_a_fit_are_noted(tmp_path: Path) -> None:
    rows = [f"{'ACGT'[i % 4] * (i + 1)} {i / 10}" for i in range(30)]
    even = table(tmp_path, "sequence label\n" + "\n".join(rows) + "\n")
    assert read_table(even, "regression").notes == ()
    odd = table(tmp_path, "sequence label\n" + "\n".join([*rows, "GATTACA 900"]) + "\n", "odd.tsv")
    assert "give logarithms or ranks" in read_table(odd, "regression").notes[0]


def test_fasta_and_table_go_together_both_ways(tmp_path: Path) -> None:
    fasta = write(tmp_path / "s.fa", ">a first\nACG\nTT\n>b\nggg\n")
    labels = table(tmp_path, "id label\nb 0\na 1\n", "labels.tsv")
    found = read_fasta(fasta, labels, "binary")
    assert found.ids == ("a", "b")
    assert found.sequences == ("ACGTT", "GGG")
    assert np.array_equal(found.targets, [1, 0])
    table(tmp_path, "id label\nb 0\n", "labels.tsv")
    with pytest.raises(ExamplesError, match=r"s.fa:1: sequence 'a' has no label in .*\(1 of 2"):
        read_fasta(fasta, labels, "binary")
    table(tmp_path, "id label\nb 0\na 1\nc 1\n", "labels.tsv")
    with pytest.raises(ExamplesError, match=r"labels.tsv:4: .*s.fa has no sequence 'c'"):
        read_fasta(fasta, labels, "binary")


def test_one_fasta_for_each_class(tmp_path: Path) -> None:
    no = write(tmp_path / "no.fa", ">a\nACGT\n")
    yes = write(tmp_path / "yes.fa", ">a\nacgg\n>b\nTT\n")
    found = read_class_fastas({"none": no, "promoter": yes})
    assert found.ids == ("none/a", "promoter/a", "promoter/b")
    assert found.label_names == ("none", "promoter")
    assert np.array_equal(found.targets, [0, 1, 1])
    with pytest.raises(ExamplesError, match=r"no\.fa:1: no FASTA"):
        write(no, "ACGT\n")
        read_class_fastas({"none": no, "promoter": yes})


def test_intervals_are_read_on_their_strand(tmp_path: Path, genome: Fasta) -> None:
    bed = write(tmp_path / "r.bed", "chr1\t0\t4\tup\t1.5\t+\n1\t8\t13\tdown\t2.5\t-\n")
    found = read_intervals(bed, genome, "binary")
    assert found.sequences[0] == GENOME[0:4]
    assert found.sequences[1] == GENOME[8:13][::-1].translate(str.maketrans("ACGT", "TGCA"))
    assert found.groups == ("chr1", "chr1")
    assert found.label_names == ("down", "up")
    assert np.array_equal(read_intervals(bed, genome, "regression").targets, [1.5, 2.5])
    wide = read_intervals(bed, genome, "binary", window=10)
    assert [(x.start, x.end) for x in wide.loci or ()] == [(0, 10), (5, 15)]


def test_a_line_that_repeats_is_another_example_unless_it_has_a_name(
    tmp_path: Path, genome: Fasta
) -> None:
    bed = write(tmp_path / "r.bed", "chr1\t0\t4\tup\nchr1\t0\t4\tup\nchr1\t5\t9\tdown\n")
    assert read_intervals(bed, genome, "binary").ids == ("chr1:1-4(+)", "chr1:1-4(+)#2", "chr1:6-9(+)")  # fmt: skip
    with pytest.raises(ExamplesError, match=r"r\.bed:(?: line )?2: id 'up' is already that of"):
        read_intervals(bed, genome, "binary", id="name")


def test_gff_features_by_type_and_attribute(tmp_path: Path, genome: Fasta) -> None:
    gff = write(
        tmp_path / "r.gff3",
        "##gff-version 3\nchr1\tx\tgene\t1\t4\t.\t+\t.\tID=a;essential=1\nchr1\tx\tgene\t5\t9\t.\t-\t.\tID=b;essential=0\nchr1\tx\tCDS\t1\t4\t.\t+\t0\tID=c\n",
    )
    found = read_intervals(gff, genome, "binary", labels=("essential",), types=("gene",))
    assert found.ids == ("a", "b")
    assert np.array_equal(found.targets, [1, 0])
    with pytest.raises(ExamplesError, match="no feature of type exon or mRNA; it has CDS, gene"):
        read_intervals(gff, genome, "binary", types=("exon", "mRNA"))
    with pytest.raises(ExamplesError, match=r"r.gff3:4: no 'essential' here"):
        read_intervals(gff, genome, "binary", labels=("essential",))
    write(tmp_path / "bad.bed", "chr1\t0\t9\tx\nchr9\t0\t9\ty\n")
    with pytest.raises(ExamplesError, match=r"bad\.bed:(?: line )?2: .* has no contig 'chr9'"):
        read_intervals(tmp_path / "bad.bed", genome, "binary")
    write(tmp_path / "bad.bed", f"chr1\t0\t{len(GENOME) + 1}\tx\n")
    with pytest.raises(ExamplesError, match=r"bad\.bed:(?: line )?1: \[0, 205\) is no stretch"):
        read_intervals(tmp_path / "bad.bed", genome, "binary")


VCF = (
    "##fileformat=VCFv4.2\n##INFO=<ID=CLASS,Number=1,Type=String,Description=x>\n##INFO=<ID=GENE,Number=1,Type=String,Description=x>\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    "chr1\t39\tv1\tA\tG\t.\t.\tCLASS=Pathogenic;GENE=a\nchr1\t60\tv2\tT\tTG\t.\t.\tCLASS=Benign;GENE=b\n"
)


def test_variants_have_the_windows_of_scoring(tmp_path: Path, genome: Fasta) -> None:
    assert GENOME[38] == "A"
    text = VCF.replace("60\tv2\tT\tTG", f"60\tv2\t{GENOME[59]}\t{GENOME[59]}G")
    path = write(tmp_path / "v.vcf", text)
    found = read_variants(path, genome, window=32, labels=("CLASS",), group="GENE")
    assert found.label_names == ("Benign", "Pathogenic")
    assert np.array_equal(found.targets, [1, 0])
    assert found.groups == ("a", "b")
    forward, reverse = found.windows[0]
    assert (forward.strand, reverse.strand) == ("+", "-")
    assert forward.ref.tobytes().decode() == GENOME[22:54] == found.sequences[0]
    assert (forward.fork, forward.alt[forward.fork]) == (16, ord("G"))
    assert found.ids == ("1-39-A-G", f"1-60-{GENOME[59]}-{GENOME[59]}G")
    labels = table(tmp_path, "id effect\nv1 0.5\nv2 -1.25\n", "l.tsv")
    numbers = read_variants(path, genome, window=32, labels=("effect",), table=labels)
    assert np.array_equal(numbers.targets, [0.5, -1.25]) and not numbers.label_names
    csv = table(tmp_path, f"chrom pos ref alt class\nchr1 39 A G x\nchr1 60 {GENOME[59]} C y\n", "v.tsv")  # fmt: skip
    assert read_variants(csv, genome, window=32, labels=("class",)).places[1] == f"{csv}:3"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("39\tv1\tA\tG", "39\tv1\tC\tG", r"v.vcf:5: .* has no windows \(ref_mismatch\)"),
        ("39\tv1\tA\tG", "39\tv1\tA\tG,T", r"v.vcf:5: 2 alternate alleles"),
        ("39\tv1\tA\tG", "39\tv1\tA\t<DEL>", r"v.vcf:5: .*symbolic"),
        ("CLASS=Pathogenic;", "", r"v.vcf:5: CLASS is missing"),
        ("chr1\t39", "chr8\t39", r"v.vcf:5: .* has no contig 'chr8'"),
    ],
)
def test_a_variant_without_windows_or_label_is_an_error(
    tmp_path: Path, genome: Fasta, old: str, new: str, message: str
) -> None:
    text = VCF.replace("60\tv2\tT\tTG", f"60\tv2\t{GENOME[59]}\t{GENOME[59]}G")
    path = write(tmp_path / "v.vcf", text.replace(old, new))
    with pytest.raises(ExamplesError, match=message):
        read_variants(path, genome, window=32, labels=("CLASS",))


def test_a_variant_without_its_group_is_an_error(tmp_path: Path, genome: Fasta) -> None:
    text = VCF.replace("60\tv2\tT\tTG", f"60\tv2\t{GENOME[59]}\t{GENOME[59]}G")
    for gene in ("", ";GENE=."):
        path = write(tmp_path / "v.vcf", text.replace(";GENE=b", gene))
        with pytest.raises(ExamplesError, match=r"v\.vcf:6: GENE is missing"):
            read_variants(path, genome, window=32, labels=("CLASS",), group="GENE")
    path = write(tmp_path / "v.vcf", text.replace("CLASS=Benign", "CLASS=."))
    with pytest.raises(ExamplesError, match=r"v\.vcf:6: CLASS is missing"):
        read_variants(path, genome, window=32, labels=("CLASS",))


def test_a_label_that_stands_twice_is_an_error(tmp_path: Path, genome: Fasta) -> None:
    labels = table(tmp_path, "id label\nv1 a\nv2 b\nv1 b\n", "l.tsv")
    text = VCF.replace("60\tv2\tT\tTG", f"60\tv2\t{GENOME[59]}\t{GENOME[59]}G")
    variants = write(tmp_path / "v.vcf", text)
    with pytest.raises(ExamplesError, match=r"l\.tsv:4: 'v1' stands in .*l\.tsv:2 already"):
        read_variants(variants, genome, window=32, table=labels)
    bed = write(tmp_path / "i.bed", "chr1\t0\t9\tv1\nchr1\t9\t20\tv2\n")
    with pytest.raises(ExamplesError, match=r"l\.tsv:4: 'v1' stands in .*l\.tsv:2 already"):
        read_intervals(bed, genome, "binary", table=labels)


def test_every_base_by_the_feature_it_lies_in(tmp_path: Path, genome: Fasta) -> None:
    regions = write(tmp_path / "r.bed", "chr1\t10\t20\ta\t0\t+\nchr1\t10\t20\ta\t0\t-\n")
    gff = write(
        tmp_path / "f.gff3",
        "chr1\tx\texon\t13\t16\t.\t+\t.\tID=a\nchr1\tx\texon\t19\t30\t.\t-\t.\tID=b\nchr1\tx\tintron\t11\t14\t.\t+\t.\tID=c\n",
    )
    found = read_per_base(regions, genome, gff, classes=("intron", "exon"))
    assert found.label_names == ("none", "intron", "exon")
    assert found.targets[0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0, 0, 0]
    assert found.targets[1].tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 0, 0]
    # A BED without strands counts on both.
    bed = write(tmp_path / "f.bed", "chr1\t12\t14\texon\n")
    both = read_per_base(regions, genome, bed)
    assert both.targets[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert both.targets[1].tolist() == both.targets[0].tolist()[::-1]
    with pytest.raises(ExamplesError, match=r"no base of .* lies in a feature 'CDS'"):
        read_per_base(regions, genome, gff, classes=("exon", "CDS"))
    # Without classes all types count, and what a gene holds lies in the gene.
    nested = write(
        tmp_path / "n.gff3",
        "chr1\tx\tCDS\t13\t16\t.\t+\t.\tID=a\nchr1\tx\tgene\t12\t18\t.\t+\t.\tID=g\n",
    )
    with pytest.raises(ExamplesError, match=r"every base of a feature 'CDS' lies in one of a later class.* CDS, gene\); name the classes"):  # fmt: skip
        read_per_base(regions, genome, nested)


def test_values_of_tracks_at_every_base(tmp_path: Path, genome: Fasta) -> None:
    bigwig = pytest.importorskip("pyBigWig")
    with bigwig.open(str(tmp_path / "t.bw"), "w") as file:
        file.addHeader([("chr1", len(GENOME))])
        file.addEntries(["chr1"] * 3, [10, 11, 13], ends=[11, 12, 14], values=[1.0, 2.0, 4.0])
    regions = write(tmp_path / "r.bed", "chr1\t10\t14\ta\t0\t+\nchr1\t10\t14\ta\t0\t-\n")
    found = read_tracks(regions, genome, {"rna": tmp_path / "t.bw"})
    np.testing.assert_array_equal(found.targets[0][:, 0], [1, 2, np.nan, 4])
    np.testing.assert_array_equal(found.targets[1][:, 0], [4, np.nan, 2, 1])
    with pytest.raises(ExamplesError, match="not a bigWig"):
        read_tracks(regions, genome, {"rna": regions})
    write(tmp_path / "r.bed", "chr1\t20\t24\n")
    with pytest.raises(ExamplesError, match=r"r\.bed:(?: line )?1: no track has a value here"):
        read_tracks(regions, genome, {"rna": tmp_path / "t.bw"})


def raw(n: int, labels: list[str]) -> Examples:
    rows = [RawExample(id=str(i), sequence="ACGT" * (i + 1), labels=(label,), place=f"f:{i}") for i, label in zip(range(n), labels, strict=True)]  # fmt: skip
    return examples_of(rows, "multiclass", source="f")


def test_subsets_keep_what_belongs_together_and_digests_tell_them_apart() -> None:
    examples = raw(4, ["a", "b", "a", "c"])
    part = examples.subset([2, 0])
    assert part.ids == ("2", "0") and np.array_equal(part.targets, [0, 0])
    assert part.label_names == ("a", "b", "c")
    assert part.digest != examples.digest == raw(4, ["a", "b", "a", "c"]).digest
    assert raw(4, ["a", "b", "a", "b"]).digest != examples.digest
    # The same classes and sequences, two labels exchanged.
    assert raw(4, ["b", "a", "a", "c"]).digest != examples.digest
    assert examples.subset(np.array([True, False, False, True])).ids == ("0", "3")
    with pytest.raises(
        ExamplesError, match=r"f:2: sequence '2' has 12 bases, and the limit is 8; .*\(2 of 4"
    ):
        examples.require_length(8, "the limit")
    with pytest.raises(ExamplesError, match=re.escape("class 'b' has 1 example, and 2 are needed")):
        examples.require_classes(2)
    with pytest.raises(ExamplesError, match="all 2 examples have one label, 'a'"):
        examples.subset([0, 2]).require_classes()
