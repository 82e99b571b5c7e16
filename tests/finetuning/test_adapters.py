"""Adapters: put on, saved alone, read by every command, merged; and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from evo_toolkit.checkpoint.adapter import Adapter, read_adapter, split_adapter
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import CheckpointError, EvoError, UsageError
from evo_toolkit.finetuning.adapters import (
    AdapterConfig,
    add_adapter,
    has_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from evo_toolkit.model.striped_hyena import StripedHyena2

X = torch.tensor([list(b"ACGTTGCATTAGACCATG" * 6)])


def logits(model: StripedHyena2) -> torch.Tensor:
    with torch.no_grad():
        return model(X)


@pytest.fixture(scope="module")
def trained(toy_model_dir: Path) -> StripedHyena2:
    """The toy model with an adapter and filters that are not what they were."""
    model = load_model(toy_model_dir, device="cpu")
    add_adapter(model, AdapterConfig(rank=3, alpha=5.0, train_whole=("filters", "biases")))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                change = torch.rand(parameter.shape, generator=generator)
                # Poles stay below 0.
                parameter.mul_(1 + change) if ".mixer." in name else parameter.add_(change - 0.4)
    return model


@pytest.fixture(scope="module")
def adapter_file(trained: StripedHyena2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "mine.safetensors"
    save_adapter(
        trained, path, head={"weight": torch.ones(1, 16)}, head_about={"kind": "binary"},
        training={"data": "abc"},
    )  # fmt: skip
    return path


def test_an_adapter_changes_nothing_before_it_is_trained(toy_model_dir: Path) -> None:
    model = load_model(toy_model_dir, device="cpu")
    before, names = logits(model), {name for name, _ in model.named_parameters()}
    state = torch.get_rng_state()
    add_adapter(model, AdapterConfig(rank=2, blocks=(1, 3), targets=("projections", "mlp.l3")))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(before, logits(model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"blocks.{block}.{target}.lora_{factor}.default.weight"
        for block in (1, 3)
        for target in ("projections", "mlp.l3")
        for factor in "AB"
    }
    merge_adapter(model)
    assert torch.equal(before, logits(model)) and not has_adapter(model)
    assert {name for name, _ in model.named_parameters()} == names
    add_adapter(model, AdapterConfig(rank=2))  # once more
    with pytest.raises(UsageError, match="has an adapter"):
        add_adapter(model, AdapterConfig())


def test_factors_are_drawn_from_their_seed(toy_model_dir: Path) -> None:
    def drawn(seed: int) -> torch.Tensor:
        model = load_model(toy_model_dir, device="cpu")
        add_adapter(model, AdapterConfig(rank=2), seed=seed)
        return model.get_parameter("blocks.0.mlp.l1.lora_A.default.weight").detach()

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_the_file_holds_the_formula_and_nothing_of_the_model(
    trained: StripedHyena2, toy_model: StripedHyena2, adapter_file: Path
) -> None:
    tensors = load_file(adapter_file)
    kinds = {name.rpartition(".")[2] for name in tensors if not name.startswith(("full", "head"))}
    assert kinds == {"lora_A", "lora_B"}
    assert all(
        ".mixer." in name or name.endswith("bias") for name in tensors if name.startswith("full")
    )
    a, b = (tensors[f"blocks.2.mlp.l1.lora_{f}"].double() for f in "AB")
    old = toy_model.get_parameter("blocks.2.mlp.l1.weight").double()
    adapted = load_model(f"{toy_model.source}+{adapter_file}", device="cpu")
    torch.testing.assert_close(
        adapted.get_parameter("blocks.2.mlp.l1.weight").double(), old + 5 / 3 * b @ a,
        rtol=1e-6, atol=1e-7,
    )  # fmt: skip
    read = read_adapter(adapter_file)
    assert (read.rank, read.alpha, read.name) == (3, 5.0, "mine")
    assert read.head_about == {"kind": "binary"} and read.training == {"data": "abc"}
    assert torch.equal(read.head["weight"], torch.ones(1, 16))


def test_every_way_to_use_an_adapter_is_the_same_model(
    trained: StripedHyena2, toy_model_dir: Path, adapter_file: Path
) -> None:
    wanted = logits(trained)
    named = load_model(f"{toy_model_dir}+{adapter_file}", device="cpu")
    # Sums in another order, of logits about 1.
    torch.testing.assert_close(logits(named), wanted, rtol=1e-4, atol=2e-5)
    loaded = load_adapter(load_model(toy_model_dir, device="cpu"), adapter_file)
    assert torch.equal(logits(loaded), logits(named))
    again = load_adapter(load_model(toy_model_dir, device="cpu"), adapter_file, trainable=True)
    assert torch.equal(logits(again), wanted)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in trained.named_parameters() if p.requires_grad
    }
    merged = merge_adapter(again)
    torch.testing.assert_close(logits(merged), logits(named), rtol=1e-5, atol=1e-5)
    assert named.sha256 == loaded.sha256 != load_model(toy_model_dir, device="cpu").sha256
    assert named.config.name == loaded.config.name == "toy+mine"
    assert (logits(named) - logits(load_model(toy_model_dir, device="cpu"))).abs().max() > 0.1


def test_using_an_adapter_needs_no_peft(
    toy_model_dir: Path, adapter_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model = load_model(f"{toy_model_dir}+{adapter_file}", device="cpu")
    with pytest.raises(UsageError, match=r"pip install 'evo-toolkit\[finetune\]'"):
        add_adapter(model, AdapterConfig())


def test_convert_merges_to_a_model_that_is_the_same(
    toy_model_dir: Path, adapter_file: Path, tmp_path: Path
) -> None:
    words = ["convert", str(toy_model_dir), str(tmp_path / "merged"), "--verify"]
    done = CliRunner().invoke(cli, [*words, "--merge-adapter", str(adapter_file)])
    assert done.exit_code == 0, done.output
    assert "largest difference of logits" in done.output and done.output.rstrip().endswith(": 0")
    merged = load_model(tmp_path / "merged", device="cpu")
    named = load_model(f"{toy_model_dir}+{adapter_file}", device="cpu")
    assert torch.equal(logits(merged), logits(named))
    provenance = json.loads((tmp_path / "merged" / "provenance.json").read_text())
    assert provenance["adapter"]["sha256"] == read_adapter(adapter_file).digest


def test_commands_take_an_adapter(toy_model_dir: Path, adapter_file: Path, tmp_path: Path) -> None:
    fasta = tmp_path / "x.fa"
    fasta.write_text(">a\n" + "ACGTTGCAAC" * 7 + "\n")

    def embedded(*options: str) -> tuple[np.ndarray, dict[str, str]]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        words = ["embed", str(fasta), "-o", str(out), "-l", "blocks.2", "--device", "cpu"]
        done = CliRunner().invoke(cli, [*words, *options])
        assert done.exit_code == 0, done.output
        with np.load(out) as file:
            return file["blocks.2"], json.loads(str(file["manifest"]))

    plain, _ = embedded("-m", str(toy_model_dir))
    adapted, about = embedded("-m", str(toy_model_dir), "--adapter", str(adapter_file))
    turned, _ = embedded("--adapter", str(adapter_file), "-m", str(toy_model_dir))
    named, _ = embedded("-m", f"{toy_model_dir}+{adapter_file}")
    assert np.array_equal(adapted, named) and np.array_equal(adapted, turned)
    assert not np.allclose(adapted, plain) and about["model"] == "toy+mine"


def test_scores_are_those_of_the_adapted_model(
    toy_model_dir: Path, adapter_file: Path, tmp_path: Path
) -> None:
    genome, out = tmp_path / "g.fa", tmp_path / "out.tsv"
    genome.write_text(">c\n" + "ACGTTGCAACTGGATTCAGA" * 20 + "\n")
    words = ["score", "--variant", "c-100-A-G", str(genome), "--window", "64", "-q"]
    words += ["-m", str(toy_model_dir), "--device", "cpu", "-o", str(out)]
    done = CliRunner().invoke(cli, [*words, "--adapter", str(adapter_file)])
    assert done.exit_code == 0, done.output
    lines = [line for line in out.read_text().splitlines() if not line.startswith("##")]
    row = dict(zip(lines[0].lstrip("#").split("\t"), lines[1].split("\t"), strict=True))
    import evo_toolkit as evo

    adapted = evo.load_model(f"{toy_model_dir}+{adapter_file}", device="cpu")
    expected = evo.score_variants(adapted, ["c-100-A-G"], str(genome), window=64)
    assert float(row["dll"]) == pytest.approx(float(expected["dll"].iloc[0]), rel=1e-5)
    assert adapted.sha256 in json.dumps(
        json.loads((tmp_path / "out.tsv.manifest.json").read_text())
    )


def test_only_an_existing_file_of_that_ending_is_split_off(tmp_path: Path) -> None:
    assert split_adapter("evo-mini") == ("evo-mini", None)
    assert split_adapter("a+b") == ("a+b", None)
    assert split_adapter("a+b+c.safetensors") == ("a+b", "c.safetensors")
    assert split_adapter("+c.safetensors") == ("+c.safetensors", None)
    whole = tmp_path / "x+y.safetensors"
    whole.write_text("")
    assert split_adapter(str(whole)) == (str(whole), None)


def damaged(path: Path, *, drop: str = "", **metadata: str) -> None:
    """The file of `path` again, with other metadata or without a tensor."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = {**file.metadata(), **metadata}
    tensors = {k: v for k, v in load_file(path).items() if k != drop}
    save_file(tensors, path, {k: v for k, v in about.items() if v != "-"})


def test_files_that_do_not_fit_are_refused_in_one_line(
    toy_model_dir: Path, adapter_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.safetensors"

    def message(**change: str) -> str:
        copy.write_bytes(adapter_file.read_bytes())
        if change:
            damaged(copy, **change)
        with pytest.raises(CheckpointError) as error:
            load_model(f"{toy_model_dir}+{copy}", device="cpu")
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "it does not say so" in message(format="-")
    assert "says that it is a evo_toolkit.variant_head" in message(
        format="evo_toolkit.variant_head"
    )
    assert "format version 7" in message(format_version="7")
    assert "was trained on toy (weights 000" in message(model_sha256="0" * 64)
    assert "incomplete" in message(drop="blocks.0.projections.lora_B")
    assert "belongs to nothing" in message(drop="blocks.0.projections.lora_A")
    assert "incomplete" in message(rank="three")
    assert "not of rank 4" in message(rank="4")
    assert "incomplete" in message(head="[1]")
    assert "incomplete" in message(training="-")
    assert "nested too deeply" in message(head="[" * 100_000)
    assert "which no matrix can hold" in message(alpha="1e300")
    copy.write_bytes(adapter_file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="damaged"):
        open_source(f"{toy_model_dir}+{copy}")
    with pytest.raises(CheckpointError, match="No such file"):
        open_source(f"{toy_model_dir}+{tmp_path / 'none.safetensors'}")
    done = CliRunner().invoke(cli, ["embed", "x.fa", "-m", "m", "--adapter", "a.pt", "-o", "x.npz", "-l", "norm"])  # fmt: skip
    assert done.exit_code == 2 and "does not end in .safetensors" in done.output


def test_an_adapter_of_other_shapes_is_refused(toy_model_dir: Path, tmp_path: Path) -> None:
    digest = load_model(toy_model_dir, device="cpu").sha256
    for factors, full in (
        ({"blocks.0.mlp.l1": (torch.ones(2, 16), torch.ones(9, 2))}, {}),
        ({"blocks.7.mlp.l1": (torch.ones(2, 16), torch.ones(32, 2))}, {}),
        ({}, {"blocks.0.mixer.h": torch.ones(1, 2)}),
    ):
        adapter = Adapter(
            name="odd", rank=2, alpha=2.0, model="toy", model_sha256=digest, factors=factors,
            full=full,
        )  # fmt: skip
        adapter.save(tmp_path / "odd.safetensors", force=True)
        with pytest.raises(CheckpointError, match="does not belong to this model"):
            open_source(f"{toy_model_dir}+{tmp_path / 'odd.safetensors'}")
        with pytest.raises(CheckpointError, match="does not belong to this model"):
            load_adapter(load_model(toy_model_dir, device="cpu"), adapter)
    huge = Adapter(
        name="huge", rank=2, alpha=6e38, model="toy", model_sha256=digest,
        factors={"blocks.0.mlp.l1": (torch.ones(2, 16), torch.ones(32, 2))},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="larger than any number"):
        huge.apply("blocks.0.mlp.l1.weight", torch.zeros(32, 16))
    with pytest.raises(CheckpointError, match=r"holds torch\.int32"):
        Adapter(
            name="whole", rank=1, alpha=1.0, model="toy", model_sha256=digest,
            factors={"blocks.0.mlp.l1": (torch.ones(1, 16, dtype=torch.int32), torch.ones(32, 1))},
        )  # fmt: skip
    with pytest.raises(CheckpointError, match="not finite"):
        Adapter(
            name="nan", rank=1, alpha=1.0, model="toy", model_sha256=digest, factors={},
            full={"norm.scale": torch.full((16,), torch.nan)},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "at least 1"),
        ({"alpha": -1.0}, "above 0"),
        ({"dropout": 1.0}, "below 1"),
        ({"targets": ("embedding",)}, "use projections"),
        ({"targets": ()}, "is empty"),
        ({"train_whole": ("all",)}, "use filters"),
    ],
)
def test_configurations_that_cannot_be(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AdapterConfig(**options)  # type: ignore[arg-type]


def test_blocks_that_are_not_there(toy_model_dir: Path) -> None:
    model = load_model(toy_model_dir, device="cpu")
    with pytest.raises(UsageError, match="blocks run from 0 to 3"):
        add_adapter(model, AdapterConfig(blocks=(4,)))
    with pytest.raises(UsageError, match="no adapter"):
        merge_adapter(model)
    with pytest.raises(UsageError, match="no adapter"):
        save_adapter(model, "x.safetensors")
    with pytest.raises(EvoError, match="does not end"):
        save_adapter(model, "x.pt")


def test_weights_of_no_file_have_no_adapter_files(toy_model: StripedHyena2, tmp_path: Path) -> None:
    model = StripedHyena2(toy_model.config, generator_seed=0)
    add_adapter(model, AdapterConfig(rank=1))
    with pytest.raises(UsageError, match="come from no file"):
        save_adapter(model, tmp_path / "a.safetensors")
