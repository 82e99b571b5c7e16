"""The package is light, and names what it has."""

import subprocess
import sys
from pathlib import Path

import pytest

import evo_data


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, evo_data; print(sorted({'numpy', 'pysam', 'Bio', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    for name in evo_data.__all__:
        assert getattr(evo_data, name).__name__ == name
        assert name in dir(evo_data)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = evo_data.nothing


def test_the_example_of_the_readme_runs(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (project_root / "data" / "README.md").read_text()
    example = text.split("```python\n")[1].split("```")[0].replace("8192", "32")
    (tmp_path / "genome.fa").write_text(">c\n" + "ACGGT" * 20 + "\n")
    (tmp_path / "variants.vcf.gz").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "c\t52\t.\tC\tT,<DEL>\t.\t.\t.\n"
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example, names)
    windows = names["windows"]
    assert isinstance(windows, list)
    assert [window.fork for window in windows] == [16, 16]
