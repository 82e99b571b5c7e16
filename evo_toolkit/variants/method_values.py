"""Values of `methods` for variants, computed with whole windows; and `marginal` many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo_data.interval import Interval
from evo_data.variant import Variant
from evo_data.windows import StrandWindow
from evo_toolkit.errors import UsageError
from evo_toolkit.inference.embed import embed
from evo_toolkit.variants.methods import BASE_TOKENS, Method, WindowOutputs
from evo_toolkit.variants.positions import PositionModel, Positions
from evo_toolkit.variants.track import Track

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2


def method_values(
    model: StripedHyena2, alleles: Sequence[Sequence[StrandWindow]], methods: Sequence[Method]
) -> list[dict[str, float | None]]:
    """Values of every method for alleles, by column name.

    Equal windows are run once, and alternate windows only where a method reads them. Everything
    about the windows is held at once: call with some hundred alleles at a time.

    Args:
        alleles: The windows of each allele, one per strand (`evo_data.windows.variant_windows`).
        methods: What to compute.
    """
    runs = [m for m in methods if m.log_probs or m.bases]
    rows: dict[bytes, NDArray[np.uint8]] = {}
    for windows in alleles:
        for window in windows:
            if runs:
                rows.setdefault(window.ref.tobytes(), window.ref)
            if any(m.alternate for m in runs):
                rows.setdefault(window.alt.tobytes(), window.alt)
    positions = PositionModel(model, bases=any(m.bases for m in runs))
    said = dict(zip(rows, positions(list(rows.values())), strict=True)) if rows else {}
    layers = list(dict.fromkeys(layer for m in methods for layer in m.layers))
    pooled = _pooled(model, alleles, layers) if layers else {}

    def outputs(window: StrandWindow) -> WindowOutputs:
        ref, alt = window.ref.tobytes(), window.alt.tobytes()
        nothing: Positions | None = None
        of_ref, of_alt = said.get(ref, nothing), said.get(alt, nothing)
        return WindowOutputs(
            window=window,
            log_probs_ref=None if of_ref is None else of_ref.log_probs,
            log_probs_alt=None if of_alt is None else of_alt.log_probs,
            bases_ref=None if of_ref is None else of_ref.bases,
            bases_alt=None if of_alt is None else of_alt.bases,
            layers_ref=pooled.get((ref, window.fork), {}),
            layers_alt=pooled.get((alt, window.fork), {}),
        )

    found = []
    for windows in alleles:
        strands = [outputs(window) for window in windows]
        values: dict[str, float | None] = {}
        for method in methods:
            values.update(method(strands))
        found.append(values)
    return found


def _pooled(
    model: StripedHyena2, alleles: Sequence[Sequence[StrandWindow]], layers: Sequence[str]
) -> dict[tuple[bytes, int], dict[str, NDArray[np.float32]]]:
    """Mean outputs of layers from the fork on, by window and fork."""
    wanted = dict.fromkeys(
        (tokens.tobytes(), window.fork)
        for windows in alleles
        for window in windows
        if window.fork < len(window.ref)
        for tokens in (window.ref, window.alt)
    )
    masks = [np.arange(len(tokens)) >= fork for tokens, fork in wanted]
    found = embed(model, [tokens for tokens, _ in wanted], list(layers), pool="mean", masks=masks)
    return {
        key: {layer: np.asarray(found[layer][index]) for layer in layers}
        for index, key in enumerate(wanted)
    }


class Marginal(NamedTuple):
    """`marg` of one substitution, nats: the mean of the strands that have it, and each strand."""

    mean: float | None
    fwd: float | None
    rc: float | None


def snv_marginals(track: Track, snvs: Sequence[Variant]) -> list[Marginal]:
    """`marg` of substitutions that share the windows of a track: one pass for all of a window.

    The context is that of the track's tiles, not a window centred on each variant, so values differ
    a little from those of `method_values` and cost a small part of them.

    Args:
        track: Gives windows and strands; its genome holds the contigs.
        snvs: One base each; REF as in the genome.

    Returns:
        One entry for each, in the order given; None where a base is none of A, C, G and T.

    Raises:
        UsageError: for a variant that is no substitution of one base.
    """
    for snv in snvs:
        if len(snv.ref) != 1 or len(snv.alt) != 1:
            raise UsageError(f"{snv.key} is no substitution of one base, which marginals need")
    order = {name: index for index, name in enumerate(track.genome.lengths)}
    places = sorted({(snv.contig, snv.start) for snv in snvs}, key=lambda p: (order[p[0]], p[1]))
    blocks = track.blocks([Interval(contig, start, start + 1) for contig, start in places])
    known = dict(zip(places, blocks, strict=True))

    def of_strand(snv: Variant, strand: str) -> float | None:
        bases = known[snv.contig, snv.start].bases.get(strand)
        if bases is None or ord(snv.ref) not in BASE_TOKENS or ord(snv.alt) not in BASE_TOKENS:
            return None
        row = bases[0].astype(np.float64)
        value = float(row[BASE_TOKENS[ord(snv.alt)]] - row[BASE_TOKENS[ord(snv.ref)]])
        return None if np.isnan(value) else value

    found = []
    for snv in snvs:
        fwd, rc = of_strand(snv, "+"), of_strand(snv, "-")
        values = [value for value in (fwd, rc) if value is not None]
        found.append(Marginal(sum(values) / len(values) if values else None, fwd, rc))
    return found
