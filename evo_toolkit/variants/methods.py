"""Ways to compare an alternate with the reference, beside the sums of `scores`: formulas and columns.

Notation of `scores`: on one strand, in reading direction, `r` and `a` are the reference and the
alternate window of equal length W, `f` the fork, the first position at which they differ.
`p_x[t, b]` is the model's probability of base b at position t of window x, given `x[0..t-1]`, and
`q_x[t, b] = p_x[t, b] / sum over A, C, G, T` the same among the four bases alone. Natural logarithms:
nats. Alternate minus reference: positive means that the alternate is MORE likely.

    delta      dll     = sum_{t >= f} log p_a[t, a[t]] - sum_{t >= f} log p_r[t, r[t]]
               dmean   = dll / (W - 1)
    marginal   marg    = log p_r[f, a[f]] - log p_r[f, r[f]]
    entropy    ent_ref = H(q_r[f]),  H(q) = -sum_b q[b] log q[b]
    jsd        jsd     = sum over aligned flank positions of D(q_r[i], q_a[j]), nats
               jsd_max = the largest of them
               D(u, v) = H((u + v) / 2) - (H(u) + H(v)) / 2, between 0 and log 2
    shift      shift   = mean over the 3rd to the 96th aligned flank position of
                         |log p_a(a[j]) - log p_r(r[i])|
    embed      l2      = |e_a - e_r|,  cos = 1 - e_a.e_r / (|e_a| |e_r|)
               e_x     = mean over t >= f of the layer's output at t

`marg` needs the reference window alone, which every allele that parts from it at f shares; for an
insertion, deletion or multi-nucleotide change it judges the first base that differs. It is the
`llr` of `scores`, and missing when f is 0 or one of the two bases is none of A, C, G and T. `ent_ref` is about
the reference too.

The aligned flank of `jsd` and `shift` is every base of the genome behind the allele that both windows hold: i
runs from the end of the reference allele, j from that of the alternate one, side by side.

The two strands are averaged, a strand without a value left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import BASES
from evo_data.windows import StrandWindow
from evo_toolkit.errors import UsageError
from evo_toolkit.variants.scores import Column, strand_score

BASE_TOKENS = {ord(base): index for index, base in enumerate(BASES)}
"""The column of each base's token wherever bases are columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOutputs:
    """What a model says about the two windows of one allele on one strand.

    Arrays of the alternate are None where no method asked for them (`Method.alternate`).

    Attributes:
        window: The windows; everything below is in their reading direction, entry t about token t.
        log_probs_ref: `[W]` log-probability of each token given those before it, nats; entry 0 is NaN.
        log_probs_alt: The same for the alternate window.
        bases_ref: `[W, 4]` log-probability of A, C, G, T at each position, nats; row 0 is NaN.
        bases_alt: The same for the alternate window.
        layers_ref: Mean output of each layer asked for over the positions from the fork on, `[C]`.
        layers_alt: The same for the alternate window.
    """

    window: StrandWindow
    log_probs_ref: NDArray[np.float32] | None = None
    log_probs_alt: NDArray[np.float32] | None = None
    bases_ref: NDArray[np.float32] | None = None
    bases_alt: NDArray[np.float32] | None = None
    layers_ref: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    layers_alt: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


Values = tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to turn window outputs into values.

    Attributes:
        name: What a user calls it (`-M`).
        columns: What it yields, in order.
        strand_values: Values of one strand, one per column, None where there is none.
        log_probs: Whether it reads the log-probabilities of the tokens.
        bases: Whether it reads those of the four bases.
        layers: Layers whose outputs it reads (names as for `embed`).
        alternate: Whether it reads the alternate window at all.
        finish: Turns the means of the strands into the values of the columns; None leaves them.
    """

    name: str
    columns: tuple[Column, ...]
    strand_values: Callable[[WindowOutputs], Values]
    log_probs: bool = False
    bases: bool = False
    layers: tuple[str, ...] = ()
    alternate: bool = True
    finish: Callable[[Values], Values] | None = None

    def __call__(self, strands: Sequence[WindowOutputs]) -> dict[str, float | None]:
        """Values of one allele by column name: the mean of the strands that have one."""
        per_strand = [self.strand_values(outputs) for outputs in strands]
        means: list[float | None] = []
        for index in range(len(self.columns)):
            values = [v for row in per_strand if (v := row[index]) is not None]
            means.append(sum(values) / len(values) if values else None)
        found = tuple(means) if self.finish is None else self.finish(tuple(means))
        return {column.name: value for column, value in zip(self.columns, found, strict=True)}


METHOD_NAMES = ("delta", "marginal", "entropy", "jsd", "shift", "embed")

SHIFT_FROM, SHIFT_TO = 2, 96
"""Bases behind an allele, counted from 0, that `shift` looks at: past the codon, before the noise."""


def get_methods(names: Sequence[str], layers: Sequence[str] = ()) -> list[Method]:
    """Return the methods of these names, each once, in the order of first mention.

    `head` has none of its own: `evo_toolkit.variants.head.head_methods` makes them of heads.

    Args:
        names: Of `METHOD_NAMES`.
        layers: For `embed`: names of layers, at least one.

    Raises:
        UsageError: for an unknown name, `embed` without a layer, or layers without `embed`.
    """
    unknown = [name for name in names if name not in METHOD_NAMES]
    if unknown:
        raise UsageError(f"method {unknown[0]!r} is not known; use {', '.join(METHOD_NAMES)}")
    if layers and "embed" not in names:
        raise UsageError(f"layer {layers[0]!r} is for the method embed; ask for it too")
    if "embed" in names and not layers:
        raise UsageError("the method embed needs a layer; name one, such as blocks.4")
    return [
        embed_method(layers) if name == "embed" else _METHODS[name] for name in dict.fromkeys(names)
    ]


def entropy(log_probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy of the four bases' probabilities divided by their sum: `[..., 4]` to `[...]`, nats.

    NaN where the log-probabilities are.
    """
    return _entropy_of(four_way(log_probs))


def four_way(log_probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities of the four bases divided by their sum: `[..., 4]` to `[..., 4]`."""
    values = np.asarray(log_probs, dtype=np.float64)
    odds = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = odds / odds.sum(axis=-1, keepdims=True)
    return shares


def jensen_shannon(
    log_probs_u: NDArray[np.floating], log_probs_v: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Divergence D of two rows of distributions over the bases: `[..., 4]` twice to `[...]`, nats."""
    u, v = four_way(log_probs_u), four_way(log_probs_v)
    divergence = _entropy_of((u + v) / 2) - (_entropy_of(u) + _entropy_of(v)) / 2
    # Rounding leaves -1e-17 where the two are the same.
    return np.maximum(divergence, 0.0)


def marginal(log_probs: NDArray[np.floating], ref: int, alt: int) -> float | None:
    """`marg` of one site from the `[4]` log-probabilities there and two tokens; None if missing."""
    if ref not in BASE_TOKENS or alt not in BASE_TOKENS:
        return None
    value = float(log_probs[BASE_TOKENS[alt]]) - float(log_probs[BASE_TOKENS[ref]])
    return None if np.isnan(value) else value


def flank(window: StrandWindow) -> tuple[slice, slice]:
    """Positions of the bases behind the allele that both windows hold, in `ref` and in `alt`."""
    width = len(window.ref)
    first, second = window.ref_allele[1], window.alt_allele[1]
    size = width - max(first, second)
    return slice(first, first + size), slice(second, second + size)


def _entropy_of(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares == 0, 0.0, shares * np.log(shares))
    total: NDArray[np.float64] = -terms.sum(axis=-1)
    return total


def _given(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    assert values is not None, "the method asked for more than it was given"
    return values


def _delta(outputs: WindowOutputs) -> Values:
    score = strand_score(
        outputs.window, _given(outputs.log_probs_ref), _given(outputs.log_probs_alt)
    )
    return score.dll, score.dll / (score.window - 1)


def _site(window: StrandWindow) -> int | None:
    """The fork, unless it has no prediction or the windows are equal."""
    return window.fork if 1 <= window.fork < len(window.ref) else None


def _marginal(outputs: WindowOutputs) -> Values:
    window, site = outputs.window, _site(outputs.window)
    if window.fork >= len(window.ref):
        return (0.0,)
    if site is None:
        return (None,)
    bases = _given(outputs.bases_ref)
    return (marginal(bases[site], int(window.ref[site]), int(window.alt[site])),)


def _reference_entropy(outputs: WindowOutputs) -> Values:
    site = _site(outputs.window)
    return (None,) if site is None else (float(entropy(_given(outputs.bases_ref)[site])),)


def _jsd(outputs: WindowOutputs) -> Values:
    ref, alt = flank(outputs.window)
    bases_ref, bases_alt = _given(outputs.bases_ref)[ref], _given(outputs.bases_alt)[alt]
    # Where alleles were read to one length, an indel leaves one of them a shorter flank.
    size = min(len(bases_ref), len(bases_alt))
    found = jensen_shannon(bases_ref[:size], bases_alt[:size])
    # The first position of a window has no prediction.
    found = found[~np.isnan(found)]
    return (float(found.sum()), float(found.max())) if len(found) else (None, None)


def _shift(outputs: WindowOutputs) -> Values:
    ref, alt = flank(outputs.window)
    of_ref, of_alt = _given(outputs.log_probs_ref)[ref], _given(outputs.log_probs_alt)[alt]
    size = min(len(of_ref), len(of_alt), SHIFT_TO)
    part = slice(SHIFT_FROM, size)
    moved = np.abs(of_alt[part].astype(np.float64) - of_ref[part])
    moved = moved[~np.isnan(moved)]
    return (float(moved.mean()),) if len(moved) else (None,)


def _embed(outputs: WindowOutputs, *, layers: tuple[str, ...]) -> Values:
    values: list[float | None] = []
    for layer in layers:
        if outputs.window.fork >= len(outputs.window.ref):
            values += [0.0, 0.0]
            continue
        ref, alt = (
            np.asarray(found[layer], dtype=np.float64)
            for found in (outputs.layers_ref, outputs.layers_alt)
        )
        size = float(np.linalg.norm(ref) * np.linalg.norm(alt))
        values += [
            float(np.linalg.norm(alt - ref)),
            1.0 - float(alt @ ref) / size if size else None,
        ]
    return tuple(values)


def embed_method(layers: Sequence[str]) -> Method:
    """The method `embed` at these layers."""
    columns = []
    for layer in layers:
        columns += [
            Column(
                f"embed_l2_{layer}",
                f"Euclidean distance of the mean output of {layer} from the fork to the end of the window, alternate against reference, mean of the scored strands",
                "",
            ),
            Column(
                f"embed_cos_{layer}",
                f"1 minus the cosine of the same two means of {layer}; 0 is the same direction",
                "",
            ),
        ]
    return Method(
        name="embed",
        columns=tuple(columns),
        strand_values=partial(_embed, layers=tuple(layers)),
        layers=tuple(layers),
    )


_METHODS = {
    "delta": Method(
        name="delta",
        columns=(
            Column(
                "dll",
                "Alternate minus reference log-likelihood, summed from the variant to the end of the window, mean of the scored strands; positive means the alternate is MORE likely to the model",
                "nats",
            ),
            Column("dmean", "dll divided by (window - 1)", "nats per base"),
        ),
        strand_values=_delta,
        log_probs=True,
    ),
    "marginal": Method(
        name="marginal",
        columns=(
            Column(
                "marg",
                "Log ratio of the alternate's to the reference's first base that differs, given the bases before it, from the reference window alone, mean of the scored strands; positive means the alternate is MORE likely to the model",
                "nats",
            ),
        ),
        strand_values=_marginal,
        bases=True,
        alternate=False,
    ),
    "entropy": Method(
        name="entropy",
        columns=(
            Column(
                "ent_ref",
                "Entropy of the model's prediction among A, C, G and T where the alleles part, reference window, mean of the scored strands; 0 (certain) to 1.386 (a guess)",
                "nats",
            ),
        ),
        strand_values=_reference_entropy,
        bases=True,
        alternate=False,
    ),
    "jsd": Method(
        name="jsd",
        columns=(
            Column(
                "jsd",
                "Jensen-Shannon divergence between the predictions among A, C, G and T with reference and alternate, summed over the bases behind the allele, mean of the scored strands; 0 or more",
                "nats",
            ),
            Column("jsd_max", "The largest divergence at one base; at most 0.693", "nats"),
        ),
        strand_values=_jsd,
        bases=True,
    ),
    "shift": Method(
        name="shift",
        columns=(
            Column(
                "shift",
                "How far the variant moves the log-probability of a base behind it, whichever way: mean of |change| over the third to the 96th base behind the allele, mean of the scored strands; 0 or more",
                "nats per base",
            ),
        ),
        strand_values=_shift,
        log_probs=True,
    ),
}
