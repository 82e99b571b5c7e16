"""How errors end a command, and the options that commands share."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from evo_data.errors import EvoDataError, OutputExistsError
from evo_kernels.errors import KernelError
from evo_toolkit.cli import common
from evo_toolkit.cli.common import (
    allow_out_of_domain_option,
    model_options,
    quiet_option,
    require_model,
    user_errors,
)
from evo_toolkit.errors import CheckpointError, EvoError, InaccurateModelError, UsageError
from evo_toolkit.inference.readings import POOLS, STRANDS
from evo_toolkit.model.config import ConfigError
from evo_toolkit.model.precision import PRECISIONS
from evo_toolkit.model.registry import BUNDLED, MODELS


def run(action: Callable[[], object]) -> Result:
    @click.command()
    @user_errors
    def command() -> None:
        action()

    return CliRunner().invoke(command, [])


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EvoError("what happened"), 1),
        (CheckpointError("what happened"), 1),
        (ConfigError("what happened"), 1),
        (EvoDataError("what happened"), 1),
        (OutputExistsError("what happened"), 1),
        (UsageError("what happened"), 2),
        (InaccurateModelError("what happened"), 2),
        (MemoryError(), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/big/out.vcf"), 1),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 1),
        (OSError("htslib said no"), 1),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
)
def test_one_line_and_exit_code(error: BaseException, code: int) -> None:
    result = run(raising(error))
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    if str(error) == "what happened":
        assert result.stderr == "Error: what happened\n"


def test_os_errors_say_file_reason_and_what_to_do() -> None:
    result = run(raising(OSError(errno.ENOSPC, "No space left on device", "/big/out.vcf")))
    assert result.stderr == (
        "Error: /big/out.vcf: No space left on device; free some space, or write to another disk\n"
    )
    result = run(lambda: Path("/no/such/file").read_bytes())
    assert result.stderr == "Error: /no/such/file: No such file or directory\n"


def test_a_closed_pipe_is_silent() -> None:
    result = run(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert (result.exit_code, result.output) == (141, "")


def test_usage_errors_of_click_exit_2() -> None:
    result = run(raising(click.UsageError("use it well")))
    assert result.exit_code == 2 and "use it well" in result.stderr


def test_messages_of_several_lines_become_one() -> None:
    assert run(raising(EvoError("a\n  b\nc"))).stderr == "Error: a b c\n"


def test_defects_are_not_hidden() -> None:
    for error in (ZeroDivisionError("x"), RuntimeError("x"), ValueError("x"), KeyError("x")):
        result = run(raising(error))
        assert result.exception is error and result.stderr == ""


def test_value_errors_of_our_packages_are_messages() -> None:
    from evo_toolkit.inference.batching import encode

    result = run(lambda: encode([""]))
    assert result.exit_code == 1 and result.stderr.startswith("Error: ")
    # Of a library, called by us with nonsense: our mistake.
    result = run(lambda: int("x"))
    assert isinstance(result.exception, ValueError) and result.stderr == ""


def test_kernel_errors_are_messages() -> None:
    import torch

    from evo_kernels import hyena_se

    def action() -> None:
        hyena_se(torch.zeros(1, 4, 9), torch.zeros(9, 3), torch.zeros(2, 7))

    result = run(action)
    assert isinstance(KernelError("x"), ValueError)
    assert result.exit_code == 1 and result.stderr.startswith("Error: ")


def test_a_full_gpu_is_one_line() -> None:
    import torch

    result = run(raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the GPU is out of memory; use a smaller --window")


def test_return_value_and_name_pass_through() -> None:
    @user_errors
    def add(a: int, b: int = 2) -> int:
        """Doc."""
        return a + b

    assert add(1) == 3 and add(1, b=5) == 6
    assert (add.__name__, add.__doc__) == ("add", "Doc.")


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_model_must_be_chosen(value: str | None) -> None:
    result = run(lambda: require_model(value))
    assert result.exit_code == 2
    for choice in ("evo-mini (bundled; bacteria, archaea, phages; not human)", "evo2_7b (all domains of life; 13 GB, GPU)", "-m PATH", "EVO_TOOLKIT_MODEL"):  # fmt: skip
        assert choice in result.stderr
    assert require_model("evo2_7b") == "evo2_7b"


def test_the_choices_are_those_of_the_registry() -> None:
    assert "evo-mini" in BUNDLED
    assert round(MODELS["evo2_7b"].download_gb) == 13
    assert common.PRECISIONS == PRECISIONS
    assert (*common.POOLS, "none") == POOLS and common.EMBEDDED_STRANDS == STRANDS


@click.command()
@model_options
@allow_out_of_domain_option
@quiet_option
@click.pass_context
def show(ctx: click.Context, **values: object) -> None:
    click.echo(" ".join(f"{k}={v}" for k, v in sorted(values.items())))


def test_defaults_of_the_shared_options() -> None:
    result = CliRunner().invoke(show, [], env={"EVO_TOOLKIT_MODEL": None})
    assert result.stdout == (
        "allow_inaccurate=False allow_out_of_domain=False device=auto model=None precision=default quiet=False\n"
    )


def test_model_comes_from_the_option_or_the_environment() -> None:
    environment = {"EVO_TOOLKIT_MODEL": "from-env"}
    assert "model=from-env" in CliRunner().invoke(show, [], env=environment).stdout
    assert "model=given" in CliRunner().invoke(show, ["-m", "given"], env=environment).stdout


def test_all_shared_options_given() -> None:
    arguments = ["--model", "x", "--device", "cuda:1", "--precision", "exact", "--allow-inaccurate", "--allow-out-of-domain", "-q"]  # fmt: skip
    assert CliRunner().invoke(show, arguments).stdout == (
        "allow_inaccurate=True allow_out_of_domain=True device=cuda:1 model=x precision=exact quiet=True\n"
    )


def test_unknown_precision_exits_2() -> None:
    assert CliRunner().invoke(show, ["--precision", "fp16"]).exit_code == 2


def test_signals_are_untouched_by_import() -> None:
    import evo_toolkit.cli.main  # noqa: F401

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
