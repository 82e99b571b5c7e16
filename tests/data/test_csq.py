"""Annotations of every dialect, and consequences called with them."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from Bio.Data.CodonTable import unambiguous_dna_by_id

from evo_data.contigs import ContigAliases
from evo_data.csq import SEVERITY, ConsequenceCaller, WorstConsequence, with_bcsq, worst_consequence
from evo_data.errors import EvoDataError
from evo_data.fasta import Fasta
from evo_data.gene_models import csq_lines, read_gene_models
from evo_data.vcf import VariantReader

CODONS = {**unambiguous_dna_by_id[11].forward_table, **dict.fromkeys(unambiguous_dna_by_id[11].stop_codons, "*")}  # fmt: skip


def toy_genome(folder: Path) -> Fasta:
    """A gene of two exons on +, ATG at 21; the same on - of contig m."""
    first, second = "ATGGCTGAAAAACTG", "GTTCGTCATTAA"  # M A E K L, V R H *
    sequence = "C" * 20 + first + "GT" + "A" * 26 + "AG" + second + "G" * 20
    turned = sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))
    path = folder / "toy.fa"
    path.write_text(f">c\n{sequence}\n>m\n{turned}\n")
    return Fasta(path)


# The same two transcripts by everybody's habits; positions 1-based: exons 11-35, 66-87; CDS 21-35, 66-77.
ENSEMBL = """##gff-version 3
c	x	gene	11	87	.	+	.	ID=gene:G1;Name=abc;biotype=protein_coding
c	x	mRNA	11	87	.	+	.	ID=transcript:T1;Parent=gene:G1;biotype=protein_coding
c	x	exon	11	35	.	+	.	Parent=transcript:T1
c	x	exon	66	87	.	+	.	Parent=transcript:T1
c	x	CDS	21	35	.	+	0	ID=CDS:P1;Parent=transcript:T1
c	x	CDS	66	77	.	+	0	ID=CDS:P1;Parent=transcript:T1
"""
NCBI = ENSEMBL.replace("gene:G1", "gene-G1").replace("transcript:T1", "rna-T1").replace("CDS:P1", "cds-P1")  # fmt: skip
GENCODE = """c	x	gene	11	87	.	+	.	ID=G1;gene_id=G1;gene_type=protein_coding;gene_name=abc
c	x	transcript	11	87	.	+	.	ID=T1;Parent=G1;gene_id=G1;transcript_id=T1;gene_name=abc
c	x	exon	11	35	.	+	.	ID=exon:T1:1;Parent=T1;gene_name=abc
c	x	CDS	21	35	.	+	0	ID=CDS:T1;Parent=T1;gene_name=abc
c	x	exon	66	87	.	+	.	ID=exon:T1:2;Parent=T1;gene_name=abc
c	x	CDS	66	74	.	+	0	ID=CDS:T1;Parent=T1;gene_name=abc
c	x	stop_codon	75	77	.	+	0	ID=stop_codon:T1;Parent=T1;gene_name=abc
"""
GTF = "".join(
    f'c\tx\t{kind}\t{span}\t.\t+\t{phase}\tgene_id "G1"; transcript_id "T1"; gene_name "abc"; gene_biotype "protein_coding"; tag "a b";\n'
    for kind, span, phase in (
        ("exon", "11\t35", "."), ("CDS", "21\t35", "0"), ("exon", "66\t87", "."), ("CDS", "66\t74", "0"), ("stop_codon", "75\t77", "0"),
    )
)  # fmt: skip


CODONS_ONLY = GTF.replace("\tCDS\t21\t35", "\tstart_codon\t21\t23").replace("c\tx\tCDS", "#")


@pytest.mark.parametrize("text", [ENSEMBL, NCBI, GENCODE, GTF, CODONS_ONLY])
def test_every_dialect_gives_the_same_consequences(text: str, tmp_path: Path) -> None:
    genome = toy_genome(tmp_path)
    path = tmp_path / "genes.gff3.gz"
    path.write_bytes(gzip.compress(text.encode()))
    caller = ConsequenceCaller(path, genome)
    wanted = {
        (24, "G", "A"): "missense|abc|T1|protein_coding|+|2A>2T|24G>A",
        (26, "T", "C"): "synonymous|abc|T1|protein_coding|+|2A|26T>C",
        (27, "G", "T"): "stop_gained|abc|T1|protein_coding|+|3E>3*|27G>T",
        (36, "G", "A"): "splice_donor|abc|T1|protein_coding",
        (50, "A", "C"): "intron|abc||protein_coding",
        (15, "C", "T"): "5_prime_utr|abc|T1|protein_coding",
        (80, "G", "T"): "3_prime_utr|abc|T1|protein_coding",
        (28, "AAA", "A"): "frameshift|abc|T1|protein_coding|+|",
        (5, "C", "T"): None,
    }
    found = caller.call([("c", *key) for key in wanted])
    for key, expected in wanted.items():
        entries = found.get(("c", *key))
        if expected is None or entries is None:
            assert entries is expected, key
        else:
            assert len(entries) == 1, (key, entries)
            assert entries[0].startswith(expected), (key, entries)
    assert caller.call([("c", 66, "G", "A")])["c", 66, "G", "A"] == (
        "splice_region|abc|T1|protein_coding", "missense|abc|T1|protein_coding|+|6V>6I|66G>A",
    )  # fmt: skip


def test_genes_without_transcripts_and_without_parents(tmp_path: Path) -> None:
    """Bacteria: NCBI, Bakta and Prokka (with the sequence behind), and files without any Parent."""
    genome = toy_genome(tmp_path)
    span = "m\tx\t{}\t{}\t{}\t.\t-\t{}\t{}\n"
    dialects = {
        "ncbi": span.format("gene", 1, 60, ".", "ID=gene-b1;Name=abc;gene=abc;locus_tag=b1")
        + span.format("CDS", 1, 60, "0", "ID=cds-NP_1.1;Parent=gene-b1;gene=abc;locus_tag=b1;protein_id=NP_1.1"),
        "prokka": span.format("gene", 1, 60, ".", "ID=b1_gene;Name=abc;gene=abc;locus_tag=b1")
        + span.format("CDS", 1, 60, "0", "ID=b1;Parent=b1_gene;Name=abc;gene=abc;locus_tag=b1")
        + "##FASTA\n>m\nACGT\n",
        "bakta": span.format("CDS", 1, 60, "0", "ID=b1;Name=a protein, of some kind;locus_tag=b1;gene=abc"),
        "no parent": span.format("gene", 1, 60, ".", "ID=gene-b1-1;locus_tag=b1;gene=abc")
        + span.format("CDS", 1, 60, "0", "ID=CDS-b1-2;locus_tag=b1;gene=abc"),
    }  # fmt: skip
    for name, text in dialects.items():
        path = tmp_path / "genes.gff"
        path.write_text("##gff-version 3\n" + text)
        (transcript,) = read_gene_models(path, ContigAliases(genome.lengths), genome.lengths).transcripts  # fmt: skip
        assert (transcript.name, transcript.gene_name, transcript.strand) == ("b1", "abc", "-"), (
            name
        )
        assert transcript.cds == transcript.exons == [(0, 60)], name


def test_what_cannot_be_translated_is_left_out_and_counted(tmp_path: Path) -> None:
    genome = toy_genome(tmp_path)
    path = tmp_path / "genes.gff"

    def cds(name: str, *parts: tuple[int, int], strand: str = "+", contig: str = "c") -> str:
        return "".join(f"{contig}\tx\tCDS\t{a}\t{b}\t.\t{strand}\t0\tID={name}\n" for a, b in parts)

    path.write_text(
        cds("good", (21, 35), (66, 77)) + cds("slips", (1, 30), (30, 60)) + cds("slips2", (1, 30), (32, 60))
        + cds("trans", (50, 60), (1, 30)) + cds("turned", (1, 9)) + cds("turned", (20, 40), strand="-")
        + cds("origin", (1, 3), (95, 97)) + cds("far", (90, 110)) + cds("other", (1, 9), contig="chrZ")
        + cds("minus", (50, 60), (1, 30), strand="-")
    )  # fmt: skip
    models = read_gene_models(path, ContigAliases(genome.lengths), genome.lengths)
    assert [t.name for t in models.transcripts] == ["good", "minus"]
    assert models.left_out == Counter({
        "with a programmed frameshift": 2, "in parts out of order": 1,
        "in parts on both strands or of unknown strand": 1,
        "across the origin or the end of a contig": 2,
        "on contigs that the genome does not have": 1,
    })  # fmt: skip
    assert "c\tevo_toolkit\tCDS\t66\t77\t.\t+\t0\tParent=transcript:good\n" in list(
        csq_lines(models)
    )
    path.write_text(cds("other", (1, 9), contig="chrZ"))
    with pytest.raises(EvoDataError, match="1 on contigs that the genome does not have"):
        read_gene_models(path, ContigAliases(genome.lengths), genome.lengths)
    for bad in ("", "a\tb\n", "c\tx\tCDS\tone\t2\t.\t+\t0\tID=a\n"):
        path.write_text(bad)
        with pytest.raises(EvoDataError):
            read_gene_models(path, ContigAliases(genome.lengths), genome.lengths)


def test_phases_are_worked_out(tmp_path: Path) -> None:
    genome = toy_genome(tmp_path)
    path = tmp_path / "genes.gff"
    for strand, phases in (("+", ["1", "0"]), ("-", ["0", "1"])):
        rows = [f"c\tx\tCDS\t{a}\t{b}\t.\t{strand}\t1\tID=x\n" for a, b in ((1, 10), (31, 43))]
        path.write_text("".join(rows if strand == "+" else rows[::-1]))
        models = read_gene_models(path, ContigAliases(genome.lengths), genome.lengths)
        lines = [line.split("\t") for line in csq_lines(models) if "\tCDS\t" in line]
        assert [line[7] for line in lines] == phases


def test_the_worst_of_several() -> None:
    entries = (
        "intron|A||protein_coding", "missense|A|T1|protein_coding|+|1A>1V|1C>T", "@5",
        "splice_region&synonymous|A|T2|protein_coding|+", "missense|B|T3|protein_coding|+",
    )  # fmt: skip
    assert worst_consequence(entries) == WorstConsequence("A", "T1", "missense", 4)
    assert worst_consequence(("*stop_gained|A|T|x|+", "missense|B|U|x|+")) == WorstConsequence("A", "T", "*stop_gained", 2)  # fmt: skip
    assert worst_consequence(("@5",)) is None and worst_consequence(()) is None
    assert worst_consequence(("new_term|A|T|x|+",)) == WorstConsequence("A", "T", "new_term", 1)
    assert len(set(SEVERITY)) == len(SEVERITY)


def test_records_get_bcsq(tmp_path: Path) -> None:
    genome = toy_genome(tmp_path)
    gff, vcf = tmp_path / "g.gff", tmp_path / "v.vcf"
    gff.write_text(ENSEMBL)
    vcf.write_text(
        "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS\n"
        "chrc\t27\t.\tG\tT,<DEL>,A,*\t.\t.\tDP=3\tGT\t0/1\n"
        "chrc\t5\t.\tC\tT\t.\t.\t.\tGT\t0/1\n"
        "chrc\t24\t.\tC\tG\t.\t.\t.\tGT\t0/1\n"
        "zz\t24\t.\tC\tG\t.\t.\t.\tGT\t0/1\n"
        "chrc\t24\t.\tg\ta\t.\t.\t.\tGT\t0/1"
    )
    caller = ConsequenceCaller(gff, genome)
    aliases = ContigAliases({"c": 97}, synonyms=[frozenset({"c", "chrc"})])
    with VariantReader(vcf) as reader:
        header = reader.header
        lines = [r.line.decode() for r in caller.annotated(reader, aliases)]
    with VariantReader(vcf) as reader:
        records = list(caller.annotated(reader, aliases, write=False))
        assert [r.line.decode() for r in records] == vcf.read_text().splitlines()[2:]
    assert "DP=3;BCSQ=stop_gained|abc|T1|protein_coding|+|3E>3*|27G>T,missense|abc|T1" in lines[0]
    assert lines[0].endswith("\tGT\t0/1")
    assert lines[1:4] == vcf.read_text().splitlines()[3:6], "nothing to say, nothing changed"
    assert "\tBCSQ=missense|abc" in lines[4]
    first = [worst_consequence(x) for x in records[0].consequences]
    assert [x and x.consequence for x in first] == ["stop_gained", None, "missense", None]
    assert with_bcsq(header, caller.header_line)
    assert header.lines[1].startswith(b"##INFO=<ID=BCSQ,") and header.lines[2].startswith(b"#CHROM")
    assert not with_bcsq(header, caller.header_line)


def test_the_genetic_code(tmp_path: Path) -> None:
    genome = toy_genome(tmp_path)
    gff = tmp_path / "g.gff"
    gff.write_text(ENSEMBL)
    key = ("c", 29, "A", "G")  # GAA to GAG
    assert ConsequenceCaller(gff, genome, genetic_code=4).call([key])
    with pytest.raises(EvoDataError, match="bcftools csq"):
        ConsequenceCaller(gff, genome, genetic_code=99)


def bcftools_csq(gff: Path, fasta: Path, vcf: Path) -> dict[tuple[str, str], set[str]] | None:
    """bcftools itself with its own annotation; None where it refuses."""
    program = "import sys, pysam.bcftools as b; sys.stdout.write(b.csq(*sys.argv[1:]))"
    arguments = ["-l", "-n", "1000", "-v", "0", "-f", str(fasta), "-g", str(gff), str(vcf)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        return None
    found = {}
    for line in done.stdout.splitlines():
        if not line.startswith("#"):
            columns = line.split("\t")
            info = dict(x.partition("=")[::2] for x in columns[7].split(";"))
            found[columns[1], columns[4]] = set(info.get("BCSQ", "").split(",")) - {""}
    return found


def test_rewritten_annotations_give_what_bcftools_gives_with_its_own(
    shared_dir: Path, tmp_path: Path
) -> None:
    """Ensembl's files, which bcftools reads as they are: the rewriting must not change anything."""
    compared = entries = 0
    for folder in sorted((shared_dir / "data/torture/vcf_bcftools_csq").glob("ENST*"))[::6]:
        gff, fasta = folder / f"{folder.name}.gff", folder / f"{folder.name}.fa"
        if not (gff.is_file() and fasta.is_file()):
            continue
        copy = tmp_path / fasta.name
        copy.write_bytes(fasta.read_bytes())
        genome = Fasta(copy)
        for vcf in sorted(folder.glob("*.vcf"))[:1]:
            expected = bcftools_csq(gff, copy, vcf)
            if not expected:
                continue
            caller = ConsequenceCaller(gff, genome)
            with VariantReader(vcf) as reader:
                for record in caller.annotated(reader, ContigAliases(genome.lengths)):
                    wanted = expected.get((str(record.pos), ",".join(record.alts)))
                    # Symbolic alleles are not asked about here.
                    if wanted is None or len(record.alts) > 1 or "<" in record.alts[0]:
                        continue
                    assert set(record.consequences[0]) == wanted, (vcf, record.pos)
                    compared, entries = compared + 1, entries + len(wanted)
    assert compared > 10 and entries > 10


def test_brca1_consequences_of_the_assay(shared_dir: Path) -> None:
    """Ensembl GTF, minus strand; oracle: the consequences that the authors of the assay published."""
    folder = shared_dir / "data/variants"
    genome = Fasta(folder / "brca1/GRCh37_chr17.Npadded.BRCA1.fa.gz")
    caller = ConsequenceCaller(folder / "clinvar_brca1_2018/test.gtf", genome)
    agree = Counter()
    terms = {
        "Missense": {"missense"}, "Synonymous": {"synonymous"}, "Nonsense": {"stop_gained"},
        "Canonical_splice": {"splice_acceptor", "splice_donor"},
    }  # fmt: skip
    with VariantReader(folder / "brca1/BRCA1_SGE_Findlay2018.GRCh37.vcf.gz") as reader:
        for record in caller.annotated(reader, ContigAliases(genome.lengths)):
            published = record.info.decode().split("CONS=")[1].split(";")[0].replace(" ", "_")
            known = terms.get(published)
            if known is None:
                continue
            ours = {
                t for x in record.consequences[0] if "ENST00000357654" in x
                for t in x.split("|")[0].split("&")
            }  # fmt: skip
            agree[published, bool(ours & known)] += 1
    assert sum(n for (_, yes), n in agree.items() if yes) > 2500
    assert sum(n for (_, yes), n in agree.items() if not yes) < 0.01 * sum(agree.values()), agree


def test_mg1655_by_translation(shared_dir: Path, tmp_path: Path) -> None:
    """No transcripts, no parents; oracle: codons translated here."""
    folder = shared_dir / "data/genomes/annotated/ecoli_mg1655"
    name = "GCF_000005845.2_ASM584v2_genomic"
    fasta = tmp_path / "mg1655.fa"
    fasta.write_bytes(gzip.decompress((folder / f"{name}.fa.gz").read_bytes()))
    genome = Fasta(fasta)
    gff = folder / f"{name}.gff3.gz"
    caller = ConsequenceCaller(gff, genome, genetic_code=11)
    assert caller.num_transcripts > 4300 and sum(caller.left_out.values()) < 20
    models = read_gene_models(gff, ContigAliases(genome.lengths), genome.lengths)
    rng = random.Random(11)
    genes = [t for t in models.transcripts if len(t.cds) == 1 and (t.cds[0][1] - t.cds[0][0]) % 3 == 0]  # fmt: skip
    complement = str.maketrans("ACGT", "TGCA")
    expected = {}
    for gene in rng.sample(genes, 400):
        start, end = gene.cds[0]
        codon_at = rng.randrange(start + 3, end - 3, 3)
        at = codon_at + rng.randrange(3)
        ref = genome.fetch(gene.contig, at, at + 1).decode()
        alt = rng.choice([b for b in "ACGT" if b != ref])
        codon = genome.fetch(gene.contig, codon_at, codon_at + 3).decode()
        changed = codon[: at - codon_at] + alt + codon[at - codon_at + 1 :]
        if gene.strand == "-":
            codon, changed = (x[::-1].translate(complement) for x in (codon, changed))
        before, after = CODONS[codon], CODONS[changed]
        if before == "*":
            continue  # selenocysteine
        kind = "synonymous" if before == after else "stop_gained" if after == "*" else "missense"
        expected[gene.contig, at + 1, ref, alt] = (gene.name, kind)
    found = caller.call(expected)
    assert len(expected) > 390
    for key, (transcript, kind) in expected.items():
        kinds = {x.split("|")[2]: x.split("|")[0] for x in found[key]}
        assert kinds[transcript] == kind, (key, found[key])


def test_a_plastid_with_a_trans_spliced_gene(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "data/genomes/annotated/plastid_chloe"
    fasta = tmp_path / "NC_002202.fa"
    fasta.write_bytes(gzip.decompress((folder / "NC_002202.fa.gz").read_bytes()))
    genome = Fasta(fasta)
    caller = ConsequenceCaller(folder / "NC_002202.gff3.gz", genome, genetic_code=11)
    assert caller.num_transcripts > 130 and 1 <= sum(caller.left_out.values()) <= 3
