"""Writing variant files whole or not at all."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

from evo_data.errors import VcfError
from evo_data.files import atomic_output


class VcfWriter:
    """Writes lines; thin slice: text only."""

    def __init__(
        self, path: Path | str, *, format: str, header_lines: list[bytes], force: bool = False
    ) -> None:
        self.index_note = ""
        self._stack = ExitStack()
        self._out: IO[bytes]
        if str(path) == "-":
            self._out = sys.stdout.buffer
        else:
            temporary = self._stack.enter_context(atomic_output(path, force=force))
            self._out = self._stack.enter_context(temporary.open("wb"))
        if format != "vcf":
            raise VcfError("only vcf for now")
        for line in header_lines:
            self._out.write(line)

    def write(self, line: bytes) -> None:
        self._out.write(line)

    def close(self) -> None:
        self._out.flush()
        self._stack.close()

    def __enter__(self) -> VcfWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._stack.__exit__(kind, error, trace)
