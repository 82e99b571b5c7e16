"""Adaptive suffixes: where alleles stop being read, and what `eval suffix` says of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from evo_data.demo_data import demo_file
from evo_data.fasta import Fasta
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import UsageError
from evo_toolkit.model.state import gather_forks, gather_rows
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.api import score_variants
from evo_toolkit.variants.reuse import ReusedPrefixes, window_runner
from evo_toolkit.variants.suffix import Adaptive, parse_suffix
from evo_toolkit.variants.window_runner import WindowGroup

WINDOW = 128
PIECE = WINDOW // 32
VCF, FASTA = demo_file("rbcL_psbA.vcf"), demo_file("NC_000932.fa")


@pytest.fixture(scope="module")
def evo_mini() -> StripedHyena2:
    return load_model("evo-mini", device="cpu", precision="exact")


@pytest.fixture(scope="module")
def bases() -> np.ndarray:
    text = demo_file("NC_000932.fa").read_text().split("\n", 1)[1].replace("\n", "")
    return np.frombuffer(text.encode(), np.uint8)


def groups_of(bases: np.ndarray) -> list[WindowGroup]:
    """Windows of real sequence with a substitution at, and far behind, the middle."""
    rng = random.Random(3)
    found = []
    for index in range(7):
        start = rng.randrange(50_000, 60_000)
        ref = bases[start : start + WINDOW - (index % 3)].copy()
        alts = []
        for fork in (WINDOW // 2, WINDOW // 2 + (0, 1, 5, 30)[index % 4]):
            alt = ref.copy()
            alt[fork] = ord("ACGT"[("ACGT".index(chr(ref[fork])) + 1 + len(alts)) % 4])
            alts.append((alt, fork))
        found.append(WindowGroup(ref, alts))
    found.append(WindowGroup(found[0].ref, [(found[0].ref, len(found[0].ref))]))
    early = found[1].ref.copy()
    early[9] = ord("A") if early[9] != ord("A") else ord("C")
    return [*found, WindowGroup(found[1].ref, [(early, 9)])]


@pytest.mark.parametrize(("step", "rows"), [(1, 6), (16, 3)])
def test_alleles_stop_where_the_rule_says(
    evo_mini: StripedHyena2, bases: np.ndarray, step: int, rows: int
) -> None:
    """By hand, from log-probabilities of full suffixes."""
    tolerance = 0.05
    groups = groups_of(bases)
    full = ReusedPrefixes(evo_mini, WINDOW, step=step, rows=2)
    adaptive = ReusedPrefixes(evo_mini, WINDOW, step=step, rows=rows, suffix=Adaptive(tolerance))
    stops = []
    for group, found, expected in zip(groups, adaptive(groups), full(groups), strict=True):
        for (alt, fork), pair, whole in zip(group.alts, found, expected, strict=True):
            split, stop = full.splits.position(fork, len(alt)), len(alt)
            quiet = 0
            for start in range(split, len(alt), PIECE) if split else ():
                change = whole.alt[start : start + PIECE].sum() - whole.ref[start : start + PIECE].sum()  # fmt: skip
                holds_fork_or_later = start + PIECE > fork
                quiet = quiet + 1 if abs(change) < tolerance and holds_fork_or_later else 0
                if quiet == 2:
                    stop = min(start + PIECE, len(alt))
                    break
            assert len(pair.ref) == len(pair.alt) == stop
            np.testing.assert_allclose(pair.alt, whole.alt[:stop], atol=3e-5, rtol=1e-5)
            np.testing.assert_allclose(pair.ref, whole.ref[:stop], atol=3e-5, rtol=1e-5)
            stops.append(stop - fork)
    # The rule is put to work: some stop soon, some never.
    assert min(stops[:14]) <= 20 and max(stops[:14]) >= 60
    assert adaptive.count.tokens < full.count.tokens


def test_what_a_user_says_of_suffixes() -> None:
    assert parse_suffix("full") is None and parse_suffix("512") == 512
    assert parse_suffix("adaptive") == Adaptive() and str(Adaptive()) == "adaptive:0.02"
    assert parse_suffix("adaptive:0.5") == Adaptive(0.5)
    for text in ("adaptive:", "adaptive:-1", "adaptive:nan", "adaptive:inf", "half", "-3", ""):
        with pytest.raises(UsageError, match="adaptive:NATS"):
            parse_suffix(text)


def test_rows_are_gathered_from_forks_of_equal_progress(toy_model: StripedHyena2) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(65, 85, (3, 40), generator=generator)
    with torch.inference_mode():
        whole, _ = toy_model.hidden(ids)
        _, one = toy_model.hidden(ids[:, :20], return_state=True)
        assert one is not None
        forks = gather_forks([(one, row) for row in range(3)])
        _, forks = toy_model.hidden(ids[:, 20:28], forks, return_state=True)  # type: ignore[assignment]
        # Out of order, one of them twice.
        order = [2, 0, 2]
        rows = gather_rows([(forks, row) for row in order])
        _, rows = toy_model.hidden(ids[order, 28:33], rows, return_state=True)  # type: ignore[assignment]
        again = gather_rows([(rows, 1), (rows, 0)])
        found, _ = toy_model.hidden(ids[[0, 2], 33:], again)
        torch.testing.assert_close(found, whole[[0, 2], 33:], atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="read as much"):
            gather_rows([(forks, 0), (rows, 0)])
        with pytest.raises(ValueError, match="gather_forks began"):
            gather_rows([(one, 0)])


def test_eval_suffix_foresees_what_score_gives(tmp_path: Path) -> None:
    out, few = tmp_path / "s.json", tmp_path / "few.vcf"
    lines = VCF.read_text().splitlines(keepends=True)
    head = sum(line.startswith("#") for line in lines)
    few.write_text("".join(lines[:head] + lines[head::8]))
    common = [str(few), str(FASTA), "-m", "evo-mini", "--precision", "exact", "--window", "128"]
    given = ["--suffix", "24", "--suffix", "adaptive:0.05"]
    result = CliRunner().invoke(cli, ["eval", "suffix", *common, *given, "-o", str(out), "-q"])
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())["figures"]
    assert list(figures["suffixes"]) == ["24", "adaptive:0.05"]
    model = load_model("evo-mini", device="cpu", precision="exact")
    full = score_variants(model, few, FASTA, window=128)
    for name, said in figures["suffixes"].items():
        frame = score_variants(model, few, FASTA, window=128, suffix=name)
        apart = (frame["dll"] - full["dll"]).abs()
        assert said["max_difference"] == pytest.approx(apart.max(), abs=2e-4)
        assert said["mean_difference"] == pytest.approx(apart.mean(), abs=2e-4)
        expected = spearmanr(frame["dll"], full["dll"]).statistic
        assert said["spearman"] == pytest.approx(expected, abs=1e-3)
        same = full["indel_len"] == 0
        assert said["same_length"]["alleles"] == same.sum() > 0
        assert said["other_length"]["max_difference"] == pytest.approx(apart[~same].max(), abs=2e-4)
        assert said["times_fewer_tokens"] > 1
        attributes = frame.attrs["evo_toolkit"]
        assert str(attributes["suffix"]) == name
    assert "times fewer" in result.stdout and "of another length" in result.stdout


def test_tokens_of_eval_suffix_are_those_of_the_run(
    tmp_path: Path, toy_model: StripedHyena2
) -> None:
    from evo_data.vcf import VariantReader
    from evo_toolkit.evaluation.suffixes import compare_suffixes
    from evo_toolkit.variants.score import VariantScorer

    with Fasta(FASTA) as genome, VariantReader(VCF) as reader:
        records = list(reader)
        contigs = {name: name for name in genome.lengths}
        chosen = {"24": 24, "adaptive": Adaptive(0.02)}
        said = compare_suffixes(toy_model, genome, contigs, records, chosen, window=128)
        for name, suffix in chosen.items():
            runner = window_runner(toy_model, 128, "exact", suffix)
            list(VariantScorer(runner, genome, contigs).score(records))
            assert said["suffixes"][name]["tokens"] == runner.count.tokens, name


def test_eval_suffix_refuses_what_it_cannot_compare(toy_model_dir: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["eval", "suffix", *arguments, "-q"])
        assert result.exit_code in (1, 2) and result.stderr.count("\n") == 1, result.output
        return result.stderr

    common = (str(VCF), str(FASTA), "-m", str(toy_model_dir))
    assert "adaptive:NATS" in refused(*common, "--suffix", "many")
    assert "3 at least" in refused(*common, "--limit", "1", "--suffix", "8")
    assert "use another precision" in refused(*common, "--precision", "vortex")
    out = tmp_path / "there.json"
    out.write_text("precious")
    assert "--force" in refused(*common, "-o", str(out)) and out.read_text() == "precious"


def test_calibration_and_adaptive_suffix_in_a_header(toy_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.tsv"
    result = CliRunner().invoke(
        cli, ["score", str(VCF), str(FASTA), "-m", str(toy_model_dir), "--suffix", "adaptive:0.5", "-o", str(out), "-q"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert 'Suffix="adaptive:0.5"' in out.read_text()
    skipped = sum(line.startswith("##") for line in out.read_text().splitlines())
    assert pd.read_csv(out, sep="\t", skiprows=skipped, na_values=".")["dll"].notna().all()
