"""Downloads over real HTTP from a stub of the hub, through huggingface_hub, each in a process of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("hub_stub", Path(__file__).with_name("hub_stub.py"))
assert _spec is not None and _spec.loader is not None
hub_stub = importlib.util.module_from_spec(_spec)
sys.modules["hub_stub"] = hub_stub
_spec.loader.exec_module(hub_stub)

WHOLE = "evo2_tiny.pt"

# The released models are too large to download in a test: a small one is registered under a name.
PRELUDE = """
import json, socket, sys
from pathlib import Path
from evo_toolkit.checkpoint import hub
from evo_toolkit.errors import EvoError
from evo_toolkit.model.config import read_config
from evo_toolkit.model.registry import MODELS, ModelEntry

config = read_config(sys.argv[1]).replace(name="evo2_tiny")
MODELS["evo2_tiny"] = ModelEntry(
    config=config, repo="arcinstitute/evo2_tiny", filename="evo2_tiny.pt", download_gb=0.001, note=""
)

def no_network(*args, **kwargs):
    raise AssertionError("the network was touched")

def forbid_network():
    socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = no_network
"""
DOWNLOAD = PRELUDE + "print(hub.download('evo2_tiny', force='force' in sys.argv))"


@pytest.fixture
def stub(tiny_file: Path) -> Iterator[Any]:
    with hub_stub.running(hub_stub.HubStub(files={WHOLE: tiny_file.read_bytes()})) as running:
        yield running


class Client:
    """Runs code in a process that knows the stub as the hub."""

    def __init__(self, folder: Path, config: Path, endpoint: str) -> None:
        self.folder, self.config, self.endpoint = folder, config, endpoint
        self.hub_cache = folder / "hf" / "hub"

    def run(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "EVO_TOOLKIT_CACHE": str(self.folder / "cache"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE"):
            environment.pop(name, None)
        return subprocess.run(
            [sys.executable, "-c", code, str(self.config), *arguments],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def succeed(self, code: str, *arguments: str) -> str:
        done = self.run(code, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def fail(self, code: str, *arguments: str) -> str:
        """The one line of the EvoError with which the code ends."""
        caught = code.replace(PRELUDE, "")
        wrapped = (
            PRELUDE
            + f"try:\n    {caught}\nexcept EvoError as error:\n    print(str(error)); sys.exit(7)"
        )
        done = self.run(wrapped, *arguments)
        assert done.returncode == 7, done.stderr
        message = done.stdout.rstrip("\n")
        assert "\n" not in message
        return message


@pytest.fixture
def client(tmp_path: Path, tiny_file: Path, stub: Any) -> Client:
    config = tiny_file.with_name("tiny_noscale.config.json")
    return Client(tmp_path, config, stub.endpoint)


def test_download_then_load_without_the_network(client: Client, stub: Any, tiny_file: Path) -> None:
    path = Path(client.succeed(DOWNLOAD))
    assert path.read_bytes() == tiny_file.read_bytes()
    assert path.is_relative_to(client.hub_cache)
    asked = len(stub.requests)
    offline = PRELUDE + (
        "forbid_network()\n"
        "print(hub.download('evo2_tiny'))\n"
        "from evo_toolkit.checkpoint.load import load_model\n"
        "model = load_model('evo2_tiny', device='cpu')\n"
        "print(model.sha256, model.source)\n"
    )
    digest = hashlib.sha256(tiny_file.read_bytes()).hexdigest()
    assert client.succeed(offline) == f"{path}\n{digest} evo2_tiny"
    assert len(stub.requests) == asked


def test_a_dropped_connection_is_resumed_where_it_broke(client: Client, stub: Any) -> None:
    # The hub's client writes 10 MiB at a time; only what was not written is asked for again.
    data = random.Random(0).randbytes(24 << 20)
    stub.files[WHOLE] = data
    stub.cut.add(WHOLE)
    path = Path(client.succeed(DOWNLOAD))
    assert path.read_bytes() == data
    gets = [r for r in stub.requests if r.startswith("GET") and "/resolve/" in r]
    assert len(gets) == 2
    start = int(gets[1].rpartition("bytes=")[2].removesuffix("-"))
    assert 0 < start <= len(data) // 2


def test_a_file_of_the_wrong_size_is_refused(client: Client, stub: Any) -> None:
    stub.short.add(WHOLE)
    message = client.fail(DOWNLOAD)
    assert "cannot download" in message
    assert "size" in message
    assert client.succeed(PRELUDE + "print(hub.find('evo2_tiny'))") == "None"


def test_a_damaged_file_is_refused_now_and_later_until_it_is_replaced(
    client: Client, stub: Any, tiny_file: Path
) -> None:
    stub.damaged.add(WHOLE)
    message = client.fail(DOWNLOAD)
    assert "is damaged" in message
    assert "models download evo2_tiny --force" in message
    assert "is damaged" in client.fail(PRELUDE + "hub.find('evo2_tiny')")
    stub.damaged.clear()
    path = Path(client.succeed(DOWNLOAD, "force"))
    assert path.read_bytes() == tiny_file.read_bytes()
    assert client.succeed(PRELUDE + "print(hub.find('evo2_tiny'))") == str(path)


def test_pieces_are_downloaded_joined_and_kept(client: Client, stub: Any, tiny_file: Path) -> None:
    data = stub.files.pop(WHOLE)
    count, size = 11, -(-len(data) // 11)
    # part10 sorts before part2 as text.
    stub.files = {f"{WHOLE}.part{i}": data[i * size : (i + 1) * size] for i in range(count)}
    stub.files["README.md"] = b"hello"
    path = Path(client.succeed(DOWNLOAD))
    assert path.read_bytes() == tiny_file.read_bytes()
    assert path.is_relative_to(client.folder / "cache")
    pieces = list(client.hub_cache.rglob("*.part*"))
    assert len([p for p in pieces if p.exists()]) == count
    assert not list(client.hub_cache.rglob("README.md"))
    asked = len(stub.requests)
    again = PRELUDE + "forbid_network(); print(hub.download('evo2_tiny'))"
    assert client.succeed(again) == str(path)
    assert len(stub.requests) == asked


def test_an_incomplete_set_of_pieces_is_completed(
    client: Client, stub: Any, tiny_file: Path
) -> None:
    data = stub.files.pop(WHOLE)
    half = len(data) // 2
    stub.files = {f"{WHOLE}.part0": data[:half], f"{WHOLE}.part1": data[half:]}
    stub.short.add(f"{WHOLE}.part1")
    assert "size" in client.fail(DOWNLOAD)
    assert "not the last piece" in client.fail(PRELUDE + "hub.find('evo2_tiny')")
    stub.short.clear()
    asked = len(stub.requests)
    assert Path(client.succeed(DOWNLOAD)).read_bytes() == tiny_file.read_bytes()
    assert not any(r.startswith("GET") and "part0" in r for r in stub.requests[asked:])


def test_a_gap_in_the_pieces_of_the_hub_is_refused(client: Client, stub: Any) -> None:
    data = stub.files.pop(WHOLE)
    stub.files = {f"{WHOLE}.part0": data, f"{WHOLE}.part2": data}
    assert "whole or in pieces" in client.fail(DOWNLOAD)


def test_a_full_disk_is_noticed_before_the_transfer(client: Client, stub: Any) -> None:
    code = (
        "import shutil, types; "
        "shutil.disk_usage = lambda path: types.SimpleNamespace(free=1000); "
        "hub.download('evo2_tiny')"
    )
    message = client.fail(PRELUDE + code)
    assert "the download needs 0.0 GB" in message
    assert not any("/resolve/" in r for r in stub.requests)


def test_an_absent_hub_is_one_line_with_another_way(client: Client) -> None:
    client.endpoint = "http://127.0.0.1:9"
    message = client.fail(DOWNLOAD)
    assert "by other means" in message


def test_a_file_joined_by_the_evo2_package_is_found(client: Client, tiny_file: Path) -> None:
    place = client.hub_cache.parent / WHOLE
    place.parent.mkdir(parents=True)
    place.write_bytes(tiny_file.read_bytes())
    code = PRELUDE + "forbid_network(); print(hub.find('evo2_tiny'))"
    assert client.succeed(code) == str(place)


def test_names_that_cannot_be_downloaded(client: Client) -> None:
    code = (
        PRELUDE
        + """
for name in ("evo-mini", "evo3"):
    try:
        hub.download(name)
    except EvoError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
    )
    lines = [json.loads(line) for line in client.succeed(code).splitlines()]
    assert [kind for kind, _ in lines] == ["UsageError", "UsageError"]
    assert "bundled" in lines[0][1]
    assert "known are evo2_1b_base" in lines[1][1]
