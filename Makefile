# `make demo` and `make test` set up .venv by themselves; nothing else needs installing.

SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUITS)' 2>/dev/null && echo $$python && break; done)
WORKERS ?= auto
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# What the tests of conversions run against. Without a CPU build at hand pip takes a large one; then
# make TORCH='torch --index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0

.PHONY: demo quick test test-all nightly nightly-all notebooks lint format clean

# Tests of one file run in one worker, which builds what they share once; tests/conftest.py orders
# the files.
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

demo: .venv/installed
	$(BIN)/python tools/demo.py

quick: .venv/installed-dev
	$(PYTEST) -m quick

test: .venv/installed-dev
	$(PYTEST) -m "quick or not (slow or nightly)"

test-all: .venv/installed-others
	$(PYTEST) -m "not nightly"

# Expensive tests and notebooks whose files changed since they last passed; nightly-all: all of them.
nightly: .venv/installed-others
	$(BIN)/python -m tests.nightly

nightly-all: .venv/installed-others
	$(BIN)/python -m tests.nightly --all

# With PyTorch, which one of them is about.
notebooks: .venv/installed-others
	$(BIN)/python -m experiments.colab.run

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(SUITS)' || \
		{ echo "Needs Python 3.11 to 3.13: install one, or name it: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/installed: setup.py | .venv/bin/python
	@echo "Installing into .venv (about a minute the first time) ..."
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: setup.py | .venv/bin/python
	@echo "Installing into .venv, with what the tests need (about a minute the first time) ..."
	$(PIP) --editable '.[dev]'
	@touch $@

# jax2onnx pins an Orbax that training does not run with; converting needs neither. JAX says which
# libtpu, the TPU's compiler, is its own: jax 0.10.2 was tried with libtpu 0.0.42.1.
.venv/installed-others: setup.py | .venv/installed-dev
	@echo "Installing PyTorch, ONNX and the TPU's compiler into .venv, which tests check against ..."
	$(PIP) $(TORCH)
	$(PIP) onnx onnx-ir onnxruntime einops
	$(PIP) --no-deps jax2onnx
	$(PIP) --editable '.[tpu]'
	@touch $@
