"""Gene completion: how much of a protein a model writes from the beginning of its gene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.genes import AMINO_ACIDS, coding_sequence, codons, read_gff
from evo_toolkit.evaluation.genomes import (
    Genome,
    encode,
    find_genomes,
    reverse_complement,
    tokens,
)
from evo_toolkit.evaluation.prepared import Prepared
from evo_toolkit.evaluation.registry import Benchmark
from evo_toolkit.evaluation.tasks import Progress, model_identity, quiet
from evo_toolkit.statistics import RESAMPLES, Floats, bootstrap

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

UPSTREAM = 512
GIVEN = 0.3
"""Share of the gene that stands in the prompt, rounded down to whole codons."""
LONGEST = 1500
"""Bases; longer genes are not drawn."""


def prepare_completion(
    benchmark: Benchmark, paths: Sequence[Path | str], *, limit: int | None = None, seed: int = 0
) -> Prepared:
    """Prompts and what follows them, of genes drawn from a genome.

    Args:
        benchmark: Of the style "completion".
        paths: FASTA and GFF3 of a bacterium or archaeon (genetic code 11).
        limit: So many genes; None draws 50.
        seed: Of the draw.

    Raises:
        EvoError: if fewer than two genes of 300 to 1,500 bases with 512 bases before them are drawn.
    """
    found = find_genomes([paths[0]])
    if len(found) != 1:
        raise EvoError(f"{paths[0]} holds {len(found)} genomes; give one")
    genome = found[0].read()
    prompts, rests, names = [], [], []
    for gene in read_gff(paths[1], genome):
        record = genome.records[gene.record]
        length = gene.stop - gene.start
        forward = gene.strand == "+"
        before = gene.start if forward else record.size - gene.stop
        if not 300 <= length <= LONGEST or before < UPSTREAM:
            continue
        own = coding_sequence(genome, gene)
        upstream = record[gene.start - UPSTREAM : gene.start] if forward else reverse_complement(record[gene.stop : gene.stop + UPSTREAM])  # fmt: skip
        given = int(length * GIVEN) // 3 * 3
        prompts.append(np.concatenate([upstream, own[:given]]))
        rests.append(own[given:])
        names.append(gene.name)
    if not names:
        raise EvoError(f"{paths[1]} has no gene of 300 to {LONGEST:,} bases with {UPSTREAM} bases before it in {paths[0]}")  # fmt: skip
    drawn = np.sort(np.random.default_rng(seed).permutation(len(names))[: limit or 50]).tolist()
    if len(drawn) < 2:
        raise EvoError("one gene alone has no other gene to stand beside; draw two or more (--limit)" if len(names) > 1 else f"{paths[1]} has one gene of 300 to {LONGEST:,} bases with {UPSTREAM} bases before it in {paths[0]}; two are needed")  # fmt: skip
    pick = Genome(
        name=genome.name,
        group="prompts and rests",
        names=tuple(f"{kind} {names[i]}" for i in drawn for kind in ("prompt", "rest")),
        records=tuple(part for i in drawn for part in (prompts[i], rests[i])),
    )
    meta = {"benchmark": benchmark.name, "files": [Path(path).name for path in paths], "notes": benchmark.notes, "genes": len(drawn), "genes_in_genome": len(names)}  # fmt: skip
    return Prepared(kind=benchmark.name, genomes=(pick,), arrays={}, meta=meta)


def run_completion(
    prepared: Prepared,
    model: StripedHyena2,
    *,
    temperature: float = 0.7,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Share of the missing amino acids that an alignment finds again in what a model writes.

    Beside it what the same alignment finds in the rest of another gene of the draw (its chance
    level), and in bases drawn with the gene's own composition. Intervals over genes.

    Args:
        prepared: Of `prepare_completion`.
        model: The model.
        temperature: Of the sampling.
        seed: Of it; each gene counts up.
        resamples: Of the bootstrap.
        progress: Called with the bases written since the last call.
    """
    from evo_toolkit.inference.generate import generate

    records = prepared.genomes[0].records
    prompts, rests = records[::2], records[1::2]
    random = np.random.default_rng(seed)
    recovered: dict[str, list[float]] = {"model": [], "another gene": [], "composition": []}
    for index, (prompt, rest) in enumerate(zip(prompts, rests, strict=True)):
        text = tokens(prompt).tobytes()
        written = generate(model, text, max_new_tokens=rest.size, temperature=temperature, seed=seed + index)  # fmt: skip
        other = rests[(index + 1) % len(rests)]
        shares = np.bincount(rest, minlength=4)[:4] / rest.size
        drawn = random.choice(4, rest.size, p=shares).astype(np.uint8)
        native = translate(rest)
        for name, codes in (("model", encode(written.encode())), ("another gene", other), ("composition", drawn)):  # fmt: skip
            recovered[name].append(recovery(native, translate(codes)))
        progress(rest.size)
    groups = np.arange(len(rests))

    def mean(values: list[float]) -> Any:
        array = np.array(values)

        def statistic(weights: Floats) -> float:
            return float(np.average(array, weights=weights))

        return bootstrap(statistic, groups, resamples=resamples).json()

    return {
        "task": prepared.kind,
        "model": model_identity(model),
        "data": dict(prepared.meta),
        "figures": {
            "metric": "recovered amino acids", "split": f"temperature {temperature}",
            "num_examples": len(rests), "num_groups": len(rests), "model_minus": {},
            "figures": {name: mean(values) for name, values in recovered.items()},
        },
    }  # fmt: skip


def translate(codes: NDArray[np.uint8]) -> str:
    """Amino acids of whole codons up to the first stop; codons with other bases than ACGT are X."""
    whole = codes[: codes.size // 3 * 3]
    known = (whole.reshape(-1, 3) < 4).all(axis=1)
    protein = AMINO_ACIDS[codons(np.where(whole < 4, whole, 0))]
    text = np.where(known, protein, ord("X")).astype(np.uint8).tobytes().decode()
    return text.partition("*")[0]


def recovery(native: str, written: str) -> float:
    """Identical amino acids of a global alignment (BLOSUM62, gaps -10 and -0.5), over the native length."""
    from Bio.Align import PairwiseAligner, substitution_matrices

    if not native or not written:
        return 0.0
    aligner = PairwiseAligner(mode="global", open_gap_score=-10, extend_gap_score=-0.5, end_gap_score=0)  # fmt: skip
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    found = aligner.align(native, written)[0]
    same = sum(
        native[a + k] == written[b + k]
        for (a, stop), (b, _) in zip(*found.aligned, strict=True)
        for k in range(stop - a)
    )
    return same / len(native)
