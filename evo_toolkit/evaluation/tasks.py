"""The tasks: each is prepared from files into one `Prepared`, and run on that with a model.

Preparing needs the genomes, the training genomes and, for some tasks, Pyrodigal or pysam; running
needs the prepared data and a model alone, so it works on a machine that has nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evo_data.variant import Edit
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.evaluation import bits as bits_task
from evo_toolkit.evaluation import brca1 as brca1_task
from evo_toolkit.evaluation import default_window as default_window_task
from evo_toolkit.evaluation import essentiality as essentiality_task
from evo_toolkit.evaluation import snv as snv_task
from evo_toolkit.evaluation.baseline import Say, fit_baseline, kmer_overlap, training_genomes
from evo_toolkit.evaluation.bits import WindowBits
from evo_toolkit.evaluation.edits import Place, edit_scores, edit_values
from evo_toolkit.evaluation.genes import Gene, call_genes, read_gff
from evo_toolkit.evaluation.genomes import Bytes, Genome, GenomeFile, find_genomes
from evo_toolkit.evaluation.markov import (
    MAX_ORDER,
    MarkovChain,
    interpolated_log2,
    weighted_counts,
)
from evo_toolkit.evaluation.prepared import Prepared
from evo_toolkit.evaluation.windows import WindowSet, tile_windows
from evo_toolkit.statistics import RESAMPLES

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

MARKOV_ORDER = 9
"""Of the chain whose SNV scores stand beside the model's; the best order on genomes held out."""

Paths = Sequence[Path | str]
Progress = Callable[[int], None]


def quiet(_: object) -> None:
    """Tell nobody: the default of `say` and `progress`."""


def model_identity(model: StripedHyena2) -> dict[str, Any]:
    """What a result says of the model that made it."""
    return {
        "name": model.config.name,
        "sha256": model.sha256,
        "parameters": model.config.parameter_count(),
        "precision": model.policy.describe(),
        "device": str(model.device),
        "notes": list(model.notes),
    }


def _overlap(genomes: Sequence[Genome], train: Sequence[GenomeFile], say: Say) -> dict[str, Any]:
    """What the meta data say of the training genomes; empty without any."""
    if not train:
        return {}
    shares = kmer_overlap(genomes, train)
    say("looked up 31-mers of the training genomes")
    return {"kmer_overlap_with_train": {name: round(x, 6) for name, x in shares.items()}}


def _find_train(train: Paths) -> list[GenomeFile]:
    return find_genomes(train) if train else []


# Bits per base


def prepare_bits(
    genomes: Paths,
    *,
    train: Paths = (),
    context_length: int = 8192,
    per_genome: int | None = None,
    order: int | None = None,
    max_order: int = MAX_ORDER,
    num_windows: int = 256,
    seed: int = 0,
    say: Say = quiet,
    progress: Progress = quiet,
) -> Prepared:
    """Windows of genomes and, with training genomes, what both baselines make of them.

    Args:
        genomes: Files of genomes, folders of them, or a corpus.
        train: The same, of the training genomes; without any there are no baselines.
        context_length: Of the windows, in bases.
        per_genome: Windows of each genome, drawn; None is all of them.
        order: Of the Markov chain; None chooses on held-out training genomes up to `max_order`.
        max_order: The largest order looked at.
        num_windows: Windows of held-out training genomes for the fit of the mixture.
        seed: Of all draws.
    """
    files = _find_train(train)
    read = tuple(file.read() for file in find_genomes(genomes))
    names = [genome.name for genome in read]
    if len(set(names)) < len(names):
        raise EvoError("two genomes have the same name; rename one, names are what results go by")
    windows = tile_windows(read, context_length, per_genome=per_genome, seed=seed)
    arrays: dict[str, NDArray[Any]] = {
        name: getattr(windows, name) for name in ("genome", "record", "start", "stop")
    }
    meta: dict[str, Any] = {"context_length": context_length, **_overlap(read, files, say)}
    if files:
        mixture, meta["baseline"] = fit_baseline(
            training_genomes(files), context_length=context_length, order=order,
            max_order=max_order, num_windows=num_windows, seed=seed, say=say,
        )  # fmt: skip

        def score(codes: Bytes) -> dict[str, NDArray[np.float32]]:
            alone, mixed = mixture.bits(codes)
            return {"markov": alone, "mixture": mixed, **mixture.bits_by_order(codes)}

        found = bits_task.measure(read, windows, score, progress=progress)
        meta["predictors"] = list(found)
        for name, bits in found.items():
            arrays |= bits.arrays(name)
    return Prepared(kind="bits", genomes=read, arrays=arrays, meta=meta)


def run_bits(
    prepared: Prepared,
    model: StripedHyena2 | None,
    *,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Bits per base of the baselines and of a model; without a model, of the baselines alone."""
    windows = WindowSet(
        context_length=prepared.meta["context_length"],
        **{name: prepared.arrays[name] for name in ("genome", "record", "start", "stop")},
    )
    found: dict[str, WindowBits] = {}
    if model is not None:
        score = bits_task.model_score(model, windows.context_length)
        found |= bits_task.measure(prepared.genomes, windows, score, progress=progress)
    for name in prepared.meta.get("predictors", ()):
        found[name] = WindowBits.of_arrays(prepared.arrays, name)
    if not found:
        raise UsageError(
            "neither a model nor training genomes; give -m MODEL, --train GENOMES or both"
        )
    return _result("bits", prepared, model, bits_task.report(prepared.genomes, windows, found))


# Substitutions in genes


def prepare_snv(
    genome: Path | str,
    *,
    genes: Path | str | None = None,
    train: Paths = (),
    count: int = 20_000,
    seed: int = 0,
    markov_order: int = MARKOV_ORDER,
    say: Say = quiet,
) -> Prepared:
    """Substitutions in the genes of a genome, a third of each class.

    Args:
        genome: FASTA of a bacterium or archaeon.
        genes: GFF3; None calls the genes with Pyrodigal.
        train: Training genomes, for the k-mer overlap and the scores of a Markov chain.
        count: How many substitutions.
        seed: Of the draw.
        markov_order: Of the chain.
    """
    read = _one_genome(genome)
    found = call_genes(read) if genes is None else read_gff(genes, read)
    say(f"{len(found):,} complete genes")
    arrays = snv_task.draw(snv_task.substitutions(read, found), count, seed)
    files = _find_train(train)
    meta: dict[str, Any] = {
        "genes": "Pyrodigal" if genes is None else Path(genes).name,
        "num_genes_in_genome": len(found),
        "seed": seed,
        **_overlap([read], files, say),
    }
    if files:
        training = training_genomes(files)
        pairs = zip(training.files, training.weights, strict=True)
        counts = weighted_counts(((file.read(), weight) for file, weight in pairs), markov_order)
        chain = MarkovChain(interpolated_log2(counts))
        arrays["markov"] = chain.substitution_scores(
            read.records, arrays["record"], arrays["position"], arrays["alt"], markov_order
        )
        meta["markov_order"] = markov_order
        say(f"scored with a Markov chain of order {markov_order}")
    return Prepared(kind="snv", genomes=(read,), arrays=arrays, meta=meta)


def run_snv(
    prepared: Prepared,
    model: StripedHyena2 | None,
    *,
    window: int | None = None,
    count: int | None = None,
    resamples: int = RESAMPLES,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """AUROC of nonsense and missense against synonymous, by the model and by the Markov chain.

    The model's two scores are the change of the log-likelihood (`model`) and how far it moves what is
    expected of the bases behind the site (`shift` of `evo-toolkit score -M shift`). The second is told by
    position in the codon, so what the third position against the other two reaches stands beside it
    (`codon position`); the part "equal codon position too" is free of that.

    Args:
        prepared: Of `prepare_snv`.
        model: What is measured; None gives the chain's figures alone.
        window: Bases per window; None is the model's default.
        count: Of the prepared substitutions, drawn evenly; None is all.
        resamples: Of the bootstrap over genes.
        progress: Called with the substitutions done since the last call.
    """
    figures: dict[str, Any] = {}
    every = _drawn(prepared.arrays, count)
    snvs = {name: column for name, column in every.items() if name != "markov"}
    if model is not None:
        window = window or model.config.default_window
        figures["window"] = window
        edits, columns = _snv_edits(snvs), ("dll", "shift")
        values = edit_values(model, prepared.genomes, edits, window, columns, progress=progress)
        delta, shift = values.mean(axis=1).T
        figures["model"] = snv_task.report(snvs, delta, resamples=resamples)
        figures["shift"] = snv_task.report(snvs, -shift, resamples=resamples)
        in_codon = np.where(snvs["codon_position"] == 3, 0.0, -1.0)
        figures["codon position"] = snv_task.report(snvs, in_codon, resamples=resamples)
    if "markov" in every:
        figures["markov"] = snv_task.report(snvs, every["markov"], resamples=resamples)
    if not figures:
        raise UsageError("neither a model nor training genomes; give -m MODEL or --train GENOMES")
    return _result("snv", prepared, model, figures)


def run_default_window(
    prepared: Prepared,
    model: StripedHyena2,
    *,
    windows: Sequence[int] = default_window_task.WINDOWS,
    count: int = 2000,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The smallest window that ranks SNVs as the largest does; `count` of the prepared ones."""
    snvs = _drawn(prepared.arrays, count)
    edits = _snv_edits(snvs)
    scores = {
        window: edit_scores(model, prepared.genomes, edits, window, progress=progress).mean(axis=1)
        for window in windows
    }
    return _result(
        "default-window", prepared, model, default_window_task.report(scores, snvs["gene"])
    )


def _drawn(arrays: Mapping[str, NDArray[Any]], count: int | None) -> snv_task.Arrays:
    """`count` of the rows in their order, always the same ones."""
    total = arrays["position"].size
    if count is None or count >= total:
        return dict(arrays)
    chosen = np.sort(np.random.default_rng(0).permutation(total)[:count])
    return {name: column[chosen] for name, column in arrays.items()}


def _snv_edits(snvs: snv_task.Arrays) -> list[Place]:
    rows = zip(*(snvs[name].tolist() for name in ("record", "position", "alt")), strict=True)
    return [(0, record, Edit(at, at + 1, b"ACGT"[alt : alt + 1])) for record, at, alt in rows]


# Essentiality


def prepare_essentiality(
    genome: Path | str,
    labels: Path | str,
    *,
    column: str,
    train: Paths = (),
    say: Say = quiet,
) -> Prepared:
    """Genes with labels, their length and GC and, with training genomes, their conservation."""
    read = _one_genome(genome)
    genes, essential, left_out = essentiality_task.read_labels(labels, column, read)
    say(f"{len(genes):,} genes, {int(essential.sum()):,} of them essential; {left_out:,} left out")
    arrays: dict[str, NDArray[Any]] = {
        "start": np.array([gene.start for gene in genes]),
        "stop": np.array([gene.stop for gene in genes]),
        "forward": np.array([gene.strand == "+" for gene in genes]),
        "essential": essential,
        "feature.length": np.array([float(gene.stop - gene.start) for gene in genes]),
        "feature.gc": essentiality_task.gc_content(read, genes),
    }
    files = _find_train(train)
    meta: dict[str, Any] = {
        "labels": Path(labels).name, "column": column, "left_out": left_out,
        **_overlap([read], files, say),
    }  # fmt: skip
    if files:
        training = training_genomes(files)
        arrays["feature.conservation"] = essentiality_task.conservation(
            read, genes, [(f.read, w) for f, w in zip(files, training.weights, strict=True)]
        )
        say("looked up the genes' proteins in the training genomes")
    return Prepared(kind="essentiality", genomes=(read,), arrays=arrays, meta=meta)


def run_essentiality(
    prepared: Prepared,
    model: StripedHyena2 | None,
    *,
    window: int | None = None,
    sites: int = 1,
    resamples: int = RESAMPLES,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """AUROC of the stop insertions, mean over `sites` of each gene, and of the features."""
    arrays = prepared.arrays
    columns = (arrays[name].tolist() for name in ("start", "stop", "forward"))
    genes = [
        Gene(str(index), 0, start, stop, "+" if forward else "-")
        for index, (start, stop, forward) in enumerate(zip(*columns, strict=True))
    ]
    scores: dict[str, NDArray[Any]] = {}
    figures: dict[str, Any] = {}
    if model is not None:
        window = window or model.config.default_window
        figures |= {"window": window, "sites": sites}
        edits = essentiality_task.insertions(genes, sites)
        change = edit_scores(model, prepared.genomes, edits, window, progress=progress)
        scores["model"] = -change.mean(axis=1).reshape(len(genes), sites).mean(axis=1)
    for name, values in arrays.items():
        if name.startswith("feature."):
            scores[name.removeprefix("feature.")] = values
    figures |= essentiality_task.report(arrays["essential"], scores, resamples=resamples)
    return _result("essentiality", prepared, model, figures)


# BRCA1


def prepare_brca1(
    genome: Path | str, vcf: Path | str, *, train: Paths = (), say: Say = quiet
) -> Prepared:
    """The variants of the assay and the chromosome around them."""
    read, arrays = brca1_task.read_assay(genome, vcf)
    meta = {"vcf": Path(vcf).name, **_overlap([read], _find_train(train), say)}
    return Prepared(kind="brca1", genomes=(read,), arrays=arrays, meta=meta)


def run_brca1(
    prepared: Prepared,
    model: StripedHyena2,
    *,
    window: int | None = None,
    resamples: int = RESAMPLES,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """AUROC of loss of function; intervals over the assay's exons."""
    window = window or model.config.default_window
    arrays = {**prepared.arrays, "record": np.zeros(prepared.arrays["position"].size, np.int64)}
    scores = edit_scores(model, prepared.genomes, _snv_edits(arrays), window, progress=progress)
    figures = brca1_task.report(arrays, scores.mean(axis=1), resamples=resamples)
    return _result("brca1", prepared, model, {"window": window, **figures})


def _one_genome(path: Path | str) -> Genome:
    found = find_genomes([path])
    if len(found) != 1:
        raise UsageError(f"{path} holds {len(found)} genomes; give one")
    return found[0].read()


def _result(
    task: str, prepared: Prepared, model: StripedHyena2 | None, figures: dict[str, Any]
) -> dict[str, Any]:
    return {
        "task": task,
        "model": None if model is None else model_identity(model),
        "genomes": {genome.name: genome.num_bases for genome in prepared.genomes},
        "data": dict(prepared.meta),
        "figures": figures,
    }
