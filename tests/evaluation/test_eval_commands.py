"""`evo-toolkit eval` as a user runs it, and the scores behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from evo_data.alphabet import reverse_complement
from evo_data.variant import Edit
from evo_toolkit.cli.evaluate import evaluate
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation import brca1, default_window
from evo_toolkit.evaluation.edits import edit_scores
from evo_toolkit.evaluation.genomes import Genome, encode, find_genomes
from evo_toolkit.evaluation.prepared import Prepared, load_prepared
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.api import score_variants


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, args)])


def done(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """A piece of the demo's chloroplast with its genes, which are bacterial enough."""
    folder = tmp_path_factory.mktemp("demo")
    source = project_root / "data" / "evo_data" / "demo"
    (folder / "g.fa").write_bytes((source / "NC_000932.fa").read_bytes())
    (folder / "g.gff3").write_bytes((source / "NC_000932.gff3").read_bytes())
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    for number in range(3):
        random = np.random.default_rng(number)
        text = random.choice(list(b"ACGT"), 30_000, p=[0.3, 0.2, 0.2, 0.3]).astype(np.uint8)
        (folder / f"t{number}.fa").write_bytes(b">r\n" + text.tobytes() + b"\n")
    return folder


def figures(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    assert result["command"].startswith("evo-toolkit ")
    return result


def test_edit_scores_are_those_of_the_score_command(
    demo: Path, toy_model: StripedHyena2, tmp_path: Path
) -> None:
    genome = find_genomes([demo / "g.fa"])[0].read()
    [name], [codes] = genome.names, genome.records
    text = bytes(np.frombuffer(b"ACGTN", np.uint8)[codes])
    changes = [(10, b"SNV"), (5000, b"SNV"), (70_000, b"SNV"), (codes.size - 3, b"SNV")]
    lines = [
        "##fileformat=VCFv4.2",
        f"##contig=<ID={name}>",
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO",
    ]
    edits = []
    for at, _ in changes:
        ref = text[at : at + 1]
        alt = b"ACGT"[(b"ACGT".index(ref) + 1) % 4 :][:1]
        edits.append((0, 0, Edit(at, at + 1, alt)))
        lines.append(f"{name}\t{at + 1}\t.\t{ref.decode()}\t{alt.decode()}\t.\t.\t.")
    insertion = b"TAATAG"
    edits.append((0, 0, Edit(900, 900, insertion)))
    before = text[899:900].decode()
    lines.append(f"{name}\t900\t.\t{before}\t{before}{insertion.decode()}\t.\t.\t.")
    (tmp_path / "v.vcf").write_text("\n".join(lines) + "\n")
    found = edit_scores(toy_model, [genome], edits, 64)
    table = score_variants(toy_model, tmp_path / "v.vcf", demo / "g.fa", window=64)
    assert found[:, 0] == pytest.approx(table["dll_fwd"].to_numpy(float), abs=1e-4)
    assert found[:, 1] == pytest.approx(table["dll_rc"].to_numpy(float), abs=1e-4)
    assert np.abs(found).min() > 0
    # Turning the genome around exchanges the strands.
    turned = Genome(name="g", group="x", names=(name,), records=(encode(reverse_complement(text)),))
    at = codes.size - 1 - 5000
    back = edit_scores(
        toy_model, [turned], [(0, 0, Edit(at, at + 1, reverse_complement(edits[1][2].alt)))], 64
    )
    assert back[0].tolist() == found[1, ::-1].tolist()


def test_bits_beside_both_baselines(demo: Path, train: Path, tmp_path: Path) -> None:
    arguments = (
        demo / "g.fa", "--train", train, "--context-length", 256, "--windows-per-genome", 6,
        "--max-order", 4, "--fit-windows", 8,
    )  # fmt: skip
    out = tmp_path / "bits.json"
    text = done("bits", *arguments, "-m", "evo-mini", "-o", out)
    found = figures(out)
    predictors = found["figures"]["predictors"]
    assert set(predictors) == {"model", "markov", "mixture"}
    assert 1.5 < predictors["model"]["mean"]["value"] < 2.1
    assert found["model"]["name"] == "evo-mini" and len(found["model"]["sha256"]) == 64
    assert found["data"]["kmer_overlap_with_train"] == {"g": 0.0}
    assert found["data"]["baseline"]["num_genomes"] == 3
    assert set(found["figures"]["gain"]) == {"markov", "mixture"}
    assert "gain of model over mixture" in text and "31-mers" in text
    # Prepared here, run there: the same figures.
    npz, again = tmp_path / "bits.npz", tmp_path / "again.json"
    assert "mixture" in done("bits", *arguments, "--prepare", npz)
    done("bits", "--from", npz, "-m", "evo-mini", "-o", again)
    assert figures(again)["figures"] == found["figures"]


def test_snv_and_default_window_from_one_file(demo: Path, train: Path, tmp_path: Path) -> None:
    npz, out = tmp_path / "snv.npz", tmp_path / "snv.json"
    arguments = (demo / "g.fa", "--genes", demo / "g.gff3", "--train", train, "--num-snvs", 30)
    text = done("snv", *arguments, "--resamples", 10, "--prepare", npz)
    assert "markov" in text and "within strata" in text
    done("snv", "--from", npz, "-m", "evo-mini", "--window", 64, "--resamples", 10, "-o", out)
    found = figures(out)["figures"]
    assert found["window"] == 64 and found["model"]["num_snvs"] == 30
    assert found["shift"]["num_snvs"] == 30
    assert found["codon position"]["missense"]["within_strata"]["value"] > 0.5
    for kind in ("nonsense", "missense"):
        assert set(found["model"][kind]) == {"within_strata", "raw", "table", "negatives", "parts"}
        assert found["model"][kind]["raw"]["positives"] == 10
    done("snv", "--from", npz, "--num-snvs", 21, "--resamples", 2, "-o", out, "--force")
    assert figures(out)["figures"]["markov"]["num_snvs"] == 21
    window = tmp_path / "w.json"
    text = done(
        "default-window", "--from", npz, "-m", "evo-mini", "--windows", "64,32", "--num-snvs", 12,
        "-o", window,
    )  # fmt: skip
    found = figures(window)["figures"]
    assert found["spearman"]["64"]["value"] == 1 and found["num_snvs"] == 12
    assert found["default_window"] in (32, 64) and "default_window" in text


def test_essentiality_beside_length_gc_and_conservation(
    demo: Path, train: Path, tmp_path: Path
) -> None:
    rows = ["gene\tstart\tend\tstrand\tessential"]
    for line in (demo / "g.gff3").read_text().splitlines():
        fields = line.split("\t")
        if len(fields) == 9 and fields[2] == "CDS":
            rows.append(
                "\t".join([f"x{len(rows)}", *fields[3:5], fields[6], str(len(rows) % 3 == 0)])
            )
    (tmp_path / "labels.tsv").write_text("\n".join(rows[:25]) + "\n")
    out = tmp_path / "e.json"
    text = done(
        "essentiality", demo / "g.fa", tmp_path / "labels.tsv", "--train", train, "-m", "evo-mini",
        "--window", 64, "--sites", 2, "--resamples", 10, "-o", out,
    )  # fmt: skip
    found = figures(out)["figures"]
    assert set(found["auroc"]) == {"model", "length", "gc", "conservation"}
    assert 0 < found["num_essential"] < found["num_genes"] <= 24
    assert "within fifths of length" in text


def assay(folder: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    text = random.choice(list("ACGT"), 400)
    text[:50] = "N"
    (folder / "human.fa").write_text(">17\n" + "".join(text) + "\n")
    rows = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for number, at in enumerate(range(100, 300, 10)):
        alt = "ACGT"[("ACGT".index(text[at]) + 1) % 4]
        label = ("LOF", "FUNC", "INT")[number % 3]
        rows.append(
            f"17\t{at + 1}\t.\t{text[at]}\t{alt}\t.\t.\tSCORE=1;FCLASS={label};EXPT=X{number // 5}"
        )
    (folder / "brca1.vcf").write_text("\n".join(rows) + "\n")
    return folder / "human.fa", folder / "brca1.vcf"


def test_brca1(tmp_path: Path) -> None:
    genome, vcf = assay(tmp_path)
    out = tmp_path / "b.json"
    result = run(
        "brca1", genome, vcf, "-m", "evo-mini", "--window", 64, "--resamples", 10, "-o", out
    )
    assert result.exit_code == 0, result.output
    assert "near 0.5" in result.stderr and "LOF against FUNC" in result.stdout
    found = figures(out)["figures"]
    assert found["num_snvs"] == 20 and 0 <= found["LOF against FUNC and INT"]["value"] <= 1
    text = vcf.read_text().replace("\tA\tC\t", "\tC\tA\t")
    vcf.write_text(text)
    wrong = run("brca1", genome, vcf, "-m", "evo-mini")
    assert wrong.exit_code == 1 and "REF" in wrong.stderr and wrong.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("bits",), 1, "no genomes were given"),
        (("snv",), 2, "GENOME is missing"),
        (("bits", "{fa}", "-m", "no-such-model"), 2, "no-such-model"),
        (("bits", "{fa}"), 2, "no model chosen"),
        (("snv", "{fa}", "--genes", "{gff}"), 2, "no model chosen"),
        (("bits", "--from", "{fa}", "-m", "evo-mini"), 1, "is not a prepared task"),
        (("bits", "{fa}", "--from", "x.npz", "-m", "evo-mini"), 2, "leave the other files out"),
        (
            ("bits", "--from", "{fa}", "-m", "evo-mini"),
            1,
            "not a prepared task (no .npz file, or cut off)",
        ),
        (
            ("bits", "--from", "x.npz", "-m", "evo-mini", "--context-length", "512"),
            2,
            "--context-length was settled with --prepare",
        ),
        (
            ("bits", "--from", "x.npz", "-m", "evo-mini", "--seed", "0"),
            2,
            "--seed was settled with --prepare",
        ),
        (("bits", "{fa}", "--from", "x", "--prepare", "y"), 2, "exclude each other"),
        (("snv", "{fa}", "--genes", "{fa}", "-m", "evo-mini"), 1, "no complete gene"),
        (("default-window", "--windows", "64", "{fa}"), 2, "two windows"),
        (("bits", "nowhere.fa", "-m", "evo-mini"), 1, "no such file or folder"),
        (("bits", "{fa}", "-m", "evo-mini", "-o", "{fa}"), 1, "exists"),
    ],
)
def test_mistakes_end_in_one_line(
    demo: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    filled = [a.format(fa=demo / "g.fa", gff=demo / "g.gff3") for a in arguments]
    result = run(*filled)
    assert result.exit_code == code, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) <= 2


def test_prepared_file_round_trip(tmp_path: Path) -> None:
    genome = Genome(name="g", group="x", names=("a", "b"), records=(encode(b"ACGTN"), encode(b"")))
    made = Prepared(kind="snv", genomes=(genome,), arrays={"x": np.arange(3)}, meta={"seed": 1})
    made.save(tmp_path / "p.npz")
    back = load_prepared(tmp_path / "p.npz", "snv")
    assert back.genomes[0].names == ("a", "b") and back.meta == {"seed": 1}
    assert back.genomes[0].records[0].tolist() == [0, 1, 2, 3, 4]
    assert back.arrays["x"].tolist() == [0, 1, 2] and back.lengths() == {"a": 5, "b": 0}
    with pytest.raises(EvoError, match="'snv', not 'bits'"):
        load_prepared(tmp_path / "p.npz", "bits")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:-30])
    with pytest.raises(EvoError, match="is not a prepared task"):
        load_prepared(tmp_path / "cut.npz", "snv")


def test_running_needs_no_reader_of_genomes(tmp_path: Path) -> None:
    """A machine with a GPU may have neither pysam nor Biopython, Pyrodigal, pandas or rich."""
    random = np.random.default_rng(0)
    genome = Genome(
        name="g", group="x", names=("r",), records=(random.integers(0, 4, 300).astype(np.uint8),)
    )
    size = 6
    arrays = {
        "record": np.zeros(size, int), "position": np.arange(100, 100 + size), "gene": np.arange(size),
        "alt": (genome.records[0][100 : 100 + size] + 1) % 4, "kind": np.array([0, 1, 2] * 2),
        "codon_position": np.ones(size, int), "third": np.zeros(size, int),
        "stop": np.zeros(size, int), "stratum": np.zeros(size, int),
    }  # fmt: skip
    Prepared(kind="snv", genomes=(genome,), arrays=arrays, meta={}).save(tmp_path / "p.npz")
    script = f"""
import sys
for name in ("pysam", "Bio", "pyrodigal", "pandas", "sklearn", "scipy", "rich", "pyarrow", "lightning"):
    sys.modules[name] = None
from evo_toolkit.cli.evaluate import evaluate
from evo_toolkit.cli.main import cli
cli(["eval", "snv", "--from", {str(tmp_path / "p.npz")!r}, "-m", "evo-mini", "--window", "64", "--resamples", "2"])
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "within strata" in ran.stdout


def test_the_smallest_window_that_ranks_as_the_longest_is_chosen() -> None:
    random = np.random.default_rng(0)
    longest = random.normal(size=300)
    scores = {
        8192: longest,
        2048: longest + 0.02 * random.normal(size=300),
        512: longest + 2.0 * random.normal(size=300),
    }
    found = default_window.report(scores, np.arange(300) // 3)
    assert found["default_window"] == 2048 and found["compared_with"] == 8192
    assert list(found["spearman"]) == ["512", "2048", "8192"]
    assert found["spearman"]["512"]["value"] < 0.9 < 0.99 <= found["spearman"]["2048"]["value"]


def test_loss_of_function_is_the_lower_score() -> None:
    label = np.repeat([0, 1, 2], 10)  # LOF, INT, FUNC
    arrays = {"label": label, "exon": np.arange(30) % 5}
    found = brca1.report(arrays, np.array([-5.0, -9.0, 0.0])[label], resamples=20)
    assert found["LOF against FUNC"]["value"] == 1.0
    assert found["LOF against FUNC and INT"]["value"] == 0.5


def test_a_prepared_corpus_counts_as_its_genomes(train: Path, tmp_path: Path) -> None:
    from evo_data.corpus.prepare import prepare

    prepare([train], tmp_path / "corpus", encoding="packed")
    plain, packed = find_genomes([train]), find_genomes([tmp_path / "corpus"])
    assert len(plain) == len(packed) == 3
    for a, b in zip(plain, packed, strict=True):
        one, other = a.read(), b.read()
        assert one.name == other.name and one.names == other.names
        assert all((x == y).all() for x, y in zip(one.records, other.records, strict=True))


def test_the_page_names_commands_and_options_that_exist(project_root: Path) -> None:
    page = (project_root / "docs" / "how-to" / "evaluate-a-model.md").read_text()
    lines = [line for line in page.replace("\\\n", " ").splitlines() if "evo-toolkit eval " in line]
    commands = [
        line[line.index("evo-toolkit eval ") :] for line in lines if not line.startswith("|")
    ]
    assert len(commands) >= 6
    used = set()
    for line in commands:
        words = line.split()[2:]
        command = evaluate.commands[words[0]]
        used.add(words[0])
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words[1:]:
            assert not word.startswith("-") or word in known, line
    assert used == set(evaluate.commands)
