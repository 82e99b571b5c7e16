"""What the commands share: how errors end a run, and options that mean the same everywhere."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from evo_data.errors import EvoDataError
from evo_toolkit.errors import EvoError, UsageError

if TYPE_CHECKING:
    from evo_toolkit.checkpoint.opening import Opened
    from evo_toolkit.inference.context import ContextWorkers
    from evo_toolkit.model.striped_hyena import StripedHyena2

PROGRAM = "evo-toolkit"
MODEL_VARIABLE = "EVO_TOOLKIT_MODEL"

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOTHING_SCORED = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""As shells report a program that a closed pipe has ended."""

# As in evo_toolkit.model.precision, which imports torch; a test keeps them equal.
PRECISIONS = ("default", "exact", "vortex")

# As in evo_toolkit.inference.readings, which imports torch; a test keeps them equal.
POOLS = ("mean", "max", "last", "center")
"""Of a sequence's positions; `embed` has none (every position), too."""
EMBEDDED_STRANDS = ("fwd", "rc", "both", "concat")

MODEL_CHOICES = (
    "-m evo-mini (bundled; bacteria, archaea, phages; not human), "
    "-m evo2_7b (all domains of life; 13 GB, GPU) or -m PATH (a checkpoint)"
)

# Libraries raise ValueError for our mistakes, these packages for the user's.
_OUR_PACKAGES = frozenset({"evo_toolkit", "evo_data", "evo_kernels"})

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class OneLineError(click.ClickException):
    """An error shown as `Error: message` on one line of stderr; exits 1."""

    exit_code = EXIT_ERROR

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"Error: {self.message}", file=file, err=file is None)


class OneLineUsageError(OneLineError):
    """Wrong usage that only the command itself can see; exits 2."""

    exit_code = EXIT_USAGE


class Interrupted(OneLineError):  # noqa: N818 (the user's wish is no error)
    """Ctrl-C; exits 130, as shells expect."""

    exit_code = EXIT_INTERRUPTED

    def __init__(self) -> None:
        super().__init__("interrupted")


def user_errors(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Decorate a command's function (below its options) with `one_line_errors`."""

    @wraps(function)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with one_line_errors():
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user or the machine can cause into one line on stderr and an exit code.

    `UsageError` exits 2; every other `EvoError` or `EvoDataError`, an operator's `KernelError`, an
    `OSError`, a lack of memory and a plain `ValueError` that our own code raised exit 1; an
    interruption exits 130; a closed pipe exits 141 in silence. Anything else is a defect of ours
    and keeps its traceback.
    """
    try:
        yield
    except UsageError as error:
        raise OneLineUsageError(str(error)) from error
    except (EvoError, EvoDataError) as error:
        raise OneLineError(str(error)) from error
    except (KeyboardInterrupt, click.Abort) as error:
        raise Interrupted from error
    except BrokenPipeError as error:
        _discard_stdout()
        raise click.exceptions.Exit(EXIT_BROKEN_PIPE) from error
    except OSError as error:
        raise OneLineError(_os_message(error)) from error
    except MemoryError as error:
        raise OneLineError(_MEMORY) from error
    except (RuntimeError, ValueError) as error:
        message = _late_message(error)
        if message is None:
            raise
        raise OneLineError(message) from error


_MEMORY = "out of memory; use a smaller --window or shorter sequences, or a machine with more memory (evo-toolkit doctor says what fits)"


def _late_message(error: Exception) -> str | None:
    """The line for other errors that a user can cause, or None."""
    # Looked up, not imported: a command that did not need torch has not imported it.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "the GPU is " + _MEMORY
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        return _MEMORY
    if isinstance(error, ValueError) and _raised_in(error) in _OUR_PACKAGES:
        return str(error)
    return None


def _raised_in(error: Exception) -> str:
    """Name of the top-level package whose code raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return str(module).partition(".")[0]


def _os_message(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename is not None else ""
    advice = {
        errno.ENOSPC: "; free some space, or write to another disk",
        errno.EDQUOT: "; free some of your quota, or write to another disk",
        errno.EACCES: "; choose a place you may use, or ask for its permissions",
        errno.EROFS: "; choose another folder",
    }.get(error.errno or 0, "")
    return f"{where}{reason}{advice}"


def flush_stdout() -> None:
    """Write out what stdout still buffers, here where a failure can be one line.

    Raises:
        SystemExit: when stdout is a closed pipe, or cannot take the rest (a full disk).
    """
    try:
        with one_line_errors():
            sys.stdout.flush()
    except OneLineError as error:
        _discard_stdout()
        error.show()
        raise SystemExit(error.exit_code) from error
    except click.exceptions.Exit as error:
        raise SystemExit(error.exit_code) from error


def _discard_stdout() -> None:
    # What is still buffered would fail once more when the interpreter ends.
    with suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def load_for_genome(
    name: str,
    lengths: Mapping[str, int],
    *,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    allow_out_of_domain: bool,
) -> tuple[StripedHyena2, str | None]:
    """Load a model unless the genome is outside its domain, which is asked before the weights.

    Args:
        lengths: Length of each contig of the genome, in bases.

    Returns:
        The model, and with consent the line about the domain, which is a warning by then.
    """
    from evo_toolkit.checkpoint.load import load_opened

    opened, note = _opened_for_genome(name, lengths, allow_inaccurate, allow_out_of_domain)
    model = load_opened(
        opened, device=device, precision=precision, allow_inaccurate=allow_inaccurate
    )
    return model, note


@contextmanager
def model_for_genome(
    name: str,
    lengths: Mapping[str, int],
    *,
    devices: str | None,
    context_parallel: bool,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    allow_out_of_domain: bool,
) -> Iterator[tuple[StripedHyena2, ContextWorkers | None, str | None]]:
    """As `load_for_genome`; with `context_parallel` in processes that share every sequence.

    Args:
        devices: "all", or how many.

    Returns:
        The model, which has no weights where there are processes; those; and the line about the domain.
    """
    if not context_parallel:
        if devices is not None:
            raise UsageError(
                "--devices divide every sequence here; give --context-parallel too, or --device for another single device"
            )
        model, note = load_for_genome(
            name, lengths, device=device, precision=precision,
            allow_inaccurate=allow_inaccurate, allow_out_of_domain=allow_out_of_domain,
        )  # fmt: skip
        yield model, None, note
        return
    from evo_toolkit.inference.context import ContextWorkers
    from evo_toolkit.variants.workers import device_list

    names = device_list(devices or "all", device)
    _, note = _opened_for_genome(name, lengths, allow_inaccurate, allow_out_of_domain)
    with ContextWorkers(
        name, names, precision=precision, allow_inaccurate=allow_inaccurate
    ) as workers:
        yield workers.model, workers, note


def _opened_for_genome(
    name: str, lengths: Mapping[str, int], allow_inaccurate: bool, allow_out_of_domain: bool
) -> tuple[Opened, str | None]:
    """A model's source, unless the genome is outside its domain."""
    from evo_toolkit.checkpoint.opening import open_source
    from evo_toolkit.inference.domain import check_domain

    opened = open_source(name, allow_inaccurate=allow_inaccurate)
    note = check_domain(opened.source.config, lengths, allow=allow_out_of_domain)
    if note:
        click.echo(f"Warning: {note}", err=True)
    return opened, note


def refuse_input_as_output(output: str, *inputs: str) -> None:
    """Raise unless an output is another file than every input, whatever they are called.

    Raises:
        UsageError: naming the output.
    """
    for given in inputs:
        with suppress(OSError):
            if Path(output).samefile(given):
                raise UsageError(f"output {output} is also an input; give another name with -o")


def require_model(value: str | None) -> str:
    """Return the model that was asked for; there is no default one.

    Raises:
        UsageError: with the choices, when none was.
    """
    if value is None or not value.strip():
        raise UsageError(f"no model chosen; give {MODEL_CHOICES}, or set {MODEL_VARIABLE}")
    return value


def adapted_model(model: str, adapter: str | None) -> str:
    """The name that stands for a model with an adapter, if there is one.

    Raises:
        UsageError: for a file whose name cannot be that of an adapter.
    """
    if adapter is None:
        return model
    if not adapter.endswith(".safetensors"):
        raise UsageError(f"adapter {adapter} does not end in .safetensors; give an adapter's file")
    return f"{model}+{adapter}"


_ADAPTER = "evo_toolkit.adapter"


def _join_adapter(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """Callback of `--model` and `--adapter`: whichever is read last joins the two."""
    if parameter.name == "model":
        context.meta[_ADAPTER + ".model"] = value
    else:
        context.meta[_ADAPTER] = value
    if _ADAPTER in context.meta and _ADAPTER + ".model" in context.meta:
        model, adapter = context.meta[_ADAPTER + ".model"], context.meta[_ADAPTER]
        if model and adapter:
            with one_line_errors():
                joined = adapted_model(model, adapter)
            if parameter.name == "model":
                return joined
            context.params["model"] = joined
    return value


def adapter_option(command: _Command) -> _Command:
    """Add `--adapter`, which the value of `model` then names too (`MODEL+FILE`)."""
    return click.option(
        "--adapter", metavar="FILE", expose_value=False, callback=_join_adapter,
        help="An adapter (LoRA) that was trained on the model, which then runs with its changes; -m MODEL+FILE is the same.",
    )(command)  # fmt: skip


def model_option(command: _Command) -> _Command:
    """Add `-m/--model` (parameter `model`); pass its value through `require_model`."""
    return click.option(
        "-m", "--model", "model", metavar="NAME|PATH", envvar=MODEL_VARIABLE, show_envvar=True,
        callback=_join_adapter,
        help="The model: evo-mini (bundled; bacteria, archaea, phages; not human), a released name such as evo2_7b (all domains of life; 13 GB, GPU), or the path of a checkpoint. There is no default.",
    )(command)  # fmt: skip


def device_option(command: _Command) -> _Command:
    """Add `--device` (parameter `device`)."""
    return click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]",
        help="Where the model runs; auto is the first GPU, or the CPU where there is none.",
    )(command)  # fmt: skip


def precision_option(command: _Command) -> _Command:
    """Add `--precision` (parameter `precision`)."""
    return click.option(
        "--precision", type=click.Choice(PRECISIONS), default="default", show_default=True,
        help="default: bfloat16 where the device is built for it; exact: float32 throughout; vortex: the rounding of the released implementation.",
    )(command)  # fmt: skip


def allow_inaccurate_option(command: _Command) -> _Command:
    """Add `--allow-inaccurate` (parameter `allow_inaccurate`)."""
    return click.option(
        "--allow-inaccurate", is_flag=True,
        help="Run a model that is known to give wrong numbers on this machine; outputs say so.",
    )(command)  # fmt: skip


def allow_out_of_domain_option(command: _Command) -> _Command:
    """Add `--allow-out-of-domain` (parameter `allow_out_of_domain`)."""
    return click.option(
        "--allow-out-of-domain", is_flag=True,
        help="Run a model on a genome that it was not trained for; outputs say so.",
    )(command)  # fmt: skip


def region_options(command: _Command) -> _Command:
    """Add `-r/--region` (parameter `regions`, a tuple) and `-R/--regions-file`: parts of a genome."""
    command = click.option(
        "-R", "--regions-file", metavar="BED", type=click.Path(path_type=str),
        help="Regions of a BED file (0-based, half-open).",
    )(command)  # fmt: skip
    return click.option(
        "-r", "--region", "regions", multiple=True, metavar="REGION",
        help="contig:first-last, 1-based and inclusive, or a contig; may be repeated. Default: everything.",
    )(command)  # fmt: skip


def strands_option(command: _Command) -> _Command:
    """Add `--strands` of a command that scores."""
    return click.option(
        "--strands", type=click.Choice(["both", "fwd", "rc"]), default="both", show_default=True,
        help="Strands to score; both are averaged, and reported apart too.",
    )(command)  # fmt: skip


def quiet_option(command: _Command) -> _Command:
    """Add `-q/--quiet` (parameter `quiet`)."""
    return click.option(
        "-q", "--quiet", is_flag=True, callback=_set_log_level,
        help="Nothing on stderr but warnings and errors.",
    )(command)  # fmt: skip


def _set_log_level(_context: click.Context, _parameter: click.Parameter, quiet: bool) -> bool:
    logging.getLogger("evo_toolkit").setLevel(logging.WARNING if quiet else logging.INFO)
    return quiet


def context_parallel_options(command: _Command) -> _Command:
    """Add `devices` and `context_parallel`."""
    for option in (
        click.option(
            "--context-parallel",
            is_flag=True,
            help="Divide every sequence over the devices, for contigs or windows that are long; results are the same up to rounding.",
        ),
        click.option(
            "--devices",
            metavar="all|N",
            help="With --context-parallel: all GPUs, or N of them (with --device cpu: N processes); default: all.",
        ),
    ):
        command = option(command)
    return command


def model_options(command: _Command) -> _Command:
    """Add every option about the model: model, adapter, device, precision, allow_inaccurate."""
    for option in (
        allow_inaccurate_option, precision_option, device_option, adapter_option, model_option,
    ):  # fmt: skip
        command = option(command)
    return command
