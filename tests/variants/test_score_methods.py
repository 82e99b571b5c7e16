"""`-M`, `--calibration`, heads and presets in `score`, against whole windows read one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pytest
from click.testing import CliRunner, Result

from evo_data.fasta import Fasta
from evo_data.variant import Variant, edit_of, normalise
from evo_data.windows import variant_windows
from evo_toolkit.cli import score_methods
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import EvoError
from evo_toolkit.inference.embed import embed
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.allele_methods import SCORE_METHODS
from evo_toolkit.variants.api import score_variants
from evo_toolkit.variants.calibration import Calibration, apply_calibration, calibrate
from evo_toolkit.variants.head import VariantHead
from evo_toolkit.variants.method_values import method_values
from evo_toolkit.variants.methods import WindowOutputs, get_methods
from evo_toolkit.variants.positions import PositionModel
from evo_toolkit.variants.preset import PRESETS
from evo_toolkit.variants.reading import Wanted
from evo_toolkit.variants.reuse import ReusedPrefixes, window_runner
from evo_toolkit.variants.window_runner import WindowGroup

BASES = "".join(random.Random(4).choices("ACGT", k=700))
BASES = BASES[:300] + "ACACACACACAC" + BASES[312:500] + "T" * 12 + BASES[512:]
LAYERS = ("blocks.1", "norm")
HEADER = "##fileformat=VCFv4.3\n##contig=<ID=c>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
# Float32 sums over a window, in pieces of other lengths.
NATS = 2e-4


def alleles() -> list[Variant]:
    """SNVs side by side and apart, indels in repeats and not, near both ends of the contig."""

    def other(pos: int, shift: int = 1) -> str:
        return "ACGT"[("ACGT".index(BASES[pos - 1]) + shift) % 4]

    found = [Variant("c", p, BASES[p - 1], other(p)) for p in (1, 20, 250, 251, 252, 600, 699)]
    found += [Variant("c", 400, BASES[399], other(400, s)) for s in (1, 2, 3)]
    found += [
        Variant("c", 300, BASES[299], BASES[299] + "AC"),
        Variant("c", 500, BASES[499:502], BASES[499]),
        Variant("c", 420, BASES[419:423], "ACGTACG"),
        Variant("c", 430, BASES[429:431], other(430) + other(431)),
        Variant("c", 690, BASES[689], BASES[689] + "GAT"),
    ]
    return sorted(found, key=lambda v: v.pos)


@pytest.fixture
def genome(tmp_path: Path) -> Fasta:
    path = tmp_path / "g.fa"
    path.write_text(f">c\n{BASES}\n")
    return Fasta(path)


@pytest.fixture
def vcf(tmp_path: Path) -> Path:
    path = tmp_path / "v.vcf"
    rows = [f"c\t{v.pos}\t.\t{v.ref}\t{v.alt}\t.\t.\t.\n" for v in alleles()]
    path.write_text(HEADER + "".join(rows))
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["score", *map(str, args)])


def by_whole_windows(
    model: StripedHyena2, genome: Fasta, variants: Sequence[Variant], window: int
) -> list[dict[str, float | None]]:
    """Every method by another route: whole windows, one list of them, no states."""

    def fetch(start: int, end: int) -> bytes:
        return genome.fetch("c", start, end)

    windows = []
    for variant in variants:
        built, _ = variant_windows(fetch, 700, edit_of(normalise(variant, fetch)), window)
        telling = [w for w in built if w.fork < len(w.ref)]
        windows.append(telling or built)
    methods = get_methods(["marginal", "entropy", "jsd", "embed"], LAYERS)
    return method_values(model, windows, methods)


@pytest.mark.parametrize("mode", ["exact", "full"])
def test_every_method_equals_whole_windows(
    toy_model: StripedHyena2, genome: Fasta, vcf: Path, mode: str
) -> None:
    methods = ["delta", "marginal", "entropy", "jsd", "embed"]
    frame = score_variants(
        toy_model, vcf, genome.path, window=128, window_mode=mode, methods=methods, layers=LAYERS
    )
    expected = by_whole_windows(toy_model, genome, alleles(), 128)
    assert set(frame["status"]) == {"ok"} and len(frame) == len(expected) == 15
    for index, values in enumerate(expected):
        assert set(values) <= set(frame.columns)
        for name, value in values.items():
            found = frame[name][index]
            assert np.isnan(found) if value is None else found == pytest.approx(value, abs=NATS), (index, name)  # fmt: skip
    # The first base that differs, given what stands before it: two names of one thing.
    assert frame["marg"].tolist() == pytest.approx(frame["llr"].tolist(), abs=NATS, nan_ok=True)
    plain = score_variants(toy_model, vcf, genome.path, window=128, window_mode=mode)
    assert frame["dll"].tolist() == pytest.approx(plain["dll"].tolist(), abs=1e-5)


@pytest.mark.parametrize("mode", ["exact", "shared", "full"])
def test_what_reads_the_reference_alone_reads_less(
    toy_model: StripedHyena2, genome: Fasta, vcf: Path, mode: str
) -> None:
    options = {"window": 128, "window_mode": mode}
    both = score_variants(
        toy_model, vcf, genome.path, methods=["delta", "marginal", "entropy"], **options
    )
    alone = score_variants(toy_model, vcf, genome.path, methods=["marginal", "entropy"], **options)
    assert alone["dll"].isna().all() and set(alone["status"]) == {"ok"}
    for name in ("marg", "ent_ref"):
        assert both[name].notna().sum() == alone[name].notna().sum() >= 14
        assert alone[name].tolist() == pytest.approx(both[name].tolist(), abs=NATS, nan_ok=True)


def test_marginals_of_shared_windows_need_no_suffixes(
    toy_model: StripedHyena2, genome: Fasta, tmp_path: Path
) -> None:
    path = tmp_path / "dense.vcf"
    rows = [
        f"c\t{p}\t.\t{BASES[p - 1]}\t{','.join(b for b in 'ACGT' if b != BASES[p - 1])}\t.\t.\t.\n"
        for p in range(288, 320)
    ]
    path.write_text(HEADER + "".join(rows))
    result = run(path, genome.path, "-m", _folder(toy_model), "-M", "marginal", "--window", 256,
                 "--window-mode", "shared", "--strands", "fwd", "-o", tmp_path / "o.tsv")  # fmt: skip
    assert result.exit_code == 0, result.output
    # Steps of 8: at most six windows, of half a window and up to a step each.
    line = next(x for x in result.stderr.splitlines() if "tokens through the model" in x)
    assert int(line.split()[0].replace(",", "")) <= 6 * (128 + 8)
    frame = pd.read_csv(tmp_path / "o.tsv", sep="\t", comment=None, skiprows=_notes(tmp_path / "o.tsv"), na_values=".")  # fmt: skip
    assert frame["marg"].notna().all() and len(frame) == 96


@pytest.mark.parametrize("mode", ["exact", "shared"])
def test_methods_with_cut_suffixes_end_where_alleles_were_read_to(
    toy_model: StripedHyena2, genome: Fasta, vcf: Path, mode: str
) -> None:
    """Whole windows read without states, and cut by hand."""
    methods = ["marginal", "entropy", "jsd", "embed"]
    frame = score_variants(
        toy_model, vcf, genome.path, window=128, window_mode=mode, methods=methods, layers=LAYERS, suffix=24,
    )  # fmt: skip
    assert set(frame["status"]) == {"ok"}
    runner = ReusedPrefixes(toy_model, 128, suffix=24, step=4 if mode == "shared" else 1)
    positions = PositionModel(toy_model, bases=True)

    def fetch(start: int, end: int) -> bytes:
        return genome.fetch("c", start, end)

    for index, variant in enumerate(alleles()):
        edit = edit_of(normalise(variant, fetch))
        windows, _ = variant_windows(fetch, 700, edit, 128, step=runner.step)
        strands = []
        for w in [w for w in windows if w.fork < len(w.ref)]:
            stop = runner.splits.stop(w.fork, len(w.ref))
            ref, alt = (one.bases for one in positions([w.ref, w.alt]))
            assert ref is not None and alt is not None
            mask = (np.arange(len(w.ref)) >= w.fork) & (np.arange(len(w.ref)) < stop)
            e = embed(toy_model, [w.ref.tobytes(), w.alt.tobytes()], list(LAYERS), masks=[mask] * 2)
            strands.append(
                WindowOutputs(
                    window=w, bases_ref=ref[:stop], bases_alt=alt[:stop],
                    layers_ref={name: e[name][0] for name in LAYERS},
                    layers_alt={name: e[name][1] for name in LAYERS},
                )
            )  # fmt: skip
        for method in get_methods(methods, LAYERS):
            for name, value in method(strands).items():
                found = frame[name][index]
                assert np.isnan(found) if value is None else found == pytest.approx(value, abs=NATS), (variant, name)  # fmt: skip


@pytest.mark.parametrize(("window", "fork", "read"), [(256, 131, 131), (256, 128, 128), (1024, 513, 516), (256, 135, 135), (256, 136, 256), (256, 5, 256)])  # fmt: skip
def test_a_marginal_takes_what_stands_before_it(
    toy_model: StripedHyena2, window: int, fork: int, read: int
) -> None:
    """To the end of the chunk of the fork; behind the chunks, and in front of the middle, all of the
    window, which its neighbours then need not read again."""
    runner = window_runner(toy_model, window, "shared", wanted=Wanted(bases=True, alternate=False))
    rng = np.random.default_rng(0)
    ref = rng.choice(np.frombuffer(b"ACGT", np.uint8), window)
    alt = ref.copy()
    alt[fork] = ord("A") if ref[fork] != ord("A") else ord("C")
    ((pair,),) = runner([WindowGroup(ref, [(alt, fork)])])
    assert runner.count.tokens == read
    assert pair.bases_ref is not None and not np.isnan(pair.bases_ref[fork]).any()
    expected = window_runner(toy_model, window, "full", wanted=Wanted(bases=True))
    ((whole,),) = expected([WindowGroup(ref, [(alt, fork)])])
    assert whole.bases_ref is not None
    np.testing.assert_allclose(pair.bases_ref[fork], whole.bases_ref[fork], atol=1e-5)


def test_tiled_windows_are_read_once_for_all_places_in_them(
    toy_model: StripedHyena2, genome: Fasta, tmp_path: Path
) -> None:
    """All SNVs of 300 bases: on each strand so many windows as lie 48 bases apart, and their values."""
    places = range(201, 501)
    path = tmp_path / "dense.vcf"
    rows = [
        f"c\t{p}\t.\t{BASES[p - 1]}\t{','.join(b for b in 'ACGT' if b != BASES[p - 1])}\t.\t.\t.\n"
        for p in places
    ]
    path.write_text(HEADER + "".join(rows))
    result = run(path, genome.path, "-m", _folder(toy_model), "-M", "marginal", "-M", "entropy", "--window", 128,
                 "--window-mode", "tiled", "-o", tmp_path / "o.tsv")  # fmt: skip
    assert result.exit_code == 0, result.output
    line = next(x for x in result.stderr.splitlines() if "tokens through the model" in x)
    # 300 places touch at most 8 steps of 48 bases; a window is read up to 64 + 48 bases.
    assert int(line.split()[0].replace(",", "")) <= 2 * 8 * (64 + 48)
    frame = pd.read_csv(tmp_path / "o.tsv", sep="\t", comment=None, skiprows=_notes(tmp_path / "o.tsv"), na_values=".")  # fmt: skip
    assert set(frame["status"]) == {"ok"} and len(frame) == 900

    def fetch(start: int, end: int) -> bytes:
        return genome.fetch("c", start, end)

    methods = get_methods(["marginal", "entropy"])
    for index in range(0, 900, 7):
        row = frame.iloc[index]
        edit = edit_of(normalise(Variant("c", row.pos, row.ref, row.alt), fetch))
        windows, _ = variant_windows(fetch, 700, edit, 128, step=48)
        assert all(64 <= window.fork < 112 for window in windows)
        (expected,) = method_values(toy_model, [windows], methods)
        assert row.marg == pytest.approx(expected["marg"], abs=NATS)
        assert row.ent_ref == pytest.approx(expected["ent_ref"], abs=NATS)


def test_tiled_windows_take_indels_repeats_and_both_ends(
    toy_model: StripedHyena2, genome: Fasta, vcf: Path
) -> None:
    options = {"window": 128, "methods": ["marginal"]}
    tiled = score_variants(toy_model, vcf, genome.path, window_mode="tiled", **options)
    exact = score_variants(toy_model, vcf, genome.path, window_mode="exact", **options)
    assert set(tiled["status"]) == {"ok"}
    assert tiled["marg"].isna().tolist() == exact["marg"].isna().tolist()
    # At both ends windows cannot lie elsewhere; in between they hold more context than they need.
    first, last = tiled.index[tiled["pos"] == 1], tiled.index[tiled["pos"] == 699]
    for row in (*first, *last):
        assert tiled["marg"][row] == pytest.approx(exact["marg"][row], abs=0.5)
    spread = (tiled["marg"] - exact["marg"]).abs()
    assert 0 < spread.max() < 2


@pytest.mark.parametrize(
    ("extra", "said"),
    [(("-M", "delta"), "reference alone"), (("-M", "jsd"), "reference alone"), (("-M", "marginal", "--suffix", "64"), "suffix")],
)  # fmt: skip
def test_tiled_windows_are_refused_where_alternates_are_read(
    toy_model: StripedHyena2, genome: Fasta, vcf: Path, extra: tuple[str, ...], said: str
) -> None:
    result = run(vcf, genome.path, "-m", _folder(toy_model), *extra, "--window", 128, "--window-mode", "tiled")  # fmt: skip
    assert result.exit_code == 2
    assert said in result.stderr and len(result.stderr.strip().splitlines()[-1:]) == 1


def test_a_window_that_nothing_fills_is_refused_before_memory_runs_out(
    toy_model: StripedHyena2, genome: Fasta, vcf: Path
) -> None:
    result = run(vcf, genome.path, "-m", _folder(toy_model), "--window", 10**9)
    assert result.exit_code == 2
    assert "1,000,000,000 is longer than every contig" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def _notes(path: Path) -> int:
    return sum(line.startswith("##") for line in path.read_text().splitlines())


_FOLDERS: dict[int, Path] = {}


def _folder(model: StripedHyena2) -> Path:
    return _FOLDERS[id(model)]


@pytest.fixture(autouse=True)
def _known(toy_model: StripedHyena2, toy_model_dir: Path) -> None:
    _FOLDERS[id(toy_model)] = toy_model_dir


def test_columns_in_every_format(
    toy_model_dir: Path, genome: Fasta, vcf: Path, tmp_path: Path
) -> None:
    wanted = ("-M", "delta", "-M", "jsd", "-M", "embed", "--layer", "blocks.1")
    for name in ("a.vcf", "a.tsv", "a.parquet"):
        result = run(vcf, genome.path, "-m", toy_model_dir, *wanted, "-o", tmp_path / name, "-q")
        assert result.exit_code == 0, result.output
    table = pd.read_parquet(tmp_path / "a.parquet")
    text = pd.read_csv(tmp_path / "a.tsv", sep="\t", skiprows=_notes(tmp_path / "a.tsv"), na_values=".")  # fmt: skip
    names = ["jsd", "jsd_max", "embed_l2_blocks.1", "embed_cos_blocks.1"]
    assert list(table.columns[-4:]) == list(text.columns[-4:]) == names
    with pysam.VariantFile(str(tmp_path / "a.vcf")) as variants:
        info = variants.header.info
        assert "Jensen-Shannon" in info["EVO_JSD"].description
        assert info["EVO_EMBED_L2_BLOCKS.1"].number == "A"
        records = [x for r in variants for x in r.info["EVO_JSD"]]
    assert records == pytest.approx(table["jsd"].tolist(), rel=1e-5)
    assert records == pytest.approx(text["jsd"].tolist(), rel=1e-5)
    assert 'Methods="delta,jsd,embed"' in (tmp_path / "a.vcf").read_text()
    other = tmp_path / "m.vcf"
    assert run(vcf, genome.path, "-m", toy_model_dir, "-M", "marginal", "-o", other, "-q").exit_code == 0  # fmt: skip
    text_of = other.read_text()
    assert "EVO_MARG" in text_of and "EVO_DLL" not in text_of and "EVO_ST=ok" in text_of


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-M", "embed"), "needs a layer"),
        (("--layer", "blocks.1"), "for the method embed"),
        (("-M", "head"), "--head"),
        (("-M", "embed", "--layer", "blocks.99"), "blocks run from 0 to 3"),
        (("--suffix", "adaptive:0"), "adaptive:NATS"),
        (("--suffix", "much"), "adaptive"),
        (("--preset", "evo2-paper", "--window", "128"), "--window"),
        (("--preset", "evo2-paper", "--strands", "both"), "--strands"),
        (("--head", "missing.safetensors"), "missing.safetensors"),
        (("--calibration", "missing.json"), "missing.json"),
    ],
)
def test_what_cannot_be_is_one_line(
    toy_model_dir: Path, genome: Fasta, vcf: Path, arguments: tuple[str, ...], says: str
) -> None:
    result = run(vcf, genome.path, "-m", toy_model_dir, *arguments, "-q")
    assert result.exit_code in (1, 2) and says in result.stderr
    assert result.stderr.count("\n") == 1 and not result.stdout


def test_calibration_while_scoring_equals_calibration_afterwards(
    toy_model: StripedHyena2, toy_model_dir: Path, genome: Fasta, vcf: Path, tmp_path: Path
) -> None:
    scored, made = tmp_path / "s.parquet", tmp_path / "c.json"
    common = ("-m", toy_model_dir, "--window", 128, "-q")
    assert run(vcf, genome.path, *common, "-o", scored).exit_code == 0
    calibrate([scored], genome).save(made)
    out = tmp_path / "calibrated.parquet"
    result = run(vcf, genome.path, *common, "--calibration", made, "-o", out)
    assert result.exit_code == 0, result.output
    found = pd.read_parquet(out)
    expected = apply_calibration(pd.read_parquet(scored), Calibration.load(made), genome)
    for name in ("cdll", "quantile"):
        pd.testing.assert_series_equal(found[name], expected[name])
    # Ten SNVs, one of them too near the contig's end for its neighbours, as is another.
    assert found["cdll"].notna().sum() == 8
    for others in (("--strands", "fwd"), ("--window", 64), ("--suffix", 30)):
        result = run(vcf, genome.path, *common, *others, "--calibration", made)
        assert result.exit_code == 1 and f"{others[0][2:]} " in result.stderr.lower(), others
    result = run(vcf, genome.path, *common, "-M", "jsd", "--calibration", made)
    assert result.exit_code == 2 and "-M" in result.stderr


def head_for(model: StripedHyena2, **changes: object) -> VariantHead:
    rng = np.random.default_rng(8)
    size = 2 * 2 * model.config.width
    values: dict[str, object] = {
        "name": "toy", "outputs": ("damaging", "benign"), "layers": LAYERS,
        "features": ("alt", "difference"), "activation": "softmax",
        "weight": rng.normal(size=(2, size)).astype(np.float32),
        "bias": np.array([0.5, -0.5], dtype=np.float32),
        "mean": rng.normal(size=size).astype(np.float32),
        "scale": rng.uniform(0.5, 2, size=size).astype(np.float32),
        "run": {"model": "toy", "model_sha256": model.sha256, "window": 128, "strands": "both", "suffix": None},
    }  # fmt: skip
    return VariantHead(**(values | changes))  # type: ignore[arg-type]


def test_head_by_hand(
    toy_model: StripedHyena2, toy_model_dir: Path, genome: Fasta, vcf: Path, tmp_path: Path
) -> None:
    head = head_for(toy_model)
    path = tmp_path / "head.safetensors"
    head.save(path)
    out = tmp_path / "o.parquet"
    result = run(vcf, genome.path, "-m", toy_model_dir, "--window", 128, "--head", path, "-o", out, "-q")  # fmt: skip
    assert result.exit_code == 0, result.output
    frame = pd.read_parquet(out)

    def fetch(start: int, end: int) -> bytes:
        return genome.fetch("c", start, end)

    for index, variant in enumerate(alleles()):
        if variant.pos > 600:  # windows shifted, a strand left out: as above
            continue
        windows, _ = variant_windows(fetch, 700, edit_of(normalise(variant, fetch)), 128)
        logits = []
        for w in windows:
            masks = [np.arange(len(w.ref)) >= w.fork] * 2
            e = embed(toy_model, [w.ref.tobytes(), w.alt.tobytes()], list(LAYERS), masks=masks)
            x = np.concatenate([np.concatenate([e[name][1], e[name][1] - e[name][0]]) for name in LAYERS])  # fmt: skip
            assert head.mean is not None and head.scale is not None
            logits.append(head.weight @ ((x - head.mean) / head.scale) + head.bias)
        y = np.mean(logits, axis=0)
        expected = np.exp(y) / np.exp(y).sum()
        row = frame.loc[index, ["head_toy_damaging", "head_toy_benign"]].to_numpy(float)
        assert row == pytest.approx(expected, abs=1e-4), variant


def test_a_head_is_refused_where_it_does_not_fit(
    toy_model: StripedHyena2, toy_model_dir: Path, genome: Fasta, vcf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "head.safetensors"

    def refused(*arguments: object) -> str:
        result = run(vcf, genome.path, "-m", toy_model_dir, "--head", path, *arguments, "-q")
        assert result.exit_code == 1 and result.stderr.count("\n") == 1
        return result.stderr

    head_for(toy_model).save(path)
    assert "window 128" in refused("--window", 64)
    assert "strands both" in refused("--window", 128, "--strands", "fwd")
    assert "suffix None" in refused("--window", 128, "--suffix", 20)
    head_for(toy_model, run={"model_sha256": "0" * 64}).save(path, force=True)
    assert "model_sha256" in refused("--window", 128)
    head_for(toy_model, layers=("blocks.1",)).save(path, force=True)
    assert "64 features" in refused("--window", 128) and "are 32" in refused("--window", 128)
    path.write_bytes(b"\x00" * 50)
    assert "no safetensors" in refused()
    with pytest.raises(EvoError, match="scale"):
        head_for(toy_model, scale=np.zeros(64, dtype=np.float32))
    with pytest.raises(EvoError, match="shape"):
        head_for(toy_model, bias=np.zeros(3, dtype=np.float32))


def test_sigmoid_of_large_numbers(toy_model: StripedHyena2) -> None:
    head = head_for(toy_model, activation="sigmoid")
    assert head.activated(np.array([-1e4, 0.0])).tolist() == [0.0, 0.5]


def test_preset_is_the_papers_recipe(
    toy_model: StripedHyena2, toy_model_dir: Path, tmp_path: Path
) -> None:
    """The notebook's recipe, written down again: windows around p, mean log-probabilities."""
    bases = "".join(random.Random(1).choices("ACGT", k=9000))
    (tmp_path / "g.fa").write_text(f">c\n{bases}\n")
    pos = 4500
    alt = "ACGT"[("ACGT".index(bases[pos - 1]) + 1) % 4]
    (tmp_path / "v.vcf").write_text(HEADER + f"c\t{pos}\t.\t{bases[pos - 1]}\t{alt}\t.\t.\t.\n")
    out = tmp_path / "o.parquet"
    result = run(tmp_path / "v.vcf", tmp_path / "g.fa", "-m", toy_model_dir, "--preset", "evo2-paper", "-o", out, "-q")  # fmt: skip
    assert result.exit_code == 0, result.output
    row = pd.read_parquet(out).iloc[0]
    p = pos - 1
    ref = bases[p - 4096 : p + 4096]
    alt_sequence = ref[:4096] + alt + ref[4097:]
    import evo_toolkit as evo

    means = [float(evo.log_likelihood(toy_model, [s])[0]) / 8191 for s in (ref, alt_sequence)]
    assert row["dmean"] == pytest.approx(means[1] - means[0], abs=1e-7)
    assert (row["window"], row["window_start"]) == (8192, p - 4096)
    assert row["ll_ref"] / 8191 == pytest.approx(means[0], rel=1e-6)
    assert pd.isna(row["dll_rc"])


def test_choices_of_the_command_are_those_of_the_engine() -> None:
    assert score_methods.METHODS == SCORE_METHODS
    assert set(score_methods.PRESETS) == set(PRESETS)


def test_scores_do_not_depend_on_neighbours_or_order(
    toy_model: StripedHyena2, genome: Fasta, vcf: Path
) -> None:
    options = {
        "window": 128, "methods": ["delta", "jsd", "embed", "entropy"], "layers": ["blocks.1"],
        "suffix": "adaptive",
    }  # fmt: skip
    together = score_variants(toy_model, vcf, genome.path, **options)
    texts = [f"c-{v.pos}-{v.ref}-{v.alt}" for v in alleles()]
    for texts_now in (texts[::-1], texts[4:5]):
        found = score_variants(toy_model, texts_now, genome.path, **options)
        merged = found.merge(together, on=["pos", "ref", "alt"], suffixes=("", "_then"))
        assert len(merged) == len(texts_now)
        for name in ("dll", "jsd", "jsd_max", "embed_l2_blocks.1", "ent_ref"):
            pd.testing.assert_series_equal(
                merged[name], merged[f"{name}_then"], check_names=False, check_exact=True
            )
