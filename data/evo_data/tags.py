"""Phylogenetic tags and control letters within sequences, which are no bases to be predicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evo_data.tokenizer import ByteTokenizer

EOD = ByteTokenizer.eod_id

_SPAN_ENDS = np.zeros(256, bool)
_SPAN_ENDS[[ord("|"), EOD]] = True
_IN_TAGS = np.zeros(256, bool)
_IN_TAGS[[ord(c) for c in "_; "]] = True
_CONTROL = np.zeros(256, bool)
_CONTROL[[*b"|_; @#", EOD]] = True


def has_control_letters(tokens: NDArray[np.uint8]) -> bool:
    """Return whether a sequence holds a letter of a tag, a control letter or an EOD."""
    return bool(_CONTROL[tokens].any())


def tag_mask(tokens: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where a sequence holds control letters and phylogenetic tags instead of bases.

    These are `@` and `#`, bars, and everything between two bars (or a bar and an EOD or an end, for
    a tag that was cut) in which an underscore, a semicolon or a blank stands.

    Args:
        tokens: Bytes, `[N]`, in either case.

    Returns:
        bool `[N]`.

    Source: savanna, `mask_loss_control_tags`.
    """
    ends = _SPAN_ENDS[tokens]
    span = np.cumsum(ends)
    is_tag = np.zeros(int(span[-1]) + 1 if span.size else 1, bool)
    is_tag[span[_IN_TAGS[tokens]]] = True
    letters = (tokens == ord("@")) | (tokens == ord("#")) | (tokens == ord("|"))
    return letters | (is_tag[span] & ~ends)
