"""Outputs appear whole or not at all."""

import gzip
import hashlib
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from evo_data.errors import EvoDataError, OutputExistsError
from evo_data.files import atomic_output, read_text, sha256_file


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    with atomic_output(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == tmp_path
        assert not path.exists()
    assert path.read_text() == "whole"
    assert _names(tmp_path) == ["out.tsv"]


def test_an_error_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_output(path, force=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["out.tsv"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_output(tmp_path / "out.tsv"):
        raise KeyboardInterrupt
    assert _names(tmp_path) == []


def test_no_overwriting_without_force(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    path.write_text("old")
    with pytest.raises(OutputExistsError, match="exists"), atomic_output(path):
        pass
    with atomic_output(path, force=True) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_file_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    with pytest.raises(OutputExistsError), atomic_output(path) as temporary:
        temporary.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert _names(tmp_path) == ["out.tsv"]


def test_the_suffix_is_that_of_the_temporary_name(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "plot", suffix=".png") as temporary:
        assert temporary.suffix == ".png"


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    with atomic_output(tmp_path / "out"):
        pass
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_link_keeps_pointing_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with atomic_output(tmp_path / "link", force=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


@pytest.mark.parametrize("name", ["/dev/null", "/dev/full"])
def test_a_device_is_never_replaced(name: str) -> None:
    with pytest.raises(EvoDataError, match="not a regular file"), atomic_output(name, force=True):
        pass
    assert stat.S_ISCHR(Path(name).stat().st_mode)


def test_folders_that_cannot_take_it(tmp_path: Path) -> None:
    with pytest.raises(EvoDataError, match="is a folder"), atomic_output(tmp_path, force=True):
        pass
    with pytest.raises(EvoDataError, match="does not exist"), atomic_output(tmp_path / "no" / "x"):
        pass


CODE = """
import os, sys
from evo_data.files import atomic_output
if os.getuid() == 0:
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        with atomic_output(path):
            print("written")
    except ValueError as error:
        print(error)
"""


def test_folders_without_permission_are_named() -> None:
    # Another process, since root may do anything and must become someone else first.
    with tempfile.TemporaryDirectory() as name:
        closed, readable = Path(name) / "closed", Path(name) / "readable"
        (closed / "inner").mkdir(parents=True)
        readable.mkdir()
        for folder, mode in ((name, 0o755), (closed, 0o600), (readable, 0o555)):
            Path(folder).chmod(mode)
        outputs = [str(readable / "out.tsv"), str(closed / "inner" / "out.tsv")]
        done = subprocess.run(
            [sys.executable, "-c", CODE, *outputs], capture_output=True, text=True, check=True
        )
        closed.chmod(0o700)
    first, second = done.stdout.splitlines()
    for line, output in ((first, outputs[0]), (second, outputs[1])):
        assert line.startswith(f"cannot write {output}")
        assert "Permission denied" in line


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"ACGT" * 100_000)
    assert sha256_file(path) == hashlib.sha256(b"ACGT" * 100_000).hexdigest()


def test_text_is_read_plain_and_from_gzip(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for content in (b"\xc3\xa9\n", b"\xef\xbb\xbf\xc3\xa9\n", gzip.compress(b"\xc3\xa9\n")):
        path.write_bytes(content)
        assert read_text(path) == "é\n"


def test_text_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    whole = gzip.compress(b"ACGT" * 1000)
    damaged = whole[:12] + bytes([whole[12] ^ 0xFF]) + whole[13:]
    for content, reason in (
        (b"\xff", "not UTF-8 text"),
        (whole[:-9], "damaged gzip data"),
        (damaged, "damaged gzip data"),
        (None, "No such file"),
    ):
        path = tmp_path / "text"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EvoDataError, match=f"^cannot read {path}: {reason}"):
            read_text(path)
