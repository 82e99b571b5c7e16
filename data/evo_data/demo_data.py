"""The demo input that ships with the package: a chloroplast genome and variants of two genes."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "demo"


def demo_file(name: str) -> Path:
    """Return the path of a shipped demo file.

    The files are `NC_000932.fa` with its `.fai`, `NC_000932.gff3` and `rbcL_psbA.vcf`, made from
    the Arabidopsis chloroplast record NC_000932.1; `PROVENANCE.md` says how.

    Args:
        name: Name of the file, without a folder.

    Returns:
        Where it lies. The folder may be read-only.

    Raises:
        FileNotFoundError: if there is no such demo file; the message lists those that there are.
    """
    path = _FOLDER / name
    if Path(name).name != name or not path.is_file():
        present = sorted(p.name for p in _FOLDER.iterdir()) if _FOLDER.is_dir() else []
        raise FileNotFoundError(
            f"no demo file {name!r} in {_FOLDER}; choose one of {', '.join(present)}"
            if present
            else f"the demo files are missing from {_FOLDER}; reinstall evo-toolkit"
        )
    return path
