"""The methods of a scoring run: what they need of a model, and their values for each allele."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evo_data.alphabet import BASES
from evo_data.fasta import Fasta
from evo_data.files import sha256_file
from evo_data.variant import Variant
from evo_data.windows import StrandWindow
from evo_toolkit.errors import UsageError
from evo_toolkit.variants.calibration import Calibration, contexts_of
from evo_toolkit.variants.head import VariantHead, check_features, head_methods
from evo_toolkit.variants.methods import METHOD_NAMES, WindowOutputs, get_methods
from evo_toolkit.variants.reading import Wanted
from evo_toolkit.variants.scores import Column
from evo_toolkit.variants.window_runner import LogProbPair

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

SCORE_METHODS = (*METHOD_NAMES, "head")
"""What `-M` takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """What a user asks for: plain values, which can be sent to another process.

    Attributes:
        names: Of `SCORE_METHODS`.
        layers: For `embed`.
        heads: Files of heads (`evo_toolkit.variants.head`); they imply the method `head`.
        calibration: File of `evo-toolkit data calibrate`, or None.

    Raises:
        UsageError: for an unknown name, or options that do not go together.
    """

    names: tuple[str, ...] = ("delta",)
    layers: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    calibration: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in SCORE_METHODS]
        if unknown:
            raise UsageError(f"method {unknown[0]!r} is not known; use {', '.join(SCORE_METHODS)}")
        if "head" in self.names and not self.heads:
            raise UsageError("the method head needs a fitted head; name its file with --head")
        names = self.names if not self.heads or "head" in self.names else (*self.names, "head")
        object.__setattr__(self, "names", tuple(dict.fromkeys(names)))
        get_methods([name for name in self.names if name != "head"], self.layers)


class AlleleMethods:
    """Methods beside the sums of `scores`, ready to be applied.

    Attributes:
        names: Of all methods, `delta` among them if it was asked for.
        delta: Whether it was.
        columns: What is added to every allele, in order.
        wanted: What must be read of windows.
        calibration: sha256 of the calibration, or None.
        heads: Name and sha256 of every head.
    """

    def __init__(self, options: MethodOptions, model: StripedHyena2) -> None:
        """Read the files that the options name.

        Raises:
            EvoError: for a file that is not what it should be, or a head of another model.
            UsageError: for a calibration of a score that is not computed.
        """
        self.names = options.names
        self.delta = "delta" in options.names
        # The sums of `delta` are columns of every table.
        plain = [name for name in options.names if name not in ("delta", "head")]
        heads = [VariantHead.load(path) for path in options.heads]
        for head in heads:
            check_features(head, model)
        self._heads = heads
        self._methods = get_methods(plain, options.layers) + head_methods(heads)
        self._calibration = None
        self.calibration = None
        self.columns: tuple[Column, ...] = tuple(c for m in self._methods for c in m.columns)
        if options.calibration is not None:
            self._calibration = Calibration.load(options.calibration)
            self.calibration = sha256_file(options.calibration)
            self._require_column(self._calibration.column)
            self.columns += calibration_columns(self._calibration.column)
        self.heads = tuple((head.name, head.digest) for head in heads)
        layers = dict.fromkeys(layer for m in self._methods for layer in m.layers)
        self.wanted = Wanted(
            bases=any(m.bases for m in self._methods),
            layers=tuple(layers),
            alternate=self.delta or any(m.alternate for m in self._methods),
        )

    def _require_column(self, column: str) -> None:
        known = {c.name for c in self.columns} | (_OF_DELTA if self.delta else set())
        if column not in known:
            raise UsageError(
                f"the calibration is of {column}, which this run does not compute; add its method with -M, or make a calibration of {', '.join(sorted(known))}"
            )

    def require_same_run(self, run: Mapping[str, object]) -> None:
        """Raise unless calibration and heads were made with what this run is made with.

        Args:
            run: Values of `evo_toolkit.variants.scores.RunInfo`.

        Raises:
            EvoError: naming the first difference.
        """
        if self._calibration is not None:
            self._calibration.require_same_run(run)
        for head in self._heads:
            head.require_same_run(run)

    def values(
        self, windows: Sequence[StrandWindow], pairs: Sequence[LogProbPair]
    ) -> dict[str, float | None]:
        """Values of one allele by column name; those of the calibration are not among them.

        Args:
            windows: Of each strand.
            pairs: What was read of them.
        """
        outputs = [
            WindowOutputs(
                window=window, log_probs_ref=pair.ref, log_probs_alt=pair.alt,
                bases_ref=pair.bases_ref, bases_alt=pair.bases_alt,
                layers_ref=pair.layers_ref, layers_alt=pair.layers_alt,
            )
            for window, pair in zip(windows, pairs, strict=True)
        ]  # fmt: skip
        found: dict[str, float | None] = {}
        for method in self._methods:
            found.update(method(outputs))
        return found

    def calibrated(
        self,
        variant: Variant,
        scores: Mapping[str, float | None],
        genome: Fasta,
        contigs: Mapping[str, str],
    ) -> dict[str, float | None]:
        """The calibration's two columns of one allele, missing where it has none.

        Args:
            variant: Normalised.
            scores: All of the allele's scores by column name.
        """
        calibration = self._calibration
        if calibration is None:
            return {}
        names = [column.name for column in calibration_columns(calibration.column)]
        score = scores.get(calibration.column)
        ref, alt = variant.ref, variant.alt
        if score is None or ref == alt or {ref, alt} - set(BASES):
            return dict.fromkeys(names)
        context = contexts_of(genome, contigs, [variant.contig], [variant.pos])
        value = calibration.calibrated(context, np.array([BASES.index(alt)]), np.array([score]))
        quantile = calibration.quantile(value)
        both = (float(value[0]), float(quantile[0]))
        return {n: None if np.isnan(v) else v for n, v in zip(names, both, strict=True)}


_OF_DELTA = {"dll", "dll_fwd", "dll_rc", "dmean", "llr", "dll_allele", "dll_flank"}


def calibration_columns(column: str) -> tuple[Column, Column]:
    """What a calibration of a score adds to it."""
    return (
        Column(
            f"c{column}",
            f"{column} minus its mean over neutral substitutions with the same alternate between the same four neighbours; single-base substitutions only",
            "nats",
        ),
        Column(
            "quantile",
            f"Place of c{column} among those of neutral substitutions, -1 (below all) to 1 (above all)",
            "",
        ),
    )
