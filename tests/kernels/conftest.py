"""Fixtures of the kernels' tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest


@pytest.fixture(autouse=True, scope="session")
def _small_programs_for_the_interpreter() -> Iterator[None]:
    """Fewer rows per program: the interpreter runs rows that do not exist as slowly as others.

    The same code with more borders between threads and programs. Configurations as launched are
    compared on a GPU.
    """
    with ExitStack() as stack:
        if os.environ.get("TRITON_INTERPRET") == "1":
            from evo_kernels.launch import override
            from evo_kernels.testing import load_configurations

            for kernel, configs in load_configurations().items():
                constants = configs["default"].constants
                if {"U", "TILES"} <= set(constants):
                    fewer = {"U": min(4, constants["U"]), "TILES": min(2, constants["TILES"])}
                    small = replace(configs["default"], constants={**constants, **fewer})
                    stack.enter_context(override(kernel, small))
        yield
