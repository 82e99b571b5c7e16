"""Bases as small integers: A, C, G, T in either case are 0 to 3, everything else is 4."""

from __future__ import annotations

import numpy as np

OTHER = 4
"""Code of everything that is not A, C, G or T."""

CODES = np.full(256, OTHER, np.uint8)
"""Code of each byte."""
for _code, _letters in enumerate((b"Aa", b"Cc", b"Gg", b"Tt")):
    CODES[list(_letters)] = _code
