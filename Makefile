# Two commands do all the set-up: `make demo` and `make test`. Both need only Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo install test lint types layers unit format bench clean

help:  ## Show the targets.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: $(VENV)/installed  ## Install, fetch the default model, ask it one question.
	$(BIN)/corral chat --stats -p "What is the capital of France? Answer in one sentence." < /dev/null

install: $(VENV)/installed  ## Install into .venv.

test: lint types layers unit  ## Run every check.

lint: $(VENV)/installed-dev  ## Style: ruff.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(VENV)/installed-dev  ## Types: mypy --strict.
	$(BIN)/mypy --strict

layers: $(VENV)/installed-dev  ## Imports point one way: import-linter.
	$(BIN)/lint-imports

unit: $(VENV)/installed-dev  ## Behaviour: pytest.
	$(BIN)/python -m pytest

format: $(VENV)/installed-dev  ## Rewrite the sources in the house style.
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/installed-dev  ## Time the engine beside transformers.
	$(BIN)/python benchmarks/engine_vs_transformers.py

clean:  ## Remove the environment and all caches in this folder.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml tests/oracles.txt
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/oracles.txt
	@touch $@ $(VENV)/installed
