"""Named sets of options, so that published figures can be reproduced by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        # Brixi et al., Evo 2, notebook on BRCA1: for the SNV at p, 0-based, both windows are the
        # bases [p - 4096, p + 4096) of the forward strand, scored without a begin token by the mean
        # log-probability of 8,191 tokens. `dmean` is the difference of the two means.
        "evo2-paper": MappingProxyType(
            {"window": 8192, "window_mode": "full", "strands": "fwd", "suffix": "full"}
        ),
    }
)
"""The options that each preset sets, by the name of their parameter."""
