"""Tables, texts, regions, expressions and samples: everything that becomes records of a VCF."""

from __future__ import annotations

import gzip
import random
import shutil
from pathlib import Path

import pandas as pd
import pysam
import pytest

from evo_data.errors import EvoDataError
from evo_data.fasta import Fasta
from evo_data.interval import Interval
from evo_data.variant_sources import Selection, open_source, parse_regions, read_regions, spooled

SEQUENCE = "".join(random.Random(5).choices("ACGT", k=400))
ROWS = [("chr1", 10, SEQUENCE[9], "T"), ("chr1", 20, SEQUENCE[19:22], "A"), ("chr2", 5, SEQUENCE[4], "G")]  # fmt: skip


@pytest.fixture
def genome(tmp_path: Path) -> Fasta:
    path = tmp_path / "genome.fa"
    path.write_text(f">chr1\n{SEQUENCE}\n>chr2\n{SEQUENCE}\n")
    return Fasta(path)


def read(genome: Fasta, path: Path | None, **options: object) -> list[tuple[object, ...]]:
    source = open_source(path, genome, **options)  # type: ignore[arg-type]
    with source.open() as reader:
        return [(r.contig, r.pos, r.ref, ",".join(r.alts)) for r in reader]


def test_every_kind_of_table_gives_the_same_records(tmp_path: Path, genome: Fasta) -> None:
    frame = pd.DataFrame(ROWS, columns=["chrom", "pos", "ref", "alt"])
    plain = frame.to_csv(sep="\t", index=False)
    texts = {
        "a.tsv": plain,
        "b.txt": "## a comment\n#" + plain,
        "c.csv": frame.rename(columns={"chrom": "Chromosome", "pos": "Position", "ref": "REF", "alt": "Alt Allele"}).assign(note='a "quoted", text').to_csv(index=False),
        "d.csv": frame.assign(z=1)[["alt", "z", "ref", "pos", "chrom"]].to_csv(sep=";", index=False),
        "e.tsv": frame.to_csv(sep="\t", index=False, header=False),
        "f.tsv": frame.assign(id="x")[["chrom", "pos", "id", "ref", "alt"]].to_csv(sep="\t", index=False, header=False),
        "g.txt": "\n".join("-".join(map(str, row)) for row in ROWS) + "\n",
        "h.csv": "name,hgvs\n" + "\n".join(f"v,{c}-{p}-{r}-{a}" for c, p, r, a in ROWS) + "\n",
        "i.csv": "\ufeff" + frame.assign(pos=frame.pos.astype(float)).to_csv(index=False).replace("\n", "\r\n"),
        "j.txt": plain.replace("\t", "  "),
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
        assert read(genome, tmp_path / name) == ROWS, name
    (tmp_path / "k.tsv.gz").write_bytes(gzip.compress(plain.encode()))
    assert read(genome, tmp_path / "k.tsv.gz") == ROWS
    frame.to_parquet(tmp_path / "l.parquet")
    shutil.copy(tmp_path / "l.parquet", tmp_path / "m")  # known by its first bytes
    assert read(genome, tmp_path / "l.parquet") == read(genome, tmp_path / "m") == ROWS
    zero = frame.assign(start=frame.pos - 1).drop(columns="pos")
    zero.to_csv(tmp_path / "n.csv", index=False)
    assert read(genome, tmp_path / "n.csv", zero_based=True) == ROWS
    with pytest.raises(EvoDataError, match="--zero-based"):
        read(genome, tmp_path / "n.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chrom,pos,ref\n1,2,A\n", "no column for alt; the table has chrom, pos, ref"),
        ("chrom,pos,ref,alt\nchr1,x,A,C\n", "t.csv:2: position 'x'"),
        ("chrom,pos,ref,alt\nchr1,5\n", "t.csv:2: has 2 columns"),
        ("chrom,pos,ref,alt\nchr1,5,-,C\n", "which side"),
        ("chrom,pos,ref,alt\nchr9,5,A,-\n", "not in the genome"),
        ("chrom,pos,ref,alt\n,5,A,C\n", "contig '' is empty"),
        ("variant\nchr1-5-A\n", "t.csv:2: variant 'chr1-5-A' is not understood"),
        ("a,b,c\n1,2,3\n", "no column for chrom, pos, ref, alt"),
        ("\n", "the table is empty"),
    ],
)
def test_bad_tables_are_refused_in_one_line(
    text: str, message: str, tmp_path: Path, genome: Fasta
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(EvoDataError) as error:
        read(genome, path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_dash_for_a_deletion_gets_the_base_before(tmp_path: Path, genome: Fasta) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"chrom,pos,ref,alt\n1,11,{SEQUENCE[10:12]},-\n")
    assert read(genome, path) == [("1", 10, SEQUENCE[9:12], SEQUENCE[9])]


def test_texts_become_records_that_carry_them(genome: Fasta) -> None:
    source = open_source(None, genome, texts=["1-10-A-C", "chr2:g.5del"])
    with source.open() as reader:
        assert list(reader.header.contigs) == ["chr1", "chr2"]
        assert [(r.id, r.pos) for r in reader] == [("1-10-A-C", 10), ("chr2:g.5del", 4)]
    with pytest.raises(EvoDataError, match="not both"):
        open_source("x.vcf", genome, texts=["1-10-A-C"])


def vcf(tmp_path: Path, genome: Fasta) -> Path:
    """A bgzipped, indexed VCF of every tenth base, with a deletion and a symbolic one."""
    text = (
        "##fileformat=VCFv4.2\n##contig=<ID=1,length=400>\n##contig=<ID=chr2,length=400>\n"
        '##INFO=<ID=AF,Number=A,Type=Float,Description="x">\n##INFO=<ID=END,Number=1,Type=Integer,Description="x">\n'
        '##INFO=<ID=AC,Number=A,Type=Integer,Description="x">\n##INFO=<ID=AN,Number=1,Type=Integer,Description="x">\n'
        '##ALT=<ID=DEL,Description="x">\n##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tA\tB\n"
    )
    for contig in ("1", "chr2"):
        for pos in range(10, 400, 10):
            ref = SEQUENCE[pos - 1 : pos + (6 if pos == 100 else 0)]
            alt = "<DEL>" if pos == 200 else ref[0] if pos == 100 else "ACGT"["CGTA".index(ref)]
            info = f"AF={pos / 1000};AC=1;AN=4" + (";END=245" if pos == 200 else "")
            text += f"{contig}\t{pos}\t.\t{ref}\t{alt}\t1.50\t.\t{info}\tGT\t0/{int(pos < 50)}\t0/{int(pos >= 50)}\n"
    path = tmp_path / "v.vcf"
    path.write_text(text)
    target = tmp_path / "v.vcf.gz"
    pysam.tabix_compress(str(path), str(target), force=True)
    pysam.tabix_index(str(target), preset="vcf", force=True)
    return target


REGIONS = "1:95-103,chr1:104-106,2:240,chr2:1-15,chr2:385-,1:102-130"


def test_regions_are_those_of_bcftools_with_and_without_an_index(
    tmp_path: Path, genome: Fasta
) -> None:
    indexed = vcf(tmp_path, genome)
    regions = tuple(parse_regions(REGIONS, {}))
    selection = Selection(regions=regions)
    expected = pysam.bcftools.view(
        "-H", "-r", "1:95-130,chr2:240,chr2:1-15,chr2:385-", str(indexed)
    ).splitlines()
    bcf = tmp_path / "v.bcf"
    pysam.bcftools.view("-Ob", "-o", str(bcf), str(indexed), catch_stdout=False)
    for path in (indexed, tmp_path / "v.vcf", bcf):
        with open_source(path, genome, selection=selection).open() as reader:
            lines = [r.line.decode() for r in reader]
        got = [line.split("\t")[:5] for line in lines]
        assert sorted(got) == sorted(line.split("\t")[:5] for line in expected), path
        if path != bcf:
            assert set(lines) <= set((tmp_path / "v.vcf").read_text().splitlines())
    assert [x for x in got if x[1] in ("100", "200")], "a deletion and a block reach into regions"


def test_a_record_in_two_regions_comes_once(tmp_path: Path, genome: Fasta) -> None:
    indexed = vcf(tmp_path, genome)
    regions = tuple(parse_regions("1:100-101,1:105-106,1:205-207,1:230-232,chr2:101", {}))
    for path in (indexed, tmp_path / "v.vcf"):
        with open_source(path, genome, selection=Selection(regions=regions)).open() as reader:
            found = [(r.contig, r.pos) for r in reader]
        assert found == [("1", 100), ("1", 200), ("1", 230), ("chr2", 100)]


def test_region_texts_and_files(tmp_path: Path) -> None:
    far = 1 << 60
    assert parse_regions("chr1:1,000-2,000,chr2,c:5,d:7-", {}) == [
        Interval("chr1", 999, 2000), Interval("chr2", 0, far), Interval("c", 4, 5), Interval("d", 6, far),
    ]  # fmt: skip
    assert parse_regions("HLA:01", {"HLA:01": 50}) == [Interval("HLA:01", 0, far)]
    for text in ("chr1:9-5", "chr1:0-5", "", "chr1:a-b", "chr1,,chr2"):
        with pytest.raises(EvoDataError):
            parse_regions(text, {})
    bed, listed = tmp_path / "a.bed", tmp_path / "a.txt"
    bed.write_text("track x\nchr1\t9\t20\tname\n")
    listed.write_text("# x\nchr1\t10\t20\nchr2\t7\n")
    assert read_regions(bed) == [Interval("chr1", 9, 20)]
    assert read_regions(listed) == [Interval("chr1", 9, 20), Interval("chr2", 6, 7)]
    listed.write_text("chr1 ten\n")
    with pytest.raises(EvoDataError, match=r"a\.txt:1"):
        read_regions(listed)


def test_expressions_and_samples_are_those_of_bcftools(tmp_path: Path, genome: Fasta) -> None:
    path = vcf(tmp_path, genome)

    def positions(**options: str) -> list[int]:
        with open_source(path, genome, selection=Selection(**options)).open() as reader:  # type: ignore[arg-type]
            return [r.pos for r in reader if r.contig == "1"]

    assert positions(include="AF<0.03") == [10, 20]
    assert positions(exclude="AF<0.38") == [380, 390]
    assert positions(include="AF<0.05", exclude="POS=20") == [10, 30, 40]
    assert positions(samples="A", include='GT="alt"') == [10, 20, 30, 40]
    assert len(positions(samples="A")) == 39
    with open_source(path, genome, selection=Selection(samples="^A")).open() as reader:
        assert reader.header.samples == ("B",)
        lines = [record.line for record in reader]
        assert len(lines) > 39 and all(b"AC=1;AN=4" in line for line in lines), "INFO as it was"
    for bad in ({"include": "AF<"}, {"include": "NOPE=1"}, {"samples": "nobody"}, {"include": "__import__('os').system('true')"}):  # fmt: skip
        with pytest.raises(EvoDataError, match="bcftools view") as error:
            positions(**bad)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("expression", ["AF<0.01", "MAF>0", "POS%0=1"])
def test_an_expression_that_crashes_bcftools_is_one_error(
    tmp_path: Path, genome: Fasta, expression: str
) -> None:
    """Division by zero, in a file without samples and without AF: a signal, which no one here gets."""
    path = tmp_path / "bare.vcf"
    path.write_text(
        "##fileformat=VCFv4.3\n##contig=<ID=1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "1\t10\t.\tA\tC\t.\t.\t.\n"
    )
    with pytest.raises(EvoDataError, match=r"bcftools view -i .*crashed .*header define") as error:
        open_source(path, genome, selection=Selection(include=expression))
    assert "\n" not in str(error.value)


def test_a_stream_can_be_copied(tmp_path: Path, genome: Fasta) -> None:
    path = vcf(tmp_path, genome)
    source = open_source(path, genome)
    assert spooled(source) is source and not source.is_stream


def test_real_tables(shared_dir: Path, genome: Fasta) -> None:
    folder = shared_dir / "data/variants/clinvar_750"
    for build in ("b37", "b38"):
        name = f"clinvar_alleles_example_750_rows.single.{build}"
        table, variants = (read(genome, folder / f"{name}{x}") for x in (".tsv", ".vcf"))
        assert len(table) > 700 and len(set(table) & set(variants)) > 500
    with pytest.raises(EvoDataError, match=r"no column for pos; .* pos_grch37"):
        read(genome, shared_dir / "data/variants/brca1/BRCA1_SGE_Findlay2018.verified.tsv")
