"""Where the recipes of the package lie: beside it in a checkout, within it when installed."""

from __future__ import annotations

from pathlib import Path


def packaged_recipe(name: str | Path) -> Path | None:
    """The file that `recipes/FOLDER/NAME.yaml` names, or None where the package has no such recipe."""
    path = Path(name)
    if path.parts[:1] != ("recipes",):
        return None
    package = Path(__file__).resolve().parents[1]
    for root in (package / "_recipes", package.parent / "recipes"):
        if root.joinpath(*path.parts[1:]).is_file():
            return root.joinpath(*path.parts[1:])
    return None
