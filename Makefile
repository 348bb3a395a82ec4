# Every target sets itself up: a virtual environment in .venv, torch as pinned in constraints.txt, this package in place.
# Another interpreter: make PYTHON=python3.12 ... (after `make clean-venv`). More of the demo: make demo DEMO="--frames 25".

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TESTS ?= tests
DEMO ?=
BENCH ?=
NATIVE_SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: help setup demo test test-all lint format types cuda-check wheel bench clean clean-venv

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/installed ## create .venv and build the package into it

.venv/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "lpkernels needs Python 3.10 or later, but $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "no virtual environment: install venv for $(PYTHON) (Debian: apt install python3-venv)" >&2; exit 1; }
	$(PIP) install -c constraints.txt torch 'setuptools>=77' wheel ninja 'pybind11>=2.13'
	@touch $@

# Without build isolation: an isolated build would download a second torch and compile against that one.
.venv/installed: .venv/torch pyproject.toml setup.py $(NATIVE_SOURCES)
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: .venv/installed ## animate a drawn portrait into demo/ (trained weights: DEMO="--weights DIR")
	$(BIN)/lpkernels demo $(DEMO)

test: .venv/installed ## the fast tests, with coverage of the package (one file: TESTS=tests/cli/test_main.py)
	$(BIN)/python -m pytest $(TESTS) -m 'not slow' $(COVERAGE)

test-all: .venv/installed ## the slow tests as well
	$(BIN)/python -m pytest $(TESTS) $(COVERAGE)

# A part of the tests covers a part of the package: the bound holds for the whole alone.
COVERAGE := --cov --cov-report=term $(if $(filter tests,$(TESTS)),--cov-fail-under=90)

lint: .venv/installed ## ruff and clang-format, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc -type f | xargs $(BIN)/clang-format --dry-run --Werror

format: .venv/installed ## ruff and clang-format, in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -type f | xargs $(BIN)/clang-format -i

types: .venv/installed ## mypy
	$(BIN)/mypy

cuda-check: .venv/installed ## compile the CUDA sources, no GPU needed
	scripts/check_cuda.sh $(BIN)/python

wheel: .venv/installed ## sdist and wheel into dist/
	$(BIN)/python -m build --no-isolation

bench: .venv/installed ## measure (what: BENCH="frame --json out.json")
	$(BIN)/lpkernels bench $(BENCH)

clean: ## remove what was built and written here, keep .venv
	rm -rf build dist demo *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find lpkernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	rm -f lpkernels/*.so .venv/installed

clean-venv: clean ## remove .venv too
	rm -rf .venv
