"""Genes, substitutions in them, and stop insertions: judged by translating what they make."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from Bio.Seq import Seq

from evo_data.errors import EvoDataError
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation import essentiality, snv
from evo_toolkit.evaluation.genes import (
    STOPS,
    Gene,
    call_genes,
    coding_sequence,
    complete_genes,
    read_gff,
)
from evo_toolkit.evaluation.genomes import (
    Genome,
    encode,
    find_genomes,
    reverse_complement,
    tokens,
)
from evo_toolkit.evaluation.markov import MarkovChain, interpolated_log2, weighted_counts

CODONS = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]


def gene_text(codons: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    inner = [c for c in CODONS if c not in STOPS]
    return "ATG" + "".join(random.choice(inner, codons)) + "TAA"


@pytest.fixture(scope="module")
def genome() -> Genome:
    random = np.random.default_rng(1)
    spacer = ["".join(random.choice(list("ACGT"), 40)) for _ in range(4)]
    minus = str(Seq(gene_text(50, 3)).reverse_complement())
    first = spacer[0] + gene_text(60, 2) + spacer[1] + minus + spacer[2]
    return Genome(
        name="g", group="x", names=("chr", "plasmid"),
        records=(encode(first.encode()), encode((spacer[3] + gene_text(40, 4)).encode())),
    )  # fmt: skip


@pytest.fixture(scope="module")
def genes() -> list[Gene]:
    plus = 40 + 3 * 62
    return [
        Gene("plus", 0, 40, plus, "+"),
        Gene("minus", 0, plus + 40, plus + 40 + 3 * 52, "-"),
        Gene("other", 1, 40, 40 + 3 * 42, "+"),
    ]


def text_of(genome: Genome, record: int) -> str:
    return tokens(genome.records[record]).tobytes().decode()


def test_incomplete_genes_are_left_out(genome: Genome, genes: list[Gene]) -> None:
    shifted = Gene("shifted", 0, 41, genes[0].stop + 1, "+")
    wrong_strand = Gene("wrong", 0, 40, genes[0].stop, "-")
    cut = Gene("cut", 0, 40, genes[0].stop - 3, "+")
    assert complete_genes(genome, [*genes, shifted, wrong_strand, cut]) == genes


def test_gff_is_one_based_and_closed(genome: Genome, genes: list[Gene], tmp_path: Path) -> None:
    rows = ["##gff-version 3"]
    for gene in genes:
        fields = [genome.names[gene.record], "x", "CDS", gene.start + 1, gene.stop, ".", gene.strand, 0, f"ID=cds-{gene.name};locus_tag={gene.name}"]  # fmt: skip
        rows.append("\t".join(map(str, fields)))
    parts = "chr\tx\tCDS\t41\t226\t.\t+\t0\tID=two;locus_tag=two"
    rows += [parts, parts, parts.replace("ID=two", "ID=p;pseudo=true"), "elsewhere" + parts[3:]]
    path = tmp_path / "g.gff3.gz"
    path.write_bytes(gzip.compress("\n".join([*rows, "##FASTA", ">x", parts]).encode()))
    assert read_gff(path, genome) == genes
    unknown_strand = parts.replace("+", "?").replace("two", "three")
    path.write_bytes(gzip.compress("\n".join([*rows, unknown_strand]).encode()))
    assert read_gff(path, genome) == genes
    (tmp_path / "none.gff3").write_text("##gff-version 3\n")
    with pytest.raises(EvoError, match="no complete gene"):
        read_gff(tmp_path / "none.gff3", genome)
    (tmp_path / "bad.gff3").write_text("chr\tx\tCDS\tone\t2\t.\t+\t0\tID=a\n")
    with pytest.raises(EvoDataError, match="line 1"):
        read_gff(tmp_path / "bad.gff3", genome)


def test_pyrodigal_finds_the_genes_of_a_genome(project_root: Path) -> None:
    [file] = find_genomes([project_root / "data/evo_data/demo/NC_000932.fa"])
    whole = file.read()
    called = {(gene.stop if gene.strand == "+" else gene.start) for gene in call_genes(whole)}
    annotated = read_gff(project_root / "data/evo_data/demo/NC_000932.gff3", whole)
    assert len(annotated) > 50
    # The same stop codon is the same gene; starts are a matter of opinion.
    ends = {(gene.stop if gene.strand == "+" else gene.start) for gene in annotated}
    assert len(called & ends) > 0.6 * len(ends)
    short = Genome(name="s", group="x", names=("s",), records=(whole.records[0][:300],))
    with pytest.raises(EvoError, match="no complete gene"):
        call_genes(short)


def test_classes_are_those_of_the_translation(genome: Genome, genes: list[Gene]) -> None:
    every = snv.substitutions(genome, genes)
    expected_size = sum(3 * (gene.stop - gene.start - 6) for gene in genes)
    assert every["position"].size == expected_size
    assert (
        len(set(zip(*(every[n].tolist() for n in ("record", "position", "alt")), strict=True)))
        == expected_size
    )
    for row in range(0, expected_size, 7):
        record, at, alt = (int(every[n][row]) for n in ("record", "position", "alt"))
        gene = genes[every["gene"][row]]
        text = text_of(genome, record)
        assert "ACGT"[every["ref"][row]] == text[at] and "ACGT"[alt] != text[at]
        changed = text[:at] + "ACGT"[alt] + text[at + 1 :]
        old, new = (Seq(t[gene.start : gene.stop]) for t in (text, changed))
        if gene.strand == "-":
            old, new = old.reverse_complement(), new.reverse_complement()
        before, after = (str(s.translate(table=11)) for s in (old, new))
        place = next(i for i in range(len(old)) if old[i] != new[i])
        kind = 0 if before == after else 2 if after.count("*") == 2 else 1
        assert every["kind"][row] == kind
        assert every["codon_position"][row] == place % 3 + 1
        assert every["third"][row] == place * 3 // len(old)
        codon = str(new[place // 3 * 3 : place // 3 * 3 + 3])
        assert every["stop"][row] == (STOPS.index(codon) if codon in STOPS else -1)
        digits = [
            "ACGT".index(base) for base in (old[place - 1], old[place], new[place], old[place + 1])
        ]
        assert every["stratum"][row] == int("".join(map(str, digits)), 4)


def test_bases_of_two_genes_are_left_out(genome: Genome, genes: list[Gene]) -> None:
    twice = [*genes, Gene("again", 0, genes[0].start + 30, genes[0].start + 60, "+")]
    every = snv.substitutions(genome, twice)
    inside = (every["record"] == 0) & (every["position"] >= 70) & (every["position"] < 100)
    assert not inside.any() and (every["position"] == 69).any() and (every["position"] == 100).any()


def test_draw_takes_a_third_of_each_class(genome: Genome, genes: list[Gene]) -> None:
    every = snv.substitutions(genome, genes)
    drawn = snv.draw(every, 31, seed=0)
    assert np.bincount(drawn["kind"]).tolist() == [11, 10, 10]
    keys = list(zip(drawn["record"].tolist(), drawn["position"].tolist(), strict=True))
    assert keys == sorted(keys)
    same, other = snv.draw(every, 31, seed=0), snv.draw(every, 31, seed=1)
    assert (same["position"] == drawn["position"]).all()
    assert (other["position"] != drawn["position"]).any()
    with pytest.raises(EvoError, match="no nonsense"):
        snv.draw({n: c[every["kind"] != 2] for n, c in every.items()}, 9, 0)


def test_what_the_strata_explain_counts_for_nothing(genome: Genome, genes: list[Gene]) -> None:
    every = snv.substitutions(genome, genes)
    table = snv.table_scores(every, positive=2)
    found = snv.report(every, -every["stratum"].astype(float), resamples=20)
    assert found["nonsense"]["within_strata"]["value"] == 0.5
    assert found["nonsense"]["table"]["value"] > 0.8
    perfect = snv.report(every, -every["kind"].astype(float), resamples=20)
    for kind in ("nonsense", "missense"):
        for name in ("within_strata", "raw"):
            assert perfect[kind][name]["value"] == perfect[kind][name]["low"] == 1.0
    # Folds go by gene: a gene's own counts say nothing about its table score.
    one = every["gene"] == 0
    other_kinds = {**every, "kind": np.where(one, 1, every["kind"])}
    assert (snv.table_scores(other_kinds, positive=2)[one] == table[one]).all()


def test_report_by_parts_and_without_scores(genome: Genome, genes: list[Gene]) -> None:
    every = snv.substitutions(genome, genes)
    scores = -(every["codon_position"] == 2).astype(float)
    scores[:5] = np.nan
    found = snv.report(every, scores, resamples=5)
    assert found["num_without_score"] == 5 and found["num_genes"] == 3
    parts = found["missense"]["parts"]
    assert parts["codon position 2"]["value"] > 0.9
    assert parts["codon position 1"]["value"] <= 0.5
    assert parts["equal codon position too"]["value"] == 0.5
    assert "stop TGA" in found["nonsense"]["parts"] and "stop TGA" not in parts
    total = sum(found["nonsense"]["parts"][f"stop {c}"]["positives"] for c in STOPS)
    assert total == found["nonsense"]["raw"]["positives"]


def test_chain_scores_a_substitution_by_the_words_around_it(genome: Genome) -> None:
    chain = MarkovChain(interpolated_log2(weighted_counts([(genome, 1.0)], 3)))
    record, position, alt = np.array([0, 0, 1]), np.array([100, 1, 165]), np.array([2, 3, 1])
    found = chain.substitution_scores(genome.records, record, position, alt, 2)
    for row in range(3):
        before = genome.records[record[row]]
        after = before.copy()
        after[position[row]] = alt[row]
        # Whole records on both strands; contexts at their ends are shorter, as in the windows.
        total = 0.0
        for sign, codes in ((1, after), (-1, before)):
            for strand in (codes, reverse_complement(codes)):
                probs = chain.log2_probs(strand[None], 2)[0]
                total += sign * float(probs[np.arange(strand.size), strand].sum(dtype=np.float64))
        assert found[row] == pytest.approx(total / 2 * np.log(2), abs=1e-4)


@pytest.mark.parametrize("sites", [1, 3])
def test_insertions_stop_translation_in_frame(
    genome: Genome, genes: list[Gene], sites: int
) -> None:
    edits = essentiality.insertions(genes, sites)
    assert len(edits) == sites * len(genes)
    for index, (_, record, edit) in enumerate(edits):
        gene = genes[index // sites]
        text = text_of(genome, record)
        assert record == gene.record and edit.start == edit.end
        changed = text[: edit.start] + edit.alt.decode() + text[edit.end :]
        own = Seq(changed[gene.start : gene.stop + len(edit.alt)])
        own = own if gene.strand == "+" else own.reverse_complement()
        protein = str(own.translate(table=11))
        whole = coding_sequence(genome, gene)
        original = str(Seq(tokens(whole).tobytes().decode()).translate(table=11))
        cut = protein.index("*")
        assert protein[cut : cut + 5] == "*****" and protein[-1] == "*"
        assert original.startswith(protein[:cut]) and original[cut:] == protein[cut + 5 :]
        if index % sites == 0:
            assert cut == 4


def label_rows(genes: list[Gene], labels: list[str]) -> str:
    rows = ["gene\tstart\tend\tstrand\tneeded"]
    for gene, label in zip(genes, labels, strict=True):
        rows.append(f"{gene.name}\t{gene.start + 1}\t{gene.stop}\t{gene.strand}\t{label}")
    return "\n".join(rows) + "\n"


def test_labels_are_read_and_what_is_no_gene_is_counted(
    genome: Genome, genes: list[Gene], tmp_path: Path
) -> None:
    own = genes[:2]
    broken = Gene("broken", 0, 5, 100, "+")
    path = tmp_path / "labels.tsv"
    path.write_text(label_rows([*own, broken, own[0]], ["True", "N", "True", "?"]))
    found, essential, left_out = essentiality.read_labels(path, "needed", genome)
    assert found == own and essential.tolist() == [True, False] and left_out == 2
    with pytest.raises(EvoError, match="no column other"):
        essentiality.read_labels(path, "other", genome)
    path.write_text(label_rows(own, ["True", "True"]))
    with pytest.raises(EvoError, match="both kinds"):
        essentiality.read_labels(path, "needed", genome)


def test_conservation_finds_proteins_in_any_frame(genome: Genome, genes: list[Gene]) -> None:
    random = np.random.default_rng(9)
    filler = random.integers(0, 4, 3001).astype(np.uint8)
    # Synonymous codons for the protein of the first gene, on the other strand.
    protein = str(
        Seq(tokens(coding_sequence(genome, genes[0])).tobytes().decode()).translate(table=11)
    )
    by_letter: dict[str, list[str]] = {}
    for codon in CODONS:
        by_letter.setdefault(str(Seq(codon).translate(table=11)), []).append(codon)
    text = "".join(random.choice(by_letter[letter]) for letter in protein)
    hidden = reverse_complement(encode(text.encode()))
    homologue = Genome(
        name="h", group="x", names=("h",), records=(np.concatenate([filler, hidden, filler]),)
    )
    unrelated = Genome(name="u", group="x", names=("u",), records=(filler,))
    found = essentiality.conservation(
        genome,
        genes,
        [(lambda: homologue, 0.5), (lambda: homologue, 0.25), (lambda: unrelated, 1.0)],
    )
    assert found.tolist() == [0.75, 0.0, 0.0]


def test_essentiality_report_holds_length_equal() -> None:
    random = np.random.default_rng(0)
    length = random.integers(100, 3000, 400).astype(float)
    essential = random.random(400) < length / 4000
    found = essentiality.report(essential, {"model": length, "length": length}, resamples=50)
    assert found["auroc"]["model"] == found["auroc"]["length"]
    assert found["auroc"]["model"]["value"] > 0.6
    within = found["auroc_within_fifths_of_length"]["model"]["value"]
    assert abs(within - 0.5) < abs(found["auroc"]["model"]["value"] - 0.5)
    assert found["num_essential"] == int(essential.sum())
