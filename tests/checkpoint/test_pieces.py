"""Checkpoints in `.part0`, `.part1`, ... pieces: joined once, in order, or refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evo_toolkit.checkpoint import pieces as pieces_module
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.checkpoint.pieces import find_pieces, merge_pieces
from evo_toolkit.errors import CheckpointError

Splitter = Callable[[int], list[Path]]


@pytest.fixture
def split(tmp_path: Path, tiny_file: Path) -> Splitter:
    def run(count: int) -> list[Path]:
        folder = tmp_path / "pieces"
        folder.mkdir()
        data = tiny_file.read_bytes()
        size = -(-len(data) // count)
        paths = [folder / f"tiny.pt.part{i}" for i in range(count)]
        for i, path in enumerate(paths):
            path.write_bytes(data[i * size : (i + 1) * size])
        shutil.copy(tiny_file.with_name("tiny_noscale.config.json"), folder / "tiny.config.json")
        return paths

    return run


def test_pieces_are_joined_in_numeric_order(
    split: Splitter, tiny_file: Path, own_cache: Path
) -> None:
    pieces = split(12)  # part10 and part11 sort before part2 as text
    assert find_pieces(pieces[7]) == pieces
    assert find_pieces(pieces[0].with_name("tiny.pt")) == pieces
    merged = merge_pieces(pieces)
    assert merged.read_bytes() == tiny_file.read_bytes()
    assert merged.parent == own_cache / "merged"
    assert list(merged.parent.iterdir()) == [merged]
    assert all(piece.exists() for piece in pieces)


def test_joining_happens_once_for_the_same_pieces(split: Splitter) -> None:
    pieces = split(3)
    merged = merge_pieces(pieces)
    before = merged.stat().st_mtime_ns
    assert merge_pieces(pieces).stat().st_mtime_ns == before
    data = pieces[0].read_bytes()
    pieces[0].write_bytes(data)
    # Rewritten pieces are other pieces.
    assert merge_pieces(pieces) != merged


@pytest.mark.parametrize("given", ["tiny.pt", "tiny.pt.part0", "tiny.pt.part2"])
def test_a_model_loads_from_pieces_by_any_of_their_names(
    split: Splitter, tiny_file: Path, given: str
) -> None:
    folder = split(3)[0].parent
    model = load_model(folder / given, device="cpu", precision="exact")
    whole = load_model(tiny_file, device="cpu", precision="exact")
    ids = torch.tensor([[65, 67, 71, 84]])
    with torch.no_grad():
        assert torch.equal(model(ids), whole(ids))
    assert model.sha256 == whole.sha256


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_missing_piece_is_named(split: Splitter, own_cache: Path, lost: int) -> None:
    pieces = split(4)
    pieces[lost].unlink()
    with pytest.raises(CheckpointError, match="download the rest") as error:
        open_source(pieces[2])
    assert f"part{lost}" in str(error.value) or "not the last piece" in str(error.value)
    assert not (own_cache / "merged").exists() or not any((own_cache / "merged").iterdir())


def test_a_full_disk_is_noticed_before_anything_is_written(
    split: Splitter, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = split(2)
    total = sum(p.stat().st_size for p in pieces)

    class Usage:
        free = total - 1

    monkeypatch.setattr(pieces_module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(CheckpointError, match="EVO_TOOLKIT_CACHE to another disk"):
        merge_pieces(pieces)
    assert [p.stat().st_size for p in (own_cache / "merged").iterdir()] in ([], [0])


def test_what_a_killed_process_left_is_overwritten(split: Splitter, tiny_file: Path) -> None:
    pieces = split(2)
    merged = merge_pieces(pieces)
    partial = merged.with_name(f".{merged.name}.tmp")
    merged.unlink()
    partial.write_bytes(b"left" * 1_000_000)
    assert merge_pieces(pieces).read_bytes() == tiny_file.read_bytes()
    assert not partial.exists()


def test_two_processes_may_join_at_once(split: Splitter, tiny_file: Path) -> None:
    pieces = split(5)
    code = (
        "import sys; from pathlib import Path; from evo_toolkit.checkpoint.pieces import *;"
        "print(merge_pieces(find_pieces(Path(sys.argv[1]))))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, pieces[0]], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    (merged,) = outputs
    assert Path(merged).read_bytes() == tiny_file.read_bytes()


def test_a_cache_that_cannot_be_written_is_one_error(
    split: Splitter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("EVO_TOOLKIT_CACHE", str(blocked))
    with pytest.raises(CheckpointError, match="set EVO_TOOLKIT_CACHE to another folder"):
        merge_pieces(split(2))
