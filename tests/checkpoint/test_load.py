"""`load_model`: right logits, right dtypes, right refusals."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_toolkit.checkpoint import load as load_module
from evo_toolkit.checkpoint import opening
from evo_toolkit.checkpoint.cache import cached_sha256, remembered_sha256
from evo_toolkit.checkpoint.format import save_pretrained
from evo_toolkit.checkpoint.load import load_model, resolve_device
from evo_toolkit.checkpoint.names import weight_bytes
from evo_toolkit.checkpoint.opening import accuracy_note, released_twin, with_fp8
from evo_toolkit.errors import CheckpointError, InaccurateModelError, UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.registry import MODELS, ModelEntry


def test_logits_are_the_recorded_ones(tiny_file: Path, tiny_expected: dict[str, Any]) -> None:
    model = load_model(tiny_file, device="cpu", precision="exact")
    case = tiny_expected["L130"]
    with torch.no_grad():
        logits = model(case["input_ids"].long())[:, case["positions"]]
    # Issue tolerance of the recordings: float32 sums in another order.
    assert (logits - case["logits_fp32"]).abs().max() < 2e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_gets_the_same_weights(tiny_file: Path) -> None:
    here = load_model(tiny_file, device="cpu", precision="vortex").state_dict()
    there = load_model(tiny_file, device="cuda", precision="vortex")
    assert there.device.type == "cuda"
    for name, tensor in there.state_dict().items():
        assert tensor.is_cuda
        assert tensor.dtype == here[name].dtype
        assert torch.equal(tensor.cpu(), here[name]), name


def test_the_model_is_ready_for_inference(tiny_file: Path) -> None:
    model = load_model(tiny_file, device="cpu", precision="vortex")
    assert not model.training
    assert model.source == str(tiny_file)
    assert model.sha256 == cached_sha256(tiny_file)
    assert model.notes == ()
    assert all(not t.is_meta for t in [*model.parameters(), *model.buffers()])
    dtypes = {name: t.dtype for name, t in model.state_dict().items()}
    assert all((".mixer." in name) == (d == torch.float32) for name, d in dtypes.items())
    copy.deepcopy(model)
    pickle.dumps(model)


def test_exact_is_float32_throughout(tiny_file: Path) -> None:
    model = load_model(tiny_file, device="cpu", precision="exact")
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}


def test_vortex_rounds_filters_that_were_not(
    tmp_path: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
) -> None:
    tiny_state["blocks.1.mixer.h"] = tiny_state["blocks.1.mixer.h"].float() + 1e-5
    tiny_state["blocks.2.mixer.residues"] = tiny_state["blocks.2.mixer.residues"] + 1e-5
    path = save_pretrained(tiny_state, tiny_config, tmp_path / "m", provenance={"source": "test"})
    model = load_model(path, device="cpu", precision="vortex")
    found = model.state_dict()
    taps = found["blocks.1.mixer.h"]
    assert torch.equal(taps, tiny_state["blocks.1.mixer.h"].bfloat16().float())
    assert torch.equal(found["blocks.2.mixer.residues"], tiny_state["blocks.2.mixer.residues"])
    exact = load_model(path, device="cpu", precision="exact").state_dict()
    assert torch.equal(exact["blocks.1.mixer.h"], tiny_state["blocks.1.mixer.h"])


def test_our_folder_loads_with_its_recorded_checksum(
    tmp_path: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config, tiny_file: Path
) -> None:
    path = save_pretrained(tiny_state, tiny_config, tmp_path / "m", provenance={"source": "test"})
    ours = load_model(path, device="cpu", precision="exact")
    theirs = load_model(str(tiny_file), device="cpu", precision="exact")
    record = json.loads((path / "provenance.json").read_text())
    assert ours.sha256 == record["sha256"]
    assert all(torch.equal(t, ours.state_dict()[k]) for k, t in theirs.state_dict().items())


def test_the_checksum_is_computed_once_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    first = cached_sha256(path)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert remembered_sha256(path) == first
    with monkeypatch.context() as patch:
        patch.setattr(
            "evo_toolkit.checkpoint.cache.file_digest", lambda *_: pytest.fail("computed")
        )
        assert cached_sha256(path) == first
    path.write_bytes(b"abcd")
    assert remembered_sha256(path) is None
    assert cached_sha256(path) != first


def test_an_unwritable_cache_does_not_matter(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVO_TOOLKIT_CACHE", str(tmp_path / "file"))
    assert len(load_model(tiny_file, device="cpu").sha256) == 64


@pytest.mark.parametrize("ending", [".config.json", ".config.yml", ".yml"])
def test_the_configuration_may_lie_beside(tmp_path: Path, tiny_file: Path, ending: str) -> None:
    path = tmp_path / "m.pt"
    shutil.copy(tiny_file, path)
    with pytest.raises(CheckpointError, match=r"put it beside as m\.config\.json"):
        load_model(path)
    # JSON is YAML.
    shutil.copy(tiny_file.with_name("tiny_noscale.config.json"), tmp_path / f"m{ending}")
    assert load_model(path, device="cpu").config.pattern == "SDH*SDH*"


def test_a_file_named_after_a_released_model_takes_its_configuration(
    tmp_path: Path, tiny_file: Path
) -> None:
    path = tmp_path / "evo2_7b.pt"
    shutil.copy(tiny_file, path)
    with pytest.raises(CheckpointError, match=r"does not fit the configuration evo2_7b"):
        load_model(path)
    shutil.move(path, tmp_path / "savanna_evo2_7b.pt")
    with pytest.raises(CheckpointError, match=r"does not fit the configuration evo2_7b"):
        load_model(tmp_path / "savanna_evo2_7b.pt")


def test_models_with_a_configuration_of_their_own_take_no_other(
    tmp_path: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
) -> None:
    path = save_pretrained(tiny_state, tiny_config, tmp_path / "m", provenance={"source": "test"})
    for model in (path, "evo2_7b"):
        with pytest.raises(UsageError, match="own"):
            load_model(model, config=tiny_config)
    with pytest.raises(CheckpointError, match="give the folder"):
        load_model(path / "model.safetensors")


def test_unknown_names_and_absent_models_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"is evo-mini with an adapter; name the adapter's file: -m evo-mini --adapter FILE"):  # fmt: skip
        load_model("evo-mini+promoters")
    with pytest.raises(UsageError, match="known are evo-mini, evo2_1b_base"):
        load_model("evo3")
    with pytest.raises(UsageError, match="empty"):
        load_model("")
    monkeypatch.setattr(opening.hub, "find", lambda name: None)
    with pytest.raises(CheckpointError, match="evo-toolkit models download evo2_7b"):
        load_model("evo2_7b")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "mps"])
def test_devices_that_do_not_exist_are_wrong_usage(device: str) -> None:
    with pytest.raises(UsageError, match="device"):
        resolve_device(device)


def test_a_model_larger_than_the_memory_is_refused_before_it_is_read(
    tiny_file: Path, tiny_config: StripedHyena2Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = weight_bytes(tiny_config, 4)
    monkeypatch.setattr(load_module, "total_memory", lambda device: needed)
    load_model(tiny_file, device="cpu", precision="exact")
    monkeypatch.setattr(load_module, "total_memory", lambda device: needed - 1)
    with pytest.raises(CheckpointError, match="use a smaller model"):
        load_model(tiny_file, device="cpu", precision="exact")


def test_weight_bytes_by_hand() -> None:
    config = MODELS["evo2_7b"].config
    total = sum(t.numel() * t.element_size() for t in _meta_weights(config))
    assert weight_bytes(config, 2) == total
    # The published size of the weights, 12.26 GiB, holds taps and skips in bf16.
    assert total / 2**30 == pytest.approx(12.26, abs=0.02)


def _meta_weights(config: StripedHyena2Config) -> list[Tensor]:
    from evo_toolkit.model.striped_hyena import StripedHyena2

    with torch.device("meta"):
        model = StripedHyena2(config)
    return [
        torch.empty_like(
            t, dtype=torch.float32 if ".mixer." in k else torch.bfloat16, device="meta"
        )
        for k, t in model.state_dict().items()
    ]


class TestFp8:
    """Weights that need Hopper's FP8 are known by name, by declaration and by shape."""

    def test_released_names_are_refused_with_the_cost(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, entry in MODELS.items():
            note = accuracy_note(entry.config)
            if name.startswith("evo2_7b"):
                assert note is None
            else:
                assert note is not None
        assert "1.700" in (accuracy_note(MODELS["evo2_40b"].config) or "")

    def test_shape_and_declaration_decide(self) -> None:
        config = MODELS["evo2_40b"].config.replace(name="mine", fp8="none")
        twin = released_twin(config)
        assert twin is not None
        assert twin.config.name == "evo2_40b"
        assert with_fp8(config, declared=True, scales=False).fp8 == "hopper"
        assert with_fp8(config, declared=None, scales=True).fp8 == "hopper"
        # Scales say how the weights were trained, whatever a configuration was edited to say.
        assert with_fp8(config, declared=False, scales=True).fp8 == "hopper"
        assert with_fp8(config, declared=None, scales=False).fp8 == "none"
        seven = MODELS["evo2_7b"].config.replace(fp8="none")
        assert with_fp8(seven, declared=True, scales=True).fp8 == "none"
        wider = config.replace(mlp_width=22000)
        assert with_fp8(wider, declared=True, scales=True).fp8 == "none"

    @pytest.fixture
    def twin_of_tiny(
        self, tiny_config: StripedHyena2Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = ModelEntry(
            config=tiny_config.replace(name="evo2_tiny", fp8="hopper"), repo="a/b",
            filename="evo2_tiny.pt", download_gb=0.1, note="",
        )  # fmt: skip
        monkeypatch.setitem(MODELS, "evo2_tiny", entry)
        monkeypatch.setitem(opening.FP8_COST, "evo2_tiny", "9 nats against 1")

    @pytest.mark.usefixtures("twin_of_tiny")
    def test_a_path_is_refused_by_its_shape_and_declaration(
        self, tmp_path: Path, tiny_file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        values = json.loads(tiny_file.with_name("tiny_noscale.config.json").read_text())
        values["use_fp8_input_projections"] = True
        config = tmp_path / "c.json"
        config.write_text(json.dumps(values))
        with pytest.raises(InaccurateModelError) as error:
            load_model(tiny_file, config=config)
        message = str(error.value)
        assert "\n" not in message
        for part in ("9 nats against 1", "evo2_7b", "--allow-inaccurate", "allow_inaccurate=True"):
            assert part in message
        with caplog.at_level(logging.WARNING, "evo_toolkit"):
            model = load_model(tiny_file, config=config, device="cpu", allow_inaccurate=True)
        assert len(model.notes) == 1
        assert "9 nats against 1" in model.notes[0]
        assert "9 nats against 1" in caplog.text
        values["use_fp8_input_projections"] = False
        config.write_text(json.dumps(values))
        assert load_model(tiny_file, config=config, device="cpu").notes == ()

    @pytest.mark.usefixtures("twin_of_tiny")
    def test_a_path_is_refused_by_its_shape_and_scales(
        self, tmp_path: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
    ) -> None:
        path = tmp_path / "m.pt"
        torch.save(tiny_weights, path)
        assert load_model(path, config=tiny_config, device="cpu").config.fp8 == "none"
        tiny_weights["blocks.0.projections._extra_state"] = torch.zeros(3, dtype=torch.uint8)
        torch.save(tiny_weights, path)
        with pytest.raises(InaccurateModelError):
            load_model(path, config=tiny_config)

    def test_our_folder_is_refused_by_its_configuration(
        self, tmp_path: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
    ) -> None:
        config = tiny_config.replace(fp8="hopper")
        path = save_pretrained(tiny_state, config, tmp_path / "m", provenance={"source": "test"})
        with pytest.raises(InaccurateModelError, match="has not been measured"):
            load_model(path)
