"""Files that are not what they seem: one clear error each, and nothing executed."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.checkpoint.torchfile import read_torch_file
from evo_toolkit.errors import CheckpointError, ConfigError, EvoError
from evo_toolkit.model.config import StripedHyena2Config


class RunsCode:
    """A pickle of this creates a file when it is loaded naively."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def refuse(path: Path, config: StripedHyena2Config | None = None) -> str:
    """The one-line message with which a file is refused."""
    with pytest.raises(CheckpointError) as error:
        load_model(path, config=config, device="cpu")
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None
    return str(error.value)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    tmp_path: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config, wrapped: bool
) -> None:
    victim = tmp_path / "executed"
    tiny_weights["blocks.0.projections._extra_state"] = RunsCode(victim)
    path = tmp_path / "evil.pt"
    torch.save({"module": tiny_weights} if wrapped else tiny_weights, path)
    message = refuse(path, tiny_config)
    assert "nothing was executed" in message
    assert not victim.exists()
    # The trap is real: the same file, loaded without our reader, springs it.
    torch.load(path, weights_only=False)
    assert victim.exists()


def test_a_pickle_that_runs_code_inside_a_payload_is_skipped(
    tmp_path: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    victim = tmp_path / "executed"
    payload = io.BytesIO(pickle.dumps(RunsCode(victim)))
    tiny_weights["blocks.0.projections._extra_state"] = payload
    path = tmp_path / "payload.pt"
    torch.save(tiny_weights, path)
    source = open_source(path, config=tiny_config).source
    assert len(list(source.iter_tensors())) == len(source.specs())
    assert not victim.exists()


def test_a_bare_pickle_is_refused_and_does_not_run(
    tmp_path: Path, tiny_config: StripedHyena2Config
) -> None:
    victim = tmp_path / "executed"
    path = tmp_path / "bare.pt"
    path.write_bytes(pickle.dumps(RunsCode(victim)))
    assert "not a checkpoint" in refuse(path, tiny_config)
    assert not victim.exists()


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(
    tmp_path: Path, tiny_file: Path, tiny_config: StripedHyena2Config, keep: float
) -> None:
    data = tiny_file.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(len(data) * keep)])
    assert "truncated" in refuse(path, tiny_config)


def test_bytes_missing_in_the_middle_are_refused(
    tmp_path: Path, tiny_file: Path, tiny_config: StripedHyena2Config
) -> None:
    data = tiny_file.read_bytes()
    path = tmp_path / "hole.pt"
    path.write_bytes(data[:50_000] + data[90_000:])
    refuse(path, tiny_config)


def test_empty_text_and_archive_files_are_refused(
    tmp_path: Path, tiny_config: StripedHyena2Config
) -> None:
    empty, text, archive = (tmp_path / f"{n}.pt" for n in ("empty", "text", "archive"))
    empty.write_bytes(b"")
    text.write_text(">chr1\nACGT\n")
    with zipfile.ZipFile(archive, "w") as handle:
        handle.writestr("hello.txt", "hello")
    assert "is empty" in refuse(empty, tiny_config)
    assert "not a checkpoint" in refuse(text, tiny_config)
    assert "cannot be read" in refuse(archive, tiny_config)


def test_other_torch_files_are_refused(tmp_path: Path, tiny_config: StripedHyena2Config) -> None:
    path = tmp_path / "other.pt"
    torch.save([torch.zeros(2)], path)
    assert "holds a list" in refuse(path, tiny_config)
    torch.save({"state": torch.zeros(2)}, path)
    assert "first keys are state" in refuse(path, tiny_config)
    torch.save({}, path)
    assert "first keys are none" in refuse(path, tiny_config)
    torch.save({1: torch.zeros(2)}, path)
    refuse(path, tiny_config)
    torch.save(torch.nn.Linear(2, 2), path)
    assert "nothing was executed" in refuse(path, tiny_config)


def test_a_script_archive_is_refused(tmp_path: Path, tiny_config: StripedHyena2Config) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as handle:
        handle.writestr("script/constants.pkl", b"\x80\x02).")
        handle.writestr("script/data.pkl", b"\x80\x02).")
        handle.writestr("script/version", b"3\n")
    assert "TorchScript" in refuse(path, tiny_config)


def test_wrong_shapes_and_configurations_are_refused(
    tmp_path: Path, tiny_file: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    tiny_weights["norm.scale"] = torch.zeros(65)
    path = tmp_path / "shape.pt"
    torch.save(tiny_weights, path)
    assert "norm.scale is [65], wanted [64]" in refuse(path, tiny_config)
    assert "does not fit" in refuse(tiny_file, tiny_config.replace(mlp_width=160))
    assert "does not fit" in refuse(tiny_file, tiny_config.replace(width=128))


def test_a_configuration_that_is_none_is_refused(tmp_path: Path, tiny_file: Path) -> None:
    for name, text in (
        ("a.json", ""), ("b.json", "[1]"), ("c.yml", "a: [1"), ("d.json", '{"hidden_size": 64}'),
        ("e.json", '{"pattern": "SDX"}'), ("f.yml", "!!python/object/apply:os.getcwd []"),
    ):  # fmt: skip
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            load_model(tiny_file, config=path)
        assert "\n" not in str(error.value), name
    with pytest.raises(EvoError, match="cannot read"):
        load_model(tiny_file, config=tmp_path / "absent.json")


def test_a_folder_or_absent_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refuse(tmp_path / "absent.pt")
    assert "has no config.json" in refuse(tmp_path)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_torch_file(tmp_path)
