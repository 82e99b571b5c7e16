"""The byte tokenizer of the Evo models: a token is a byte."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


class ByteTokenizer:
    """Turns text into its UTF-8 bytes and back.

    The vocabulary has 512 entries, of which text uses 256. No case is changed: `a` and `A` are
    different tokens, and the models know upper case, so genomes are upper-cased where they are
    read (`evo_data.fasta`).
    """

    vocab_size: ClassVar[int] = 512
    eod_id: ClassVar[int] = 0
    eod: ClassVar[int] = 0
    eos: ClassVar[int] = 0
    pad_id: ClassVar[int] = 1

    def encode(self, text: str | bytes) -> NDArray[np.uint8]:
        """Return the token ids of a text, `[number of UTF-8 bytes]`."""
        data = text.encode("utf-8") if isinstance(text, str) else bytes(text)
        return np.frombuffer(data, dtype=np.uint8).copy()

    def decode(self, ids: Iterable[int]) -> str:
        """Return one character per id: `chr` of the id, clamped to 32 to 512.

        The clamp makes every id printable, so ids of control bytes (0 and 1 among them) come back
        as blanks. Ids of multi-byte characters come back as one character per byte.
        """
        return "".join(chr(max(32, min(int(token), 512))) for token in ids)
