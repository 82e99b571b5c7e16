"""`embed` on whole records, regions and variants, in three formats, interrupted and continued."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from evo_data.alphabet import reverse_complement
from evo_data.fasta import Fasta
from evo_toolkit.cli.embed_store import GroupStore
from evo_toolkit.cli.main import cli
from evo_toolkit.inference.embed import EmbeddingRunner, embed
from evo_toolkit.inference.embed_files import EmbeddedGroup
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.resume import ResumeError

LAYERS = ("blocks.1", "norm")


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, args)))


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    draw = random.Random(0)
    path.write_text(
        "".join(
            f">{name}\n{''.join(draw.choices('ACGTacgt', k=n))}\n" for name, n in (("c1", 300), ("c2", 90))
        )
    )  # fmt: skip
    return path


@pytest.fixture
def embed_it(genome: Path, toy_model_dir: Path) -> object:
    def call(output: Path, *more: object) -> Result:
        layers = [x for layer in LAYERS for x in ("-l", layer)]
        return run("embed", genome, "-m", toy_model_dir, *layers, "-o", output, *more)

    return call


def bases(genome: Path, contig: str, start: int, end: int, strand: str = "+") -> str:
    with Fasta(genome) as fasta:
        found = fasta.fetch(contig, start, end)
    return (found if strand == "+" else reverse_complement(found)).decode()


def tables(tmp_path: Path, embed_it, *more: object) -> dict[str, pd.DataFrame]:  # type: ignore[no-untyped-def]
    """One row per sequence or position, from each of the formats: columns, then channels."""
    pytest.importorskip("h5py")
    found = {}
    for suffix in ("npz", "parquet", "h5ad"):
        output = tmp_path / f"e.{suffix}"
        result = embed_it(output, "--force", *more)
        assert result.exit_code == 0, result.stderr
        assert not output.with_name(output.name + ".partial").exists()
        found[suffix] = READERS[suffix](output)
    return found


def from_npz(path: Path) -> pd.DataFrame:
    with np.load(path, allow_pickle=False) as data:
        assert json.loads(str(data["manifest"]))["model"] == "toy"
        known = {"ids", "manifest", *LAYERS}
        more = {k: data[k] for k in data.files if k not in known and "/" not in k}
        frame = pd.DataFrame({"id": data["ids"], **more})
        return pd.concat([frame, pd.DataFrame(np.concatenate([data[x] for x in LAYERS], 1))], axis=1)  # fmt: skip


def from_parquet(path: Path) -> pd.DataFrame:
    table = pd.read_parquet(path)
    parts = [table[table["layer"] == x].reset_index(drop=True) for x in LAYERS]
    values = np.concatenate([np.stack(part["embedding"].tolist()) for part in parts], axis=1)
    return pd.concat([parts[0].drop(columns=["layer", "embedding"]), pd.DataFrame(values)], axis=1)


def from_h5ad(path: Path) -> pd.DataFrame:
    anndata = pytest.importorskip("anndata")
    data = anndata.read_h5ad(path)
    assert json.loads(data.uns["evo_toolkit"])["model"] == "toy"
    assert data.var["layer"].unique().tolist() == list(LAYERS)
    frame = data.obs.reset_index(names="id" if "id" not in data.obs else "row")
    return pd.concat([frame.drop(columns="row", errors="ignore"), pd.DataFrame(data.X)], axis=1)


READERS = {"npz": from_npz, "parquet": from_parquet, "h5ad": from_h5ad}


def expected(model: StripedHyena2, sequences: list[str], **options: object) -> np.ndarray:
    found = embed(model, sequences, LAYERS, **options)  # type: ignore[call-overload]
    return np.concatenate([found[layer] for layer in LAYERS], axis=1)


def channels(table: pd.DataFrame) -> np.ndarray:
    return table[[c for c in table.columns if isinstance(c, int)]].to_numpy(np.float32)


def test_records_in_every_format(
    genome: Path, embed_it, toy_model: StripedHyena2, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    wanted = expected(
        toy_model,
        [bases(genome, "c1", 0, 300), bases(genome, "c2", 0, 90)],
        pool="max",
        strands="concat",
    )
    for table in tables(tmp_path, embed_it, "--pool", "max", "--strands", "concat").values():
        assert table["id"].tolist() == ["c1", "c2"]
        np.testing.assert_array_equal(channels(table), wanted)


def test_every_position(genome: Path, embed_it, toy_model: StripedHyena2, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sequences = [bases(genome, "c1", 0, 300), bases(genome, "c2", 0, 90)]
    found = embed(toy_model, sequences, LAYERS, pool="none", strands="both")
    rows = np.concatenate([np.concatenate(found[layer]) for layer in LAYERS], axis=1)
    for suffix in ("parquet", "h5ad"):
        output = tmp_path / f"n.{suffix}"
        assert embed_it(output, "--pool", "none", "--strands", "both").exit_code == 0
        table = READERS[suffix](output)
        assert table["id"].tolist() == ["c1"] * 300 + ["c2"] * 90
        assert table["position"].tolist() == [*range(300), *range(90)]
        np.testing.assert_array_equal(channels(table), rows)
    assert embed_it(tmp_path / "n.npz", "--pool", "none", "--strands", "both").exit_code == 0
    with np.load(tmp_path / "n.npz") as data:
        np.testing.assert_array_equal(data["norm/c2"], found["norm"][1])


def test_regions_of_a_bed_are_read_on_their_strand(
    genome: Path, embed_it, toy_model: StripedHyena2, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    bed = tmp_path / "r.bed"
    bed.write_text("# comment\nc1\t10\t50\tone\t0\t+\nc1\t10\t50\tone\t0\t-\nc2\t0\t90\n")
    wanted = [("c1", 10, 50, "+"), ("c1", 10, 50, "-"), ("c2", 0, 90, "+")]
    values = expected(toy_model, [bases(genome, *place) for place in wanted])
    for table in tables(tmp_path, embed_it, "-R", bed).values():
        assert table["id"].tolist() == ["one", "one#2", "c2:1-90(+)"]
        places = table[["contig", "start", "end", "strand"]].itertuples(index=False, name=None)
        assert list(places) == wanted
        np.testing.assert_array_equal(channels(table), values)
    # So many bases around the middle, moved inwards at an end, and a whole contig that is shorter.
    output = tmp_path / "w.npz"
    assert embed_it(output, "-R", bed, "-r", "c1:1-10", "--window", 100).exit_code == 0
    table = from_npz(output)
    places = list(table[["contig", "start", "end"]].itertuples(index=False, name=None))
    assert places == [("c1", 0, 100), ("c1", 0, 100), ("c1", 0, 100), ("c2", 0, 90)]


def test_features_of_a_gff(genome: Path, embed_it, toy_model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    gff = tmp_path / "a.gff3"
    gff.write_text(
        "##gff-version 3\n"
        "c1\tx\tgene\t11\t40\t.\t-\t.\tID=g1\n"
        "c1\tx\tCDS\t11\t20\t.\t-\t0\tID=p1\nc1\tx\tCDS\t31\t40\t.\t-\t0\tID=p1\n"
    )
    output = tmp_path / "e.npz"
    assert embed_it(output, "-R", gff).exit_code == 0
    table = from_npz(output)
    assert table["id"].tolist() == ["g1"]
    np.testing.assert_array_equal(
        channels(table), expected(toy_model, [bases(genome, "c1", 10, 40, "-")])
    )
    assert embed_it(output, "-R", gff, "--feature", "CDS", "--force").exit_code == 0
    assert from_npz(output)["id"].tolist() == ["p1", "p1#2"]
    refused = embed_it(output, "-R", gff, "--feature", "exon", "--force")
    assert refused.exit_code == 1 and "it has CDS, gene" in refused.stderr
    refused = embed_it(output, "-r", "c1", "--feature", "CDS", "--force")
    assert refused.exit_code == 2 and "GFF3 or GTF" in refused.stderr


def test_both_alleles_of_variants(
    genome: Path, embed_it, toy_model: StripedHyena2, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    at = {p: bases(genome, "c1", p - 1, p) for p in (100, 120, 150)}
    other = {"A": "C", "C": "G", "G": "T", "T": "A"}
    vcf = tmp_path / "v.vcf"
    vcf.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        f"c1\t100\t.\t{at[100]}\t{other[at[100]]},{at[100]}TT\t.\t.\t.\n"
        f"c1\t120\t.\t{other[at[120]]}\t{other[other[at[120]]]}\t.\t.\t.\nc1\t150\t.\t{at[150]}\t<DEL>\t.\t.\t.\n"
    )
    output = tmp_path / "e.npz"
    result = embed_it(output, "-R", vcf, "--window", 60, "--pool", "center", "--strands", "both")
    assert result.exit_code == 0, result.stderr
    assert "left out: ref_mismatch 1, symbolic 1" in result.stderr
    table = from_npz(output)
    assert table["allele"].tolist() == ["ref", "alt"] * 2
    key = f"c1-100-{at[100]}-{other[at[100]]}"
    assert table["id"].tolist()[:2] == [f"{key}:ref", f"{key}:alt"]
    assert table["variant"].tolist()[:2] == [key, key]
    assert table.loc[0, ["start", "end"]].tolist() == [99 - 30, 99 + 30]
    # By hand: on either strand the variant is half a window from the window's start.
    for row, base in ((0, at[100]), (1, other[at[100]])):
        fwd = bases(genome, "c1", 69, 99) + base + bases(genome, "c1", 100, 129)
        rc = bases(genome, "c1", 100, 130, "-") + bases_of(base) + bases(genome, "c1", 70, 99, "-")
        assert len(fwd) == len(rc) == 60
        masks = [np.arange(60) == 30]
        wanted = [expected(toy_model, [s], masks=masks)[0] for s in (fwd, rc)]
        np.testing.assert_allclose(
            channels(table)[row], (wanted[0] + wanted[1]) / 2, rtol=1e-5, atol=1e-6
        )
    refused = embed_it(output, "-R", vcf, "--pool", "none", "--strands", "both", "--force")
    assert refused.exit_code == 2 and "use fwd or rc" in refused.stderr
    vcf.write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nc1\t5\t.\tA\t<DEL>\t.\t.\t.\n")  # fmt: skip
    nothing = embed_it(tmp_path / "x.npz", "-R", vcf)
    assert nothing.exit_code == 3 and not (tmp_path / "x.npz").exists()
    assert not (tmp_path / "x.npz.partial").exists()


def bases_of(base: str) -> str:
    return reverse_complement(base.encode()).decode()


@pytest.mark.parametrize("suffix", ["npz", "parquet", "h5ad"])
@pytest.mark.parametrize("pool", ["mean", "none"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    genome: Path,
    embed_it,
    toy_model: StripedHyena2,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    pool: str,
) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("h5py")
    bed, output = tmp_path / "r.bed", tmp_path / f"e.{suffix}"
    lines = [f"c1\t{10 * i}\t{10 * i + 40}\tr{i}\n" for i in range(12)]
    bed.write_text("".join(lines))
    arguments = (output, "-R", bed, "--pool", pool)
    # Groups of about four regions.
    monkeypatch.setattr("evo_toolkit.inference.embed._USUAL", 3)
    monkeypatch.setattr("evo_toolkit.inference.embed.default_rows", lambda *_: 1)
    assert embed_it(*arguments).exit_code == 0
    sequences = [bases(genome, "c1", 10 * i, 10 * i + 40) for i in range(12)]
    if pool == "mean":
        wanted = expected(toy_model, sequences)
        np.testing.assert_array_equal(channels(READERS[suffix](output)), wanted)
    else:
        rows = embed(toy_model, sequences, LAYERS, pool="none")
        if suffix == "npz":
            with np.load(output) as data:
                np.testing.assert_array_equal(data["norm/r11"], rows["norm"][11])
        else:
            wanted = np.concatenate([np.concatenate(rows[layer]) for layer in LAYERS], axis=1)
            np.testing.assert_array_equal(channels(READERS[suffix](output)), wanted)
    whole = hashlib.sha256(output.read_bytes()).hexdigest()
    output.unlink()
    embedded, limit = [], 2
    original = EmbeddingRunner.embed

    def failing(self: EmbeddingRunner, sequences: list[object]) -> object:
        if len(embedded) == limit:
            raise KeyboardInterrupt
        embedded.append(len(sequences))
        return original(self, sequences)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddingRunner, "embed", failing)
    stopped = embed_it(*arguments)
    assert stopped.exit_code == 130 and not output.exists() and len(embedded) == 2
    limit = 99
    bed.write_text("".join(lines[1:]))
    changed = embed_it(*arguments)
    assert changed.exit_code == 1 and "content of regions_file" in changed.stderr
    bed.write_text("".join(lines))
    other = embed_it(output, "-R", bed, "--pool", "last")
    assert other.exit_code == 1 and f"pool was {pool}, is last" in other.stderr
    resumed = embed_it(*arguments)
    assert resumed.exit_code == 0 and "going on after 2 groups" in resumed.stderr
    assert sum(embedded) == 12 and hashlib.sha256(output.read_bytes()).hexdigest() == whole
    assert not output.with_name(output.name + ".partial").exists()
    # A damaged group is made again.
    output.unlink()
    embedded.clear()
    limit = 2
    assert embed_it(*arguments).exit_code == 130
    group = next(output.with_name(output.name + ".partial").glob("chunk-*0.npz"))
    group.write_bytes(group.read_bytes()[:100])
    limit = 99
    assert embed_it(*arguments).exit_code == 0
    assert hashlib.sha256(output.read_bytes()).hexdigest() == whole


def test_h5ad_follows_the_format_of_anndata(embed_it, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    h5py = pytest.importorskip("h5py")
    output = tmp_path / "e.h5ad"
    assert embed_it(output).exit_code == 0
    with h5py.File(output) as data:
        kinds = {name: item.attrs["encoding-type"] for name, item in data.items()}
        assert data.attrs["encoding-type"] == "anndata"
        assert kinds["X"] == "array" and kinds["obs"] == kinds["var"] == "dataframe"
        assert data["obs"].attrs["_index"] == "_index"
        assert [x.decode() for x in data["obs/_index"][:]] == ["c1", "c2"]
        assert data["X"].shape == (2, 32) and data["X"].dtype == np.float32
        assert data["var/channel"][:].tolist() == [*range(16), *range(16)]


def test_wrong_use_is_one_line(
    genome: Path, embed_it, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    output = tmp_path / "e.npz"
    bed = tmp_path / "r.bed"
    bed.write_text("c1\t10\t900\n")
    for arguments, code, message in (
        (("-R", bed), 1, "[10, 900) is no stretch of c1"),
        (("--window", 50), 2, "--window is for regions"),
        (("-r", "c9:1-2"), 2, "no contig"),
        (("-R", tmp_path / "none.bed"), 1, "none.bed"),
        (("-l", "blocks.9"), 2, "blocks run from 0 to 3"),
    ):
        result = embed_it(output, *arguments)
        assert result.exit_code == code and message in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1
        assert not output.exists() and not output.with_name("e.npz.partial").exists()
    (tmp_path / "in.npz").symlink_to(bed)
    refused = embed_it(tmp_path / "in.npz", "-R", bed, "--force")
    assert refused.exit_code == 2 and "is also an input" in refused.stderr
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    refused = embed_it(tmp_path / "e.h5ad")
    assert refused.exit_code == 2 and "evo-toolkit[anndata]" in refused.stderr


def test_a_group_of_other_sequences_is_no_group_of_this_run(tmp_path: Path) -> None:
    group = EmbeddedGroup(columns={"id": ["a"]}, layers={"norm": [np.ones(3, np.float32)]})
    with GroupStore(tmp_path / "e.npz", {"is": "the same"}) as store:
        store.begin((), 0)
        store.save_group(0, "digest", group)
        assert store.has(0, "digest") and not store.has(1, "digest")
        with pytest.raises(ResumeError, match="the input is another one"):
            store.has(0, "another")
        (found,) = store.groups(["norm"])
        np.testing.assert_array_equal(found.layers["norm"][0], np.ones(3))
