"""A megabase of the 1000 Genomes project, whole: SNVs, indels, multi-allelic and symbolic sites."""

from __future__ import annotations

import gzip
import re
import shutil
from collections import Counter
from pathlib import Path

from click.testing import CliRunner

from evo_toolkit.cli.main import cli


def test_28998_sites_of_chromosome_20(
    shared_dir: Path, toy_model_dir: Path, tmp_path: Path
) -> None:
    source = shared_dir / "data/variants/chr20_1mb_1kgp"
    genome = tmp_path / "z.fa"  # an index is built beside it
    shutil.copy(source / "z.fa", genome)
    output = tmp_path / "scored.vcf"
    arguments = [
        "score",
        source / "z.vcf.gz",
        genome,
        "-m",
        toy_model_dir,
        "--window",
        64,
        "-o",
        output,
    ]
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    assert (
        "scored 29,118 alleles of 29,144 in 28,998 records; not scored: 24 symbolic, 2 too_long"
        in result.stderr
    )
    with gzip.open(source / "z.vcf.gz", "rt") as file:
        expected = [line.rstrip("\n").split("\t") for line in file if not line.startswith("#")]
    found = [
        line.split("\t") for line in output.read_text().splitlines() if not line.startswith("#")
    ]
    assert [row[:5] for row in found] == [row[:5] for row in expected]
    counts: Counter[str] = Counter()
    for row in found:
        statuses = re.search(r"EVO_ST=([^;]+)", row[7])
        scores = re.search(r"EVO_DLL=([^;]+)", row[7])
        assert statuses and scores
        pairs = list(
            zip(statuses[1].split(","), scores[1].split(","), row[4].split(","), strict=True)
        )
        assert all((status == "ok") == (score != ".") for status, score, _ in pairs)
        counts.update(status for status, _, _ in pairs)
    assert counts == {"ok": 29_118, "symbolic": 24, "too_long": 2}
