"""docs/how-to/annotate-with-vep.md, command by command, with the bcftools of pysam."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pysam
import pytest
from click.testing import CliRunner

from evo_data.demo_data import demo_file
from evo_toolkit.cli.main import cli

# csq and others keep static variables: a process for each, as bcftools is.
_BCFTOOLS = """
import sys
import pysam.bcftools
try:
    getattr(pysam.bcftools, sys.argv[1])(*sys.argv[2:], catch_stdout=False)
except pysam.bcftools.SamtoolsError as error:
    sys.exit(str(error))
"""


def execute(line: str, model: Path) -> None:
    command = shlex.split(line.replace("MODEL", str(model)))
    match command[0]:
        case "evo-toolkit":
            result = CliRunner().invoke(cli, [*command[1:], "-q"])
            assert result.exit_code == 0, result.output
        case "bcftools":
            subprocess.run([sys.executable, "-c", _BCFTOOLS, *command[1:]], check=True)
        case "bgzip":
            pysam.tabix_compress(command[1], f"{command[1]}.gz")
            Path(command[1]).unlink()
        case "tabix":
            assert command[1:3] == ["-p", "vcf"]
            pysam.tabix_index(command[3], preset="vcf")
        case other:
            raise AssertionError(f"the page uses {other}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cohort with frequencies, its sites, and the genome."""
    monkeypatch.chdir(tmp_path)
    lines = demo_file("rbcL_psbA.vcf").read_text().splitlines()
    head = [line for line in lines if line.startswith("##")]
    columns, *rows = (line.split("\t") for line in lines if not line.startswith("##"))
    declared = '##INFO=<ID=AF,Number=A,Type=Float,Description="x">'
    genotype = '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">'
    cohort = [*head, declared, genotype, "\t".join([*columns, "FORMAT", "one"])]
    for index, row in enumerate(rows):
        frequencies = ",".join(["0.2" if index % 2 else "0.001"] * len(row[4].split(",")))
        cohort.append("\t".join([*row[:7], f"AF={frequencies}", "GT", "0/1"]))
    Path("cohort.vcf").write_text("\n".join(cohort) + "\n")
    Path("genome.fa").write_text(demo_file("NC_000932.fa").read_text())
    pysam.tabix_compress(str(demo_file("rbcL_psbA.vcf")), "sites.vcf.gz")
    return tmp_path


def test_the_page(here: Path, project_root: Path, toy_model_dir: Path) -> None:
    page = (project_root / "docs/how-to/annotate-with-vep.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    (header,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    Path("evo_header.txt").write_text(header)
    scoring, packing, table, filtering = blocks
    # The file that is annotated is made first.
    for block in (packing, scoring, table, filtering):
        for line in block.strip().splitlines():
            # A toy model's scores are small.
            execute(line.replace("EVO_DLL<-5", "EVO_DLL<-0.01"), toy_model_dir)
    with pysam.VariantFile("scores.vcf.gz") as file:
        scores = {(r.pos, r.ref, r.alts): r.info["EVO_DLL"] for r in file}
    assert len(scores) == 40
    for name in ("annotated.vcf.gz", "from_table.vcf.gz"):
        with pysam.VariantFile(name) as file:
            found = {(r.pos, r.ref, r.alts): r.info["EVO_DLL"] for r in file}
        assert found.keys() == scores.keys()
        for key, values in scores.items():
            assert found[key] == pytest.approx(values, rel=1e-5)
    with pysam.VariantFile("annotated.vcf.gz") as file:
        assert [r.pos for r in file.fetch("NC_000932.1", 331, 332)] == [332]
        assert all(set(r.info["EVO_ST"]) == {"ok"} for r in file)
    with pysam.VariantFile("low.vcf") as file:
        low = {r.pos for r in file}
    assert low == {pos for (pos, _, _), values in scores.items() if min(values) < -0.01}
    assert 0 < len(low) < 40
    with pysam.VariantFile("rare.vcf.gz") as file:
        assert sum(1 for _ in file) == 20
