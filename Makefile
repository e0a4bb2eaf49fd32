# Two commands do all the set-up: `make demo` and `make test`. Both need only Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src tests benchmarks deploy
NATIVE := $(shell find native -type f)

# CMake and Ninja as packages: the same on every machine.
CMAKE := $(BIN)/cmake
CTEST := $(BIN)/ctest
CMAKE_OPTIONS := -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DCORRAL_TESTS=ON

PACKAGES := import sysconfig; print(sysconfig.get_path("platlib"))

.DEFAULT_GOAL := help
.PHONY: help demo serve install test lint types layers unit native native-test native-arm sanitize format bench clean

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

demo: $(VENV)/installed  ## Install, fetch the default model, ask it one question.
	$(BIN)/corral chat --stats -p "What is the capital of France? Answer in one sentence." < /dev/null

serve: $(VENV)/installed  ## Serve the default model, with the chat page; Ctrl-C ends it.
	$(BIN)/corral serve

install: $(VENV)/installed  ## Install into .venv.

test: lint types layers unit  ## Run every check.

lint: $(VENV)/installed-dev  ## Style: ruff.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(VENV)/installed-dev  ## Types: mypy --strict.
	$(BIN)/mypy --strict

layers: $(VENV)/installed-dev  ## Imports point one way: import-linter.
	$(BIN)/lint-imports

# A process for each core, but no more than four: each takes up to 2 GB. Threads within them would wait for each other.
WORKERS ?= auto
unit: $(VENV)/installed-dev $(VENV)/installed-native  ## Behaviour: pytest, in several processes (WORKERS=0: in one).
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
		$(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal

native: $(VENV)/installed-native  ## Build what changed of the native library, into .venv.

native-test: $(VENV)/installed-native  ## Behaviour of what Python cannot see: ctest.
	$(CTEST) --test-dir build/native --output-on-failure

native-arm: $(VENV)/bin/ninja  ## The same for 64-bit ARM, cross-compiled, under QEMU.
	@if command -v aarch64-linux-gnu-g++ > /dev/null && command -v qemu-aarch64 > /dev/null; then set -e; \
		$(CMAKE) -S native -B build/arm $(CMAKE_OPTIONS) --toolchain $(abspath native/toolchains/aarch64.cmake); \
		$(CMAKE) --build build/arm; \
		$(CTEST) --test-dir build/arm --output-on-failure; \
	else echo "no aarch64-linux-gnu-g++ or no qemu-aarch64: install g++-aarch64-linux-gnu and qemu-user"; fi

ADDRESS := build/address/libcorral_native.so
# The library with AddressSanitizer and UBSan, under the tests in C++ and in Python; the pool with ThreadSanitizer.
# A process that loads an instrumented library needs the sanitizer's own first, and Python's leaks are not ours.
sanitize: $(VENV)/installed-dev $(VENV)/bin/ninja  ## Run the native code under sanitizers.
	$(CMAKE) -S native -B build/address $(CMAKE_OPTIONS) -DCORRAL_SANITIZE=address,undefined
	$(CMAKE) --build build/address
	$(CTEST) --test-dir build/address --output-on-failure
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 CORRAL_LIBRARY=$(ADDRESS) CORRAL_TEST_LIBRARY=$(ADDRESS) \
		$(BIN)/python -m pytest tests/kernels --ignore=tests/kernels/test_perplexity.py
	$(CMAKE) -S native -B build/thread $(CMAKE_OPTIONS) -DCORRAL_SANITIZE=thread
	$(CMAKE) --build build/thread --target pool_test
	$(CTEST) --test-dir build/thread --output-on-failure --tests-regex pool

format: $(VENV)/installed-dev  ## Rewrite the sources in the house style.
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/installed-dev  ## Time the engine beside transformers.
	$(BIN)/python benchmarks/engine_vs_transformers.py

clean:  ## Remove the environment and all caches in this folder.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/bin/ninja: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet cmake ninja

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[ui,tune]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml tests/oracles.txt
	$(BIN)/python -m pip install --quiet --editable ".[dev,ui,tune,otel]"
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/oracles.txt
	@touch $@ $(VENV)/installed

# `pip install` has built the library already; this builds what was edited since. Without a compiler it does nothing.
$(VENV)/installed-native: $(VENV)/installed-dev $(VENV)/bin/ninja $(NATIVE)
	@if command -v $(CXX) > /dev/null; then set -e; \
		$(CMAKE) -S native -B build/native $(CMAKE_OPTIONS); \
		$(CMAKE) --build build/native; \
		$(CMAKE) --install build/native --prefix "$$($(BIN)/python -c '$(PACKAGES)')"; \
	else echo "no $(CXX): the native library is not built"; fi
	@touch $@
