"""The layout is fixed: three source roots, data-only recipes, nothing else at the top."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

FIXED = {
    "pyproject.toml", "evo_toolkit", "kernels", "data", "recipes", "tests", "docs", "CHANGELOG.md",
    "README.md", "LICENSE", "Makefile",
}  # fmt: skip


def _tracked(root: Path) -> list[str]:
    done = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_top_level_names(project_root: Path) -> None:
    top = {name.split("/")[0] for name in _tracked(project_root)}
    assert {name for name in top if not name.startswith(".")} == FIXED


def test_source_roots_are_no_packages(project_root: Path) -> None:
    for folder in ("kernels", "data", "recipes", "tests"):
        assert not (project_root / folder / "__init__.py").exists(), folder
    for package in ("evo_toolkit", "kernels/evo_kernels", "data/evo_data"):
        assert (project_root / package / "__init__.py").is_file()
        assert (project_root / package / "py.typed").is_file()


def test_wheel_holds_the_three_packages_and_the_recipes(project_root: Path) -> None:
    configuration = tomllib.loads((project_root / "pyproject.toml").read_text())
    wheel = configuration["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["evo_toolkit", "kernels/evo_kernels", "data/evo_data"]
    assert wheel["force-include"] == {"recipes": "evo_toolkit/_recipes"}


def test_no_test_module_name_is_used_twice(project_root: Path) -> None:
    names = [
        Path(n).name
        for n in _tracked(project_root)
        if Path(n).name.startswith("test_") and n.endswith(".py")
    ]
    assert len(names) == len(set(names))


def test_nothing_of_the_reference_library_is_tracked(project_root: Path) -> None:
    assert not [n for n in _tracked(project_root) if n.startswith(("shared/", "../"))]


def test_constraints(project_root: Path) -> None:
    cpu = (project_root / ".ci/constraints-cpu.txt").read_text().splitlines()
    assert {"torch==2.13.0", "triton==3.6.0", "numpy<2.4"} <= set(cpu)
    cuda = (project_root / ".ci/constraints-cuda.txt").read_text().splitlines()
    assert not [line for line in cuda if line.startswith("triton")]
