"""`evo-toolkit data` as a user meets it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evo_data.corpus import Corpus
from evo_toolkit.cli.main import cli


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, arguments)])


@pytest.fixture
def genomes(tmp_path: Path) -> Path:
    for name, text in {
        "bacteria/a.fna": ">one\n" + "ACGTTGCAAC" * 20 + "\n>two\nGGNNacca\n",
        "phage/b.fa": ">p\nGATTACA\n>q\nTGTAATC\n>r\nMSILFELQPEWLFIE\n",
    }.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path / "in"


def test_prepare_and_info(genomes: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    done = _run("prepare", genomes, "-o", output, "--packed", "--groups", "parent")
    assert done.exit_code == 0
    corpus = Corpus.open(output)
    assert corpus.encoding == "packed"
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    assert rows["genomes"] == "2 in 2 clusters"
    assert rows["records"] == "3"
    assert rows["shorter than 8,192"] == "3 records, 100.00 % of the bases"
    assert rows["bases"] == "215"
    assert rows["not A, C, G, T"] == "0.93 %"
    assert rows["soft-masked"] == "1.86 %"
    assert rows["effective bases"].startswith("213 (")
    assert rows["group phage"] == "1 genome, 7 bases, 7 effective"
    assert "Warning: 1 record left out because the sequence came before (7 bases)" in done.stderr
    assert "q (7 bases) is p of b on the other strand" in done.stderr
    assert "r: not nucleotides" in done.stderr
    assert str(output / "manifest.json") not in done.stderr
    again = _run("prepare", genomes, "-o", output, "--packed", "--groups", "parent")
    assert (again.exit_code, again.stdout) == (0, done.stdout)
    info = _run("info", output, "--verify")
    assert info.exit_code == 0
    assert info.stdout == done.stdout + "all files are as they were written\n"
    (output / "sequence.bin").write_bytes((output / "sequence.bin").read_bytes()[::-1])
    assert _run("info", output).exit_code == 0
    spoiled = _run("info", output, "--verify")
    assert spoiled.exit_code == 1
    assert spoiled.stderr.count("\n") == 1 and "sequence.bin is not as it was" in spoiled.stderr


def test_long_lists_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_text(">r\nACGT\n>x\nACC\n" * 9)
    done = _run("prepare", path, "-o", tmp_path / "c")
    assert f"and 11 more, all in {tmp_path / 'c' / 'manifest.json'}" in done.stderr
    assert done.stderr.count("\n") == 7
    assert len(json.loads((tmp_path / "c" / "manifest.json").read_text())["duplicates"]) == 16


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["{in}"], 2, "Missing option '-o'"),
        (["-o", "{out}"], 2, "Missing argument 'GENOMES...'"),
        (["{in}/absent", "-o", "{out}"], 1, "no such file or folder"),
        (["{in}", "-o", "{in}"], 2, "is also an input"),
        (["{in}", "-o", "{out}", "--groups", "no.tsv"], 1, "cannot read no.tsv"),
        (["{in}", "-o", "{out}", "--duplicates", "error"], 1, "reverse complement of record 'p'"),
        (["{in}", "-o", "{out}", "--duplicates", "maybe"], 2, "'maybe' is not one of"),
        (["{in}", "-o", "{in}/bacteria/a.fna"], 1, "is a file"),
        (["{in}", "-o", "{in}/bacteria"], 1, "holds other files"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, complaint: str, genomes: Path, tmp_path: Path
) -> None:
    given = [
        a.replace("{in}", str(genomes)).replace("{out}", str(tmp_path / "c")) for a in arguments
    ]
    done = _run("prepare", *given)
    assert done.exit_code == code
    assert complaint in done.stderr
    assert "Traceback" not in done.output
    if code == 1:
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_skipping_unusable_files(genomes: Path, tmp_path: Path) -> None:
    (genomes / "phage" / "empty.fa").write_text("")
    done = _run("prepare", genomes, "-o", tmp_path / "c")
    assert done.exit_code == 1
    assert "give --skip-unusable" in done.stderr and done.stderr.count("\n") == 1
    done = _run("prepare", genomes, "-o", tmp_path / "c", "--skip-unusable", "--no-clusters")
    assert done.exit_code == 0
    assert f"Warning: left out: {genomes / 'phage' / 'empty.fa'}: the file is empty" in done.stderr


def test_a_full_disk_is_one_line(genomes: Path, tmp_path: Path) -> None:
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
from evo_toolkit.cli.main import main
sys.argv = ["evo-toolkit", "data", "prepare", sys.argv[1], "-o", sys.argv[2], "-q"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, genomes, tmp_path / "c"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "File too large" in done.stderr
    assert str(tmp_path / "c") in done.stderr
    assert _run("prepare", genomes, "-o", tmp_path / "c").exit_code == 0


def test_the_how_to_page_s_python(
    genomes: Path, tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (project_root / "docs/how-to/prepare-a-corpus.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    genomes.rename("genomes")
    exec(code, (names := {}))
    assert names["bases"].tobytes() == b"GATTACA"


def test_no_torch_and_no_lightning(genomes: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.argv = ["evo-toolkit", "data", "prepare", sys.argv[1], "-o", sys.argv[2]]
from evo_toolkit.cli.main import main
try:
    main()
finally:
    print([name for name in ("torch", "lightning", "pandas", "Bio") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, genomes, tmp_path / "c"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
