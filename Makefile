# `make demo` and `make test` each do all the set-up they need; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?=

# CUDA builds of torch pin their own triton; elsewhere the tested set is pinned whole.
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
ifeq ($(HAS_GPU),yes)
CONSTRAINTS := .ci/constraints-cuda.txt
else
CONSTRAINTS := .ci/constraints-cpu.txt
endif
TORCH := $(shell sed -n 's/^torch/torch/p' $(CONSTRAINTS))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-gpu test-slow lint types layers format wheel clean

demo: $(INSTALLED)
	$(BIN)/evo-toolkit demo --output demo-output --force

# torch goes first and alone, so that nothing else decides which build is taken.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	$(PIP) --editable '.[dev]'
	touch $@

test: lint types layers
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu" $(PYTEST_FLAGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels/test_*_triton.py -n 2 -m "not slow and not gpu"

# Every kernel with every launch configuration; the table at the end belongs in docs/benchmarks.md.
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest tests/gpu -n 8 --dist worksteal -p no:cacheprovider

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not gpu" $(PYTEST_FLAGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

layers: $(INSTALLED)
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf $(VENV) dist demo-output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
