"""Fixtures that every part uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# The models here are tiny: threads would only wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _environment_stays() -> Iterator[None]:
    """Lightning leaves a rank and an address behind, which the next test's processes would believe."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    for name, value in before.items():
        if name != "PYTEST_CURRENT_TEST" and os.environ.get(name) != value:
            os.environ[name] = value


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The reference library that stands beside the project; tests that need it skip without it."""
    path = ROOT.parent / "shared"
    if not (path / "README.md").is_file():
        pytest.skip("needs the reference library ../shared, which is not here")
    return path


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-parity",
        action="store_true",
        help="Fail when a test marked `parity` was skipped, or none ran.",
    )


class _Parity:
    """Counts what became of the parity tests."""

    def __init__(self) -> None:
        self.passed = 0
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "parity" not in report.keywords:
            return
        if report.skipped:
            self.skipped.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped or not self.passed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped or not self.passed:
            terminalreporter.section("parity with the reference implementation is required")
            terminalreporter.line(
                f"{self.passed} parity tests passed, skipped: {self.skipped or 'none'}"
            )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-parity"):
        config.pluginmanager.register(_Parity(), "require-parity")


@pytest.fixture(scope="session")
def toy_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model in our format: one layer of each kind, window 64."""
    from evo_toolkit.checkpoint.format import save_pretrained
    from evo_toolkit.model.config import StripedHyena2Config
    from evo_toolkit.model.striped_hyena import StripedHyena2

    config = StripedHyena2Config(
        name="toy", pattern="SDH*", width=16, num_heads=2, mlp_width=32, filter_groups=2,
        context_length=512, vocab_size=256, default_window=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("toy") / "model"
    state = StripedHyena2(config, generator_seed=0).state_dict()
    return save_pretrained(state, config, folder, provenance={"source": "random weights"})


@pytest.fixture(scope="session")
def toy_model(toy_model_dir: Path) -> object:
    """The tiny model, loaded."""
    from evo_toolkit.checkpoint.load import load_model

    return load_model(toy_model_dir, device="cpu")
