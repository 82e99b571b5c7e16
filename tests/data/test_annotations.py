"""Consequences that a file already carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from evo_data.annotations import carried_annotation, with_carried
from evo_data.csq import severity, worst_consequence
from evo_data.vcf import VariantReader, VcfRecord

VEP = '##INFO=<ID=CSQ,Number=.,Type=String,Description="Consequence annotations from Ensembl VEP. Format: Allele|Consequence|IMPACT|SYMBOL|Gene|Feature_type|Feature|BIOTYPE">'
SNPEFF = "##INFO=<ID=ANN,Number=.,Type=String,Description=\"Functional annotations: 'Allele | Annotation | ...'\">"
BCSQ = '##INFO=<ID=BCSQ,Number=.,Type=String,Description="Local consequence annotation from BCFtools/csq">'


def read(folder: Path, meta: str, *rows: str) -> list[VcfRecord]:
    path = folder / "v.vcf"
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
    body = "".join(f"1\t{10 + i}\t.\t{row}\n" for i, row in enumerate(rows))
    path.write_text(f"##fileformat=VCFv4.2\n{meta}\n{columns}\n{body}")
    with VariantReader(path) as reader:
        return list(with_carried(iter(reader), reader.header))


def row(ref: str, alt: str, info: str) -> str:
    return f"{ref}\t{alt}\t.\t.\t{info}"


def test_vep_names_alleles_in_its_own_way(tmp_path: Path) -> None:
    snv, indels, plain = read(
        tmp_path,
        VEP,
        row("A", "C,G", "AC=1;CSQ=C|missense_variant|M|TP53|ENSG1|Transcript|ENST1|protein_coding,G|stop_gained|H|TP53|ENSG1|Transcript|ENST1|protein_coding,C|synonymous_variant|L|TP53|ENSG1|Transcript|ENST2|protein_coding"),
        row("CAG", "C,CAGT", "CSQ=-|frameshift_variant|H||ENSG9|Transcript|ENST3|x,AGT|intron_variant|M|XY|ENSG9|Transcript|ENST3|x"),
        row("A", "T", "AC=1"),
    )  # fmt: skip
    assert [len(entries) for entries in snv.consequences] == [2, 1]
    worst = [worst_consequence(entries) for entries in snv.consequences]
    assert worst[0] is not None and worst[1] is not None
    assert (worst[0].consequence, worst[0].gene, worst[0].transcript, worst[0].num_transcripts) == (
        "missense_variant", "TP53", "ENST1", 2,
    )  # fmt: skip
    assert worst[1].consequence == "stop_gained"
    assert indels.consequences == (
        ("frameshift_variant|ENSG9|ENST3|x",),
        ("intron_variant|XY|ENST3|x",),
    )
    assert plain.consequences == ()


def test_allele_number_decides_where_vep_wrote_it(tmp_path: Path) -> None:
    meta = VEP.replace("|BIOTYPE", "|BIOTYPE|ALLELE_NUM")
    (record,) = read(tmp_path, meta, row("A", "C,G", "CSQ=x|missense_variant||T||||y|2,x|z||||||y|7"))  # fmt: skip
    assert record.consequences == ((), ("missense_variant|T||y",))


def test_snpeff_and_bcftools(tmp_path: Path) -> None:
    (ann,) = read(tmp_path, SNPEFF, row("A", "AT,C", "ANN=AT|frameshift_variant|HIGH|G1|id|transcript|T1|protein_coding|1/2,C|upstream_gene_variant|MODIFIER|G1|id|transcript|T1|x"))  # fmt: skip
    assert ann.consequences == (
        ("frameshift_variant|G1|T1|protein_coding",),
        ("upstream_gene_variant|G1|T1|x",),
    )
    one, two = read(
        tmp_path, BCSQ, row("A", "C", "BCSQ=intron|G|T|b"),
        row("A", "C,G", "BCSQ=missense|G|T|b|+|5A>5C|11A>C,intron|G|T2|b"),
    )  # fmt: skip
    assert one.consequences == (("intron|G|T|b",),)
    # Only the first says which allele it is about.
    assert [len(entries) for entries in two.consequences] == [2, 1]


@pytest.mark.parametrize("broken", ["CSQ=", "CSQ=|||", "CSQ=C", "CSQ=C|missense_variant,,|"])
def test_broken_entries_are_no_error(tmp_path: Path, broken: str) -> None:
    (record,) = read(tmp_path, VEP, row("A", "C", broken))
    assert len(record.consequences) == 1


def test_nothing_declared_is_nothing_read(tmp_path: Path) -> None:
    (record,) = read(tmp_path, "##source=x", row("A", "C", "CSQ=C|missense_variant"))
    assert record.consequences == ()
    with VariantReader(tmp_path / "v.vcf") as reader:
        assert carried_annotation(reader.header) is None


def test_severity_knows_both_vocabularies() -> None:
    order = ["splice_donor_variant&intron_variant", "stop_gained", "*missense", "missense_variant", "synonymous_variant", "5_prime_UTR_variant", "intron", "upstream_gene_variant"]  # fmt: skip
    ranks = [severity(term) for term in order]
    assert ranks == sorted(ranks) and ranks[2] == ranks[3] and ranks[0] < ranks[1]
