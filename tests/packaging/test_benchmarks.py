"""The benchmark scripts import what they name, on a machine without a GPU too."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "kernels" / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_starts(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))  # as `python FILE` does
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    for script in SCRIPTS:  # others' modules of such a name stay what they are
        monkeypatch.delitem(sys.modules, script, raising=False)
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out
