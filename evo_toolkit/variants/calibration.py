"""What scores of neutral substitutions look like, so that others can be set against them.

How likely a substitution is to a model depends on what is replaced by what between which neighbours,
whether or not it matters. A calibration holds, for every five bases c around a substitution and every
alternate b, the mean of the scores that neutral substitutions have there, and the distribution of
all of them:

    calibrated = score - mean(c, b)                    nats, negative: less likely than neutral ones
    quantile   = 2 F(calibrated) - 1                   -1 to 1; F the share of neutral ones below,
                                                       those equal to it counted half

Means of few are drawn towards the mean of the three inner bases, that towards the mean of the
substitution alone, and that towards the mean of all; with n scores of sum s, and k the strength:

    mean(c) = (s + k * mean(shorter c)) / (n + k)

Scores of both strands are the same for a substitution and its reverse complement, and the two are
counted together. Scores of one strand are not, and are kept apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evo_data.alphabet import BASES
from evo_data.contigs import ContigAliases
from evo_data.fasta import Fasta
from evo_data.files import atomic_output
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.variants.scores import require_same_run

FORMAT_VERSION = 1
FLANK = 2
"""Bases of context on either side."""

DEFAULT_STRENGTH = 10.0

_WIDTH = 2 * FLANK + 1
_NUM_CONTEXTS = 4**_WIDTH
_NUM_QUANTILES = 2001
_ROWS_PER_CHUNK = 200_000
_MADE_OF = ("model", "model_sha256", "window", "window_mode", "strands", "suffix")
_GZIP = (".gz", ".bgz")
_PLACE = ["chrom", "norm_pos", "norm_ref", "norm_alt"]
_CODES = np.full(256, -1, dtype=np.int64)
_CODES[[ord(base) for base in BASES]] = range(4)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Means and distribution of neutral scores.

    Attributes:
        run: What the scores were made with: model, model_sha256, window, window_mode, strands, suffix.
        column: Which score, such as "dll".
        folded: Whether a substitution counts together with its reverse complement.
        strength: k of the formula.
        counts: `[1024, 4]` neutral substitutions by context (base 4, A C G T, first base highest)
            and alternate; zero in contexts that are folded away.
        sums: `[1024, 4]` their scores' sums, nats.
        quantiles: `[2001]` of the calibrated neutral scores, evenly spaced from least to largest.
    """

    run: Mapping[str, object]
    column: str
    folded: bool
    strength: float
    counts: NDArray[np.int64]
    sums: NDArray[np.float64]
    quantiles: NDArray[np.float64]

    @property
    def num_scores(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def means(self) -> NDArray[np.float64]:
        """`[1024, 4]` drawn means, nats; those of folded contexts stand in both places."""
        return drawn_means(self.counts, self.sums, self.strength, folded=self.folded)

    def calibrated(
        self, contexts: NDArray[np.int64], alts: NDArray[np.int64], scores: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """`[n]` score minus neutral mean, nats; NaN where a context or alternate is -1."""
        known = (contexts >= 0) & (alts >= 0)
        found = np.full(len(scores), np.nan)
        means = self.means[contexts[known], alts[known]]
        found[known] = np.asarray(scores, dtype=np.float64)[known] - means
        return found

    def quantile(self, calibrated: NDArray[np.floating]) -> NDArray[np.float64]:
        """`[n]` place among the neutral ones, -1 to 1; NaN where the value is."""
        values = np.asarray(calibrated, dtype=np.float64)
        size = len(self.quantiles)
        below = np.searchsorted(self.quantiles, values, side="left")
        through = np.searchsorted(self.quantiles, values, side="right")
        share = np.interp(values, self.quantiles, np.arange(size) / (size - 1))
        # Where many are equal, interpolation takes the last of them; half of them lie below.
        equal = through - below > 1
        share = np.where(equal, (below + through - 1) / 2 / (size - 1), share)
        return np.where(np.isnan(values), np.nan, 2 * share - 1)

    def require_same_run(self, run: Mapping[str, object]) -> None:
        """Raise unless scores were made with the model, window and strands of this calibration.

        Raises:
            EvoError: naming the first difference.
        """
        require_same_run(
            "the calibration was made", self.run, run, _MADE_OF,
            "make one with the same model and options (data calibrate)",
        )  # fmt: skip

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the calibration as JSON."""
        rows = [
            [context_text(int(c)), BASES[int(a)], int(self.counts[c, a]), float(self.sums[c, a])]
            for c, a in zip(*np.nonzero(self.counts), strict=True)
        ]
        document = {
            "format_version": FORMAT_VERSION,
            "run": dict(self.run),
            "column": self.column,
            "unit": "nats",
            "folded": self.folded,
            "strength": self.strength,
            "num_scores": self.num_scores,
            "context_alt_count_sum": rows,
            "quantiles": self.quantiles.tolist(),
        }
        with atomic_output(path, force=force) as temporary:
            temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> Calibration:
        """Read a calibration.

        Raises:
            EvoError: if the file is none, or of a later version.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            version = document["format_version"]
            if version != FORMAT_VERSION:
                raise EvoError(
                    f"{path} has format version {version}; this program reads {FORMAT_VERSION}, a newer one may read it"
                )
            counts = np.zeros((_NUM_CONTEXTS, 4), dtype=np.int64)
            sums = np.zeros((_NUM_CONTEXTS, 4))
            for context, alt, count, total in document["context_alt_count_sum"]:
                place = context_index(context), BASES.index(alt)
                counts[place], sums[place] = count, total
            quantiles = np.array(document["quantiles"], dtype=np.float64)
            strength = float(document["strength"])
            if (counts < 0).any() or not (np.isfinite(sums).all() and strength >= 0):
                raise ValueError("counts and sums must be finite, counts and strength 0 or more")
            # Also false for NaN.
            if quantiles.ndim != 1 or len(quantiles) < 2 or not (np.diff(quantiles) >= 0).all():
                raise ValueError("quantiles must be numbers in rising order")
            return cls(
                run=document["run"], column=document["column"], folded=bool(document["folded"]),
                strength=strength, counts=counts, sums=sums, quantiles=quantiles,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            if isinstance(error, EvoError):
                raise
            raise EvoError(
                f"{path} is no calibration ({type(error).__name__}: {error}); make one with data calibrate"
            ) from error


def context_index(text: str) -> int:
    """Number of five bases: base 4, A C G T as digits, the first base highest.

    Raises:
        ValueError: unless they are five of A, C, G and T.
    """
    if len(text) != _WIDTH:
        raise ValueError(f"{text!r} has not {_WIDTH} bases")
    index = 0
    for base in text:
        index = 4 * index + BASES.index(base)
    return index


def context_text(index: int) -> str:
    """The five bases of a number."""
    return "".join(BASES[(index >> 2 * place) & 3] for place in reversed(range(_WIDTH)))


def context_number(bases: bytes) -> int:
    """Number of five upper-case bases as `context_index` has it; -1 if another letter is among them."""
    index = 0
    for code in _CODES[np.frombuffer(bases, np.uint8)].tolist():
        if code < 0:
            return -1
        index = 4 * index + code
    return index


def contexts_of(
    genome: Fasta, contigs: Mapping[str, str], chroms: Iterable[str], positions: Iterable[int]
) -> NDArray[np.int64]:
    """`[n]` numbers of the five bases around positions (1-based); -1 where there are none such.

    That is at the ends of a contig, beside letters other than A, C, G and T, and on contigs
    that the genome does not have.
    """
    found = []
    for chrom, pos in zip(chroms, positions, strict=True):
        contig = contigs.get(chrom)
        first, last = pos - 1 - FLANK, pos + FLANK
        if contig is None or first < 0 or last > genome.lengths[contig]:
            found.append(-1)
            continue
        found.append(context_number(genome.fetch(contig, first, last)))
    return np.array(found, dtype=np.int64)


def fold(
    contexts: NDArray[np.int64], alts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contexts and alternates with C or T in the middle: the others as their reverse complements."""
    digits = np.stack([(contexts >> 2 * place) & 3 for place in range(_WIDTH)])  # last base first
    # The complement of digit d is 3 - d; reversed, the last base becomes the first.
    mirrored = np.zeros_like(contexts)
    for digit in digits:
        mirrored = 4 * mirrored + (3 - digit)
    purine = (digits[FLANK] == 0) | (digits[FLANK] == 2)
    return np.where(purine, mirrored, contexts), np.where(purine, 3 - alts, alts)


def drawn_means(
    counts: NDArray[np.int64], sums: NDArray[np.float64], strength: float, *, folded: bool
) -> NDArray[np.float64]:
    """`[1024, 4]` means of the module's formula from counts and sums of the same shape."""
    shape = (4, 4, 4, 4, 4, 4)  # five bases and the alternate
    n, s = counts.reshape(shape).astype(np.float64), sums.reshape(shape)
    total = float(n.sum())
    mean: Any = float(s.sum()) / total if total else 0.0
    # The substitution, with its neighbours, with theirs.
    for inner in ((0, 1, 3, 4), (0, 4), ()):
        count, sum_ = n.sum(axis=inner, keepdims=True), s.sum(axis=inner, keepdims=True)
        with np.errstate(invalid="ignore"):
            drawn = (sum_ + strength * mean) / (count + strength)
        mean = np.where(count + strength > 0, drawn, mean)
    means: NDArray[np.float64] = np.broadcast_to(mean, shape).reshape(_NUM_CONTEXTS, 4)
    if folded:
        every = np.arange(_NUM_CONTEXTS)[:, None] + np.zeros((1, 4), dtype=np.int64)
        alts = np.arange(4)[None, :] + np.zeros((_NUM_CONTEXTS, 1), dtype=np.int64)
        contexts, others = fold(every.ravel(), alts.ravel())
        means = means[contexts, others].reshape(_NUM_CONTEXTS, 4)
    return means


@dataclass(frozen=True, slots=True)
class ScoredTable:
    """A table of `evo-toolkit score`, TSV or Parquet.

    Attributes:
        path: The file.
        run: What its scores were made with.
    """

    path: Path
    run: Mapping[str, object]

    def chunks(self, columns: list[str]) -> Iterator[pd.DataFrame]:
        """These columns, some hundred thousand rows at a time.

        Raises:
            EvoError: if the table does not have them.
        """
        try:
            if self.path.suffix == ".parquet":
                import pyarrow.parquet as pq

                with pq.ParquetFile(self.path) as file:
                    for batch in file.iter_batches(_ROWS_PER_CHUNK, columns=columns):
                        yield batch.to_pandas()
                return
            # Only the run's own lines are skipped: the header begins with one # itself.
            skip = _num_notes(self.path)
            yield from pd.read_csv(
                self.path, sep="\t", skiprows=skip, chunksize=_ROWS_PER_CHUNK, na_values=["."],
                keep_default_na=False,
                compression="gzip" if self.path.suffix in _GZIP else None,
                usecols=lambda name: name.removeprefix("#") in columns,
                dtype={"#chrom": str, "norm_ref": str, "norm_alt": str},
            )  # fmt: skip
        except (KeyError, ValueError) as error:
            raise EvoError(
                f"{self.path} is no table of `evo-toolkit score` ({error}); give its .tsv or .parquet"
            ) from error


def open_scored(path: Path | str) -> ScoredTable:
    """Read what a table says about its run.

    Raises:
        EvoError: if it says nothing, as other programs' tables do.
    """
    path = Path(path)
    run: dict[str, object] = {}
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            metadata = pq.read_schema(path).metadata or {}
            run = json.loads(metadata.get(b"evo_toolkit", b"{}"))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise EvoError(f"{path} cannot be read as Parquet: {error}") from error
    else:
        names = {"SHA256": "model_sha256", "Window": "window", "WindowMode": "window_mode", "Strands": "strands", "Suffix": "suffix"}  # fmt: skip
        for line in _notes(path):
            if line.startswith("##evo_toolkitModel=<"):
                found: dict[str, str] = dict(
                    re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,>]*)', line.partition("<")[2])
                )
                name = found.get("Name", found.get("ID", ""))
                run["model"] = re.sub(r"\\(.)", r"\1", name[1:-1]) if name[:1] == '"' else name
                run |= {ours: found[theirs] for theirs, ours in names.items() if theirs in found}
                run["window"] = int(found.get("Window", 0))
                if str(suffix := run.get("suffix", "")).isdecimal():
                    run["suffix"] = int(str(suffix))
    if not run.get("model"):
        raise EvoError(
            f"{path} does not say which model its scores come from; give a .tsv or .parquet of `evo-toolkit score`"
        )
    return ScoredTable(path, {key: run.get(key) for key in _MADE_OF})


def _notes(path: Path) -> Iterator[str]:
    import gzip

    opener: Any = gzip.open if path.suffix in _GZIP else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.startswith("##"):
                return
            yield line.rstrip("\n")


def _num_notes(path: Path) -> int:
    return sum(1 for _ in _notes(path))


@dataclass(frozen=True, slots=True)
class _Snvs:
    """Scored substitutions of a chunk, contexts and alternates as numbers."""

    contexts: NDArray[np.int64]
    alts: NDArray[np.int64]
    scores: NDArray[np.float64]


def _snvs(table: ScoredTable, column: str, genome: Fasta, folded: bool) -> Iterator[_Snvs]:
    contigs = ContigAliases(genome.lengths)
    wanted = [*_PLACE, column]
    for chunk in table.chunks(wanted):
        found = chunk.rename(columns={"#chrom": "chrom"})
        missing = [name for name in wanted if name not in found]
        if missing:
            raise EvoError(
                f"{table.path} has no column {missing[0]}; its columns should be those of `evo-toolkit score`"
            )
        # A score is there exactly where the status is ok.
        kept = found[_is_snv(found) & found[column].notna().to_numpy()]
        contexts, alts, refs = _numbers(kept, genome, contigs)
        wrong = np.flatnonzero((contexts >= 0) & ((contexts >> 2 * FLANK) & 3 != refs))
        if len(wrong):
            row = kept.iloc[int(wrong[0])]
            raise EvoError(
                f"{table.path}: {row['chrom']}:{row['norm_pos']:.0f} has REF {row['norm_ref']}, which {genome.path} does not hold there; use the genome that was scored"
            )
        known = contexts >= 0
        contexts, alts = contexts[known], alts[known]
        if folded:
            contexts, alts = fold(contexts, alts)
        yield _Snvs(contexts, alts, kept[column].to_numpy(np.float64)[known])


def _is_snv(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are substitutions of one base, whatever bases their record has beside it."""
    ref, alt = table["norm_ref"], table["norm_alt"]
    bases = list(BASES)
    found: NDArray[np.bool_] = (ref.isin(bases) & alt.isin(bases)).to_numpy() & (
        ref.astype(object) != alt.astype(object)
    ).to_numpy()
    return found


def _numbers(
    snvs: pd.DataFrame, genome: Fasta, contigs: Mapping[str, str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Contexts, alternates and references of substitutions, as numbers."""
    positions = snvs["norm_pos"].astype(int)
    contexts = contexts_of(genome, contigs, snvs["chrom"].astype(str), positions)
    return contexts, _codes(snvs["norm_alt"]), _codes(snvs["norm_ref"])


def _codes(letters: pd.Series[str]) -> NDArray[np.int64]:
    text = "".join(letters.astype(str)).encode()
    found: NDArray[np.int64] = _CODES[np.frombuffer(text, np.uint8)]
    return found


def calibrate(
    tables: Iterable[Path | str],
    genome: Fasta,
    *,
    column: str = "dll",
    strength: float = DEFAULT_STRENGTH,
) -> Calibration:
    """Return the calibration that neutral substitutions give.

    Args:
        tables: Of `evo-toolkit score`, all of one model, window and strands. Only substitutions of
            one base with a score count; whoever gives them says that they are neutral.
        genome: The reference of the scores.
        column: Which score.
        strength: k of the module's formula, 0 or more.

    Raises:
        UsageError: for a negative strength.
        EvoError: if a table is none of ours, the tables differ in model or options, the genome
            is another one, or no substitution has a score.
    """
    if not (strength >= 0 and math.isfinite(strength)):
        raise UsageError(f"strength {strength} is not possible; give 0 or more")
    opened = [open_scored(path) for path in tables]
    if not opened:
        raise UsageError("no table was given; give one or more of `evo-toolkit score`")
    run = opened[0].run
    folded = run.get("strands") == "both"
    counts = np.zeros((_NUM_CONTEXTS, 4), dtype=np.int64)
    sums = np.zeros((_NUM_CONTEXTS, 4))
    empty = Calibration(run, column, folded, strength, counts, sums, np.zeros(1))
    parts: list[_Snvs] = []
    for table in opened:
        empty.require_same_run(table.run)
        for snvs in _snvs(table, column, genome, folded):
            np.add.at(counts, (snvs.contexts, snvs.alts), 1)
            np.add.at(sums, (snvs.contexts, snvs.alts), snvs.scores)
            parts.append(snvs)
    if not counts.sum():
        raise EvoError(
            "no substitution of one base has a score in these tables; nothing can be calibrated"
        )
    # Only now: counts and sums were filled in place.
    means = empty.means
    calibrated = np.concatenate([p.scores - means[p.contexts, p.alts] for p in parts])
    quantiles = np.quantile(calibrated, np.linspace(0, 1, _NUM_QUANTILES))
    return replace(empty, quantiles=quantiles)


def apply_calibration(table: pd.DataFrame, calibration: Calibration, genome: Fasta) -> pd.DataFrame:
    """Return a scored table with the columns `c` + column (nats) and `quantile` added.

    Both are missing for alleles that are no substitution of one base, have no score, or stand
    beside a letter other than A, C, G and T. Whether the scores were made like those of the
    calibration is for the caller to check (`require_same_run`).

    Args:
        table: As `evo_toolkit.score_variants` returns it.
    """
    scores = table[calibration.column].to_numpy(np.float64)
    snv = _is_snv(table)
    contexts = np.full(len(table), -1, dtype=np.int64)
    alts = np.full(len(table), -1, dtype=np.int64)
    contexts[snv], alts[snv], _ = _numbers(table[snv], genome, ContigAliases(genome.lengths))
    values = calibration.calibrated(contexts, alts, scores)
    return table.assign(
        **{f"c{calibration.column}": values, "quantile": calibration.quantile(values)}
    )
