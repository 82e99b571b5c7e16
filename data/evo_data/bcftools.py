"""The bcftools that pysam carries, in processes of its own.

There a crash ends no run of ours (expressions that divide by zero do so: `AF<0.01` where the header
defines no AF and there are no samples to count), and static variables hold nothing of the run before.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Sequence

from evo_data.errors import EvoDataError

_PROGRAM = """
import sys
import pysam, pysam.bcftools
pysam.set_verbosity(0)
try:
    getattr(pysam.bcftools, sys.argv[1])(*sys.argv[2:], catch_stdout=False)
except pysam.SamtoolsError as error:
    sys.exit(str(error))
"""
_MOST_LETTERS = 300


class BcftoolsError(EvoDataError):
    """What bcftools says against its input, on one line."""


def run_bcftools(command: str, arguments: Sequence[str]) -> None:
    """Run a command of bcftools that writes to a file (`-o`).

    Args:
        command: Such as "view".
        arguments: Its arguments.

    Raises:
        BcftoolsError: if it fails, with its own words, or ends by a signal.
    """
    line = [sys.executable, "-c", _PROGRAM, command, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise BcftoolsError(
            f"bcftools crashed ({name})"
            + ("; does the header define every tag that is asked for?" if name == "SIGFPE" else "")
        )
    if done.returncode:
        raise BcftoolsError(_said(done.stderr) or _said(done.stdout) or "refused without a reason")


def _said(text: str) -> str:
    """The part of a message that tells."""
    text = text.replace("\\n", "\n")
    text = re.sub(r"^.*?stderr=", "", text, flags=re.DOTALL)
    lines = [line.strip().strip("'\"") for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("[W::"))[:_MOST_LETTERS]
