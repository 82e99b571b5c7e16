"""The benchmarks of `evo-toolkit eval`: what each asks, its files, where they come from.

This module imports nothing heavy: `evo-toolkit eval --help` lists it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evo_toolkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Style = Literal["sequences", "variants", "assay", "completion"]


@dataclass(frozen=True, slots=True)
class Published:
    """A figure that others report; never measured here.

    Attributes:
        model: What was measured.
        figure: As reported, with its metric.
        source: Where.
    """

    model: str
    figure: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: Of the command.
        summary: One line.
        style: What is run: a classifier on labelled "sequences" (beside baselines trained alike), scores
            of labelled "variants" without training, of an "assay" of whole sequences, or "completion" of genes.
        files: Name and content of each file, in the order of the command line.
        loader: Module below `evo_toolkit.evaluation.benchmarks` and function in it.
        readout: For sequences: which positions are pooled (`evo_toolkit.evaluation.features`).
        data: Where the files come from, and what to know of their licence.
        notes: What is done to the data, and what the figures do not say.
        after_train: Of a benchmark that makes more of the training genomes than the overlap: a function as
            of `loader`, which takes the task, the paths and the genomes, and returns the task.
        published: Figures of others.
    """

    name: str
    summary: str
    style: Style
    files: tuple[tuple[str, str], ...]
    loader: str
    data: str
    readout: Literal["mean", "middle", "last"] = "mean"
    notes: str = ""
    after_train: str = ""
    published: tuple[Published, ...] = ()

    def load(self, paths: Sequence[Path | str]) -> Any:
        """Read the files.

        Raises:
            UsageError: for another number of files.
            EvoError: for files of another format.
        """
        if len(paths) != len(self.files):
            wanted = " ".join(name for name, _ in self.files)
            raise UsageError(
                f"eval {self.name} takes {len(self.files)} files ({wanted}), {len(paths)} were given"
            )
        return _function(self.loader)(paths)

    def with_train(self, task: Any, paths: Sequence[Path | str], files: Sequence[Any]) -> Any:
        """The task with what the training genomes say of it, where the benchmark asks that."""
        return _function(self.after_train)(task, paths, files) if self.after_train else task


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found = importlib.import_module(f"evo_toolkit.evaluation.benchmarks.{module}")
    return getattr(found, function)


def find(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        UsageError: for a name that none has.
    """
    for benchmark in BENCHMARKS:
        if benchmark.name == name:
            return benchmark
    raise UsageError(
        f"no benchmark {name!r}; there are {', '.join(one.name for one in BENCHMARKS)}"
    )


_REGULONDB = "Hernandez et al. 2022 (doi:10.3390/genes13071126), github.com/occasumlux/Promoters: promoters of RegulonDB 9.3, 81 bases"
_UMAROV = "Umarov and Solovyev 2017 (doi:10.1371/journal.pone.0171410), github.com/solovictor/CNNPromoterData: EPDnew promoters and pieces of genes, 251 bases"

_GENDL = "github.com/KorfLab/genDL: junctions of A. thaliana, C. elegans and D. melanogaster with counts of spliced reads"
_SPLICE_NOTES = "40 bases on either side; junctions with 10 reads or more, two of a gene; genes and clusters of shared 31-mers are never torn apart"
_SPLICE_PUBLISHED = (
    Published(
        "Evo 2 1B, NT task splice sites, three classes",
        "accuracy 0.523 (head), 0.966 (LoRA)",
        "bionemo-framework, lora-fine-tuning-tutorial.ipynb; other data, not to be compared",
    ),
)

_PUBLISHED_SPLIT = "Judged on the published test part alone; how many of its sequences share a 31-mer with the training part is said"

BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(
        name="ecoli-promoters",
        summary="Promoters of E. coli against coding sequence of equal composition.",
        style="sequences",
        files=(("PROMOTERS", "FASTA of promoters"), ("OTHERS", "FASTA of other sequence")),
        loader="promoters:load_promoters",
        data=_REGULONDB,
        notes="Case is dropped (there it gives the label away), promoters found by programs are left out, negatives are drawn to the content of G and C, clusters of shared 31-mers are never torn apart. Negatives are coding: whoever tells coding from other sequence tells most of them",
    ),
    Benchmark(
        name="tata-promoters",
        summary="TATA promoters of Arabidopsis against pieces of genes of equal composition.",
        style="sequences",
        files=(("PROMOTERS", "FASTA of promoters"), ("OTHERS", "FASTA of other sequence")),
        loader="promoters:load_promoters",
        data=_UMAROV,
        notes="As ecoli-promoters",
    ),
    Benchmark(
        name="promoter-activity",
        summary="Activity of E. coli promoters in a reporter assay, a regression.",
        style="sequences",
        files=(("TABLE", "sequence and activity on each line"),),
        loader="promoters:load_activity",
        data="Urtecho et al. 2019 and 2023 (bioRxiv 2020.01.04.894907), github.com/KosuriLab: 150 bases, RNA over DNA",
        notes="Clusters of shared 31-mers are never torn apart, so no row that shares one with its training rows is judged",
    ),
    Benchmark(
        name="splice-donors",
        summary="Donor sites of introns against other GTs of the same transcripts.",
        style="sequences",
        files=(("JUNCTIONS", "exon, intron, exon, spliced reads and gene on each line"),),
        loader="splice:load_donors",
        readout="middle",
        data=_GENDL,
        notes=_SPLICE_NOTES,
        published=_SPLICE_PUBLISHED,
    ),
    Benchmark(
        name="splice-acceptors",
        summary="Acceptor sites of introns against other AGs of the same transcripts.",
        style="sequences",
        files=(("JUNCTIONS", "exon, intron, exon, spliced reads and gene on each line"),),
        loader="splice:load_acceptors",
        readout="middle",
        data=_GENDL,
        notes=_SPLICE_NOTES,
        published=_SPLICE_PUBLISHED,
    ),
    Benchmark(
        name="exons",
        summary="Whether a position lies in an exon, eight species.",
        style="sequences",
        files=(
            ("TABLE", "organism, gene_name, label, forward_seq and reverse_seq, tab-separated"),
        ),
        loader="exons:load_exons",
        readout="middle",
        data="Evo 2's exon classifier, github.com/ArcInstitute/evo2 (notebooks/exon_classifier) and huggingface.co/schmojo/evo2-exon-classifier",
        notes="122 positions: a smoke test. Folds are species",
        published=(
            Published(
                "Evo 2 7B, 8 held-out species",
                "AUROC about 0.82 to 0.99, from memory of the preprint",
                "schmojo/evo2-exon-classifier",
            ),
        ),
    ),
    Benchmark(
        name="essential-genes",
        summary="Essential genes of a bacterium by the beginning of their coding sequence.",
        style="sequences",
        files=(
            ("GENOME", "FASTA"),
            ("LABELS", "table with start, end, strand and keio_essential or essential"),
        ),
        loader="essential_genes:load_essential",
        after_train="essential_genes:with_conservation",
        data="Baba et al. 2006 (doi:10.1038/msb4100050), the Keio collection, on NC_000913.3",
        notes="Two other genes for each essential one; genes whose proteins share eight amino acids in a row are never torn apart. Conservation in the training genomes stands beside with --train",
    ),
    Benchmark(
        name="brca1-supervised",
        summary="Loss of function in BRCA1, trained on other exons of the gene.",
        style="sequences",
        files=(
            ("GENOME", "FASTA with the chromosome of VCF"),
            ("VCF", "SNVs with FCLASS, EXPT, CONS and CADD in INFO"),
        ),
        loader="brca1_sge:load_brca1",
        readout="middle",
        data="Findlay et al. 2018 (doi:10.1038/s41586-018-0461-z), supplementary table 1",
        notes="Each exon is held out once (--folds 13); consequence alone, CADD, and substitution with its neighbours stand beside",
        published=(
            Published(
                "Evo 2 40B embeddings with a small network",
                "AUROC about 0.94 to 0.95, from memory of figure 3i",
                "Brixi et al. 2026, nature.com/articles/s41586-026-10176-5",
            ),
            Published(
                "Evo 2 7B, zero-shot, all SNVs",
                "AUROC 0.87",
                "bionemo-framework, zeroshot_brca1.ipynb",
            ),
            Published("Evo 2 1B, zero-shot, all SNVs", "AUROC 0.73", "evo2, notebooks/brca1"),
        ),
    ),
    Benchmark(
        name="gue",
        summary="A task of GUE, the benchmark of DNABERT-2, in its published split.",
        style="sequences",
        files=(("TRAIN", "train.csv with sequence and label"), ("TEST", "test.csv")),
        loader="published_splits:load_tables",
        data="Zhou et al. 2024 (arXiv 2306.15006), github.com/MAGICS-LAB/DNABERT_2: GUE.zip, a folder for each task",
        notes=_PUBLISHED_SPLIT,
    ),
    Benchmark(
        name="nt-task",
        summary="A downstream task of Nucleotide Transformer, in its published split.",
        style="sequences",
        files=(
            (
                "TRAIN",
                "train.fna with headers NAME|LABEL, or Parquet or CSV with sequence and label",
            ),
            ("TEST", "the same"),
        ),
        loader="published_splits:load_tables",
        data="Dalla-Torre et al. 2024 (doi:10.1038/s41592-024-02523-z), huggingface.co/datasets/InstaDeepAI/nucleotide_transformer_downstream_tasks_revised; choose the rows of one task",
        notes=_PUBLISHED_SPLIT,
        published=_SPLICE_PUBLISHED,
    ),
    Benchmark(
        name="genomic-benchmarks",
        summary="A data set of Genomic Benchmarks, in its published split.",
        style="sequences",
        files=(("FOLDER", "train/CLASS/*.txt and test/CLASS/*.txt"),),
        loader="published_splits:load_folder",
        data="Gresova et al. 2023 (doi:10.1186/s12863-023-01123-8), pip install genomic-benchmarks; download_dataset writes the folder",
        notes=_PUBLISHED_SPLIT,
    ),
    Benchmark(
        name="bend",
        summary="A task of BEND whose labels stand in its BED, in its published split.",
        style="sequences",
        files=(
            ("GENOME", "GRCh38 FASTA"),
            ("BED", "chromosome, start, end, split and label, with header"),
        ),
        loader="published_splits:load_bend",
        data="Marin et al. 2024 (arXiv 2311.12570), github.com/frederikkemarin/BEND, data at sid.erda.dk (share eXAmVvbRSW)",
        notes=_PUBLISHED_SPLIT + ". Tasks whose labels are in HDF5 (gene finding) are not read",
    ),
    Benchmark(
        name="clinvar",
        summary="Pathogenic against benign variants of ClinVar, without training.",
        style="variants",
        files=(
            ("GENOME", "FASTA of the VCF's assembly"),
            ("VCF", "ClinVar's, with CLNSIG, CLNREVSTAT, MC and GENEINFO"),
        ),
        loader="variant_sets:load_clinvar",
        data="ftp.ncbi.nlm.nih.gov/pub/clinvar/vcf_GRCh38/clinvar.vcf.gz",
        notes="Likely ones count, one star or more, alleles of up to 50 bases. Intervals over genes and stretches of 1,000 bases. What a variant does to a protein alone (consequence) tells most of them; read the figures by consequence",
        published=(
            Published(
                "Evo 2 7B, missense P against B",
                "AUROC 0.851, AUPRC 0.781",
                "gpn, analysis_hg38.ipynb",
            ),
            Published(
                "Evo 2 40B, missense P against B",
                "AUROC 0.859, AUPRC 0.790",
                "gpn, analysis_hg38.ipynb",
            ),
            Published(
                "GPN-Star-V100, missense P against B",
                "AUROC 0.928, AUPRC 0.907",
                "gpn, analysis_hg38.ipynb",
            ),
            Published(
                "CADD, missense P against B", "AUROC 0.914, AUPRC 0.876", "gpn, analysis_hg38.ipynb"
            ),
        ),
    ),
    Benchmark(
        name="traitgym",
        summary="Causal against matched variants of traits (TraitGym), without training.",
        style="variants",
        files=(
            ("GENOME", "GRCh38 FASTA"),
            ("TABLE", "test.parquet with chrom, pos, ref, alt, label"),
        ),
        loader="variant_sets:load_traitgym",
        data="Benegas et al. 2025, huggingface.co/datasets/songlab/TraitGym: mendelian_traits_matched_9/test.parquet or complex_traits_matched_9/test.parquet",
        notes="The figure to compare is the AUPRC by chromosome, weighted by variants",
        published=(
            Published(
                "Evo 2 40B, Mendelian, LLR",
                "AUPRC by chromosome 0.557",
                "TraitGym, glm_zero_shot.ipynb",
            ),
            Published(
                "Evo 2 7B, Mendelian, LLR",
                "AUPRC by chromosome 0.385",
                "TraitGym, glm_zero_shot.ipynb",
            ),
            Published(
                "Evo 2 1B, Mendelian, LLR",
                "AUPRC by chromosome 0.188",
                "TraitGym, glm_zero_shot.ipynb",
            ),
            Published(
                "CADD, Mendelian", "AUPRC by chromosome 0.712", "TraitGym, performance.ipynb"
            ),
        ),
    ),
    Benchmark(
        name="sge",
        summary="Loss of function in saturation genome editing (BRCA2 and others), without training.",
        style="variants",
        files=(
            ("GENOME", "FASTA of the table's assembly"),
            ("TABLE", "chrom, pos, ref, alt, class (LOF, INT, FUNC), and exon"),
        ),
        loader="variant_sets:load_sge",
        data="BRCA2: Huang et al. 2025 (doi:10.1038/s41586-024-08388-8) and Sahu et al. 2025 (doi:10.1038/s41586-024-08349-1), supplementary tables; rename the columns. BRCA1 has a command of its own",
        notes="Intervals over exons",
    ),
    Benchmark(
        name="dms",
        summary="Fitness of whole nucleotide sequences against log-likelihood (ProteinGym's format).",
        style="assay",
        files=(("TABLE", "CSV with mutated_sequence (nucleotides) and DMS_score"),),
        loader="assays:load_dms",
        data="Notin et al. 2023, proteingym.org, its assays back-translated to the nucleotides of the construct; RNAGym for RNA",
        notes="Intervals over places of the sequence",
        published=(
            Published(
                "Evo 2 7B, 70 assays of RNAGym",
                "mean Spearman 0.276",
                "MarksLab-DasLab/RNAGym, pull request 17",
            ),
            Published(
                "Evo 2 40B, 70 assays of RNAGym",
                "mean Spearman 0.261",
                "MarksLab-DasLab/RNAGym, pull request 17",
            ),
        ),
    ),
    Benchmark(
        name="gene-completion",
        summary="Amino acids of a gene's rest that a model writes, given its beginning.",
        style="completion",
        files=(("GENOME", "FASTA of a bacterium or archaeon"), ("GFF3", "its genes")),
        loader="",
        data="Any annotated genome; Arc's prompts: github.com/ArcInstitute/evo2 (scripts/gene_completion)",
        notes="512 bases before the gene and 30 % of it are given; genes and alignment differ from Arc's, so their figures set the scale and no more",
        published=(
            Published("Evo 2 1B, prokaryotes", "64.9 % recovered", "evo2, scripts/gene_completion"),
            Published("Evo 2 7B, prokaryotes", "78.7 % recovered", "evo2, scripts/gene_completion"),
            Published(
                "Evo 2 40B, prokaryotes", "92.0 % recovered", "evo2, scripts/gene_completion"
            ),
        ),
    ),
)
