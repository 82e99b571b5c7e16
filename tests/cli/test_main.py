"""The command line as a whole, and the package's lazy surface."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import evo_toolkit
from evo_toolkit.cli import main as main_module
from evo_toolkit.cli.main import COMMANDS, Entry, cli

HEAVY = {"torch", "numpy", "pysam", "pandas", "pyarrow", "rich", "Bio", "lightning", "triton"}


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options  # type: ignore[call-overload]
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["no-such-command"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["evo-toolkit", *{arguments!r}]
from evo_toolkit.cli.main import main
try:
    main()
except SystemExit:
    pass
print(*sorted(name for name in sys.modules if "." not in name or name.startswith("evo_toolkit.cli")))
"""
    done = python(code)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "click" in modules and "evo_toolkit.cli.main" in modules
    assert not modules & HEAVY
    assert {m for m in modules if m.startswith("evo_toolkit.cli.")} == {
        "evo_toolkit.cli.common",
        "evo_toolkit.cli.main",
    }


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    listed = result.stdout.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert [line.split(None, 1)[1] for line in listed] == [e.help for e in COMMANDS.values()]


@pytest.mark.parametrize("name", COMMANDS)
def test_one_line_help_is_the_command_s_own(name: str) -> None:
    entry = COMMANDS[name]
    command = getattr(importlib.import_module(entry.module), entry.attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.get_short_help_str(limit=200) == entry.help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_imports_no_torch(name: str) -> None:
    code = f"""
import sys
sys.argv = ["evo-toolkit", {name!r}, "--help"]
from evo_toolkit.cli.main import main
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules, "pandas" in sys.modules)
"""
    assert python(code).stdout.splitlines()[-1] == "0 False False"


def test_unknown_command_exits_2_and_names_the_known() -> None:
    result = CliRunner().invoke(cli, ["scroe"])
    assert result.exit_code == 2
    assert "scroe" in result.stderr and "score" in result.stderr


def test_version() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.exit_code == 0
    assert evo_toolkit.__version__ in result.stdout


def test_a_command_that_cannot_be_imported_does_not_harm_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        COMMANDS, "absent", Entry("evo_toolkit.cli.absent", "absent", "Is not there.")
    )
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0 and "Is not there." in result.stdout


def test_errors_of_a_command_become_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    # Also for a command that forgot the decorator.
    from evo_toolkit.errors import EvoError

    @click.command()
    def broken() -> None:
        raise EvoError("first\nsecond")

    module = types.ModuleType("broken_command")
    module.broken = broken  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "broken_command", module)
    monkeypatch.setitem(main_module.COMMANDS, "broken", Entry("broken_command", "broken", ""))
    result = CliRunner().invoke(cli, ["broken"])
    assert result.exit_code == 1
    assert result.stderr == "Error: first second\n"


def test_python_m_runs_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evo_toolkit", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert evo_toolkit.__version__ in done.stdout


# Stdout must buffer, as it does for users, whatever the environment of the tests says.
BUFFERED = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}

# A command in a process of its own, for what only a process can show.
PROCESS = """
import sys, types, click
from evo_toolkit.cli.main import COMMANDS, Entry, main

@click.command()
def go():
    {body}

module = types.ModuleType("go_command")
module.go = go
sys.modules["go_command"] = module
COMMANDS["go"] = Entry("go_command", "go", "")
sys.argv = ["evo-toolkit", "go"]
main()
"""


def test_a_closed_pipe_ends_in_silence() -> None:
    code = PROCESS.format(body="[print('x' * 1000) for _ in range(10_000)]")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=BUFFERED
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_a_pipe_that_closes_before_the_last_flush_ends_in_silence() -> None:
    # What is printed fits into the buffer, so that nothing fails before the end.
    code = PROCESS.format(body="import time; print('x'); time.sleep(0.5)")
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, env=BUFFERED
    )
    os.close(write)
    os.close(read)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROCESS.format(body="print('x')")],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=BUFFERED,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "No space left" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_unwind_the_command(number: signal.Signals, code: int, tmp_path: Path) -> None:
    body = f"""
    import time
    from evo_data.files import atomic_output
    with atomic_output({str(tmp_path / "out.txt")!r}):
        print("ready", flush=True)
        time.sleep(30)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS.format(body=body.strip("\n").lstrip())],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell starts what runs in the background with SIGINT ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors and errors.count("\n") <= 1
    assert list(tmp_path.iterdir()) == [], "the unfinished output must be gone"


def test_defects_keep_their_traceback() -> None:
    done = python(PROCESS.format(body="raise ZeroDivisionError('ours')"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError: ours" in done.stderr


# --- the package's surface

PUBLIC = {
    "EvoEmbedder",
    "StripedHyena2Config",
    "__version__",
    "embed",
    "errors",
    "generate",
    "load_head",
    "load_model",
    "log_likelihood",
    "score_variants",
}


def test_public_names() -> None:
    assert set(evo_toolkit.__all__) == PUBLIC
    assert set(dir(evo_toolkit)) == PUBLIC
    for name in PUBLIC:
        assert getattr(evo_toolkit, name) is not None
    assert evo_toolkit.errors.EvoError is not None
    with pytest.raises(AttributeError, match="nonsense"):
        evo_toolkit.nonsense  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = python("import evo_toolkit, sys; print(*sys.modules)")
    assert not set(done.stdout.split()) & (HEAVY | {"click"})
    done = python(
        "import sys; from evo_toolkit import StripedHyena2Config, errors; print(*sys.modules)"
    )
    assert not set(done.stdout.split()) & HEAVY
