"""Safetensors files that are the same bytes every time."""

from __future__ import annotations

import json


def in_order(data: bytes) -> bytes:
    """A safetensors file whose metadata stand in alphabetical order: the library's order is drawn anew each time."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
