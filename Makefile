# make demo: the main job on a real model and text.   make test: all tests.   Each sets up what it needs and is missing in .venv.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$p; break; }; done)
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# With the build tools of .venv, so that what is built there is what an editable checkout runs.
INSTALL = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q --no-build-isolation

NATIVE := CMakeLists.txt setup.py $(shell find csrc cmake -type f)

# What `make check` looks with, and at; pyproject.toml and .clang-format have the rules.
CHECKERS := clang-format mypy ruff
C_SOURCES = $(shell find benchmarks csrc dynadapt/interop examples tests -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu')

.PHONY: aarch64 bench check clean demo format package sanitize sanitize-quick test venv
.DEFAULT_GOAL := help

help:
	@echo "make demo       compare ways of adapting SmolLM2-135M on a real text, in about three minutes of work; table, picture"
	@echo "                and page in runs/demo/ (all of it, without a clock: make demo ARGS='--minutes 0')"
	@echo "make test       run all tests, two files at a time (one process, for a debugger: make test ARGS='-n 0')"
	@echo "make package    build the source distribution and the wheel in isolation, install and run it"
	@echo "make venv       set up .venv with the native extension and all that the tests need, and nothing else"
	@echo "make bench      time one adapt step against transformers + peft (about 20 minutes)"
	@echo "make check      style, types and formatting of Python, C, C++ and CUDA, in seconds; make format applies the formatting"
	@echo "make sanitize   native tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer"
	@echo "make aarch64    cross-compile the C library for 64-bit Arm and run every op and the engine of it in an emulator"
	@echo "make clean      remove .venv and build/"

# What of .venv is there: base, what the package itself needs (the demo needs no more); native, the extension made from these sources;
# test, what the tests need besides, on top of both.
venv: $(VENV)/test.stamp

$(VENV)/base.stamp: pyproject.toml requirements/constraints.txt
	@test -n "$(PYTHON)" || { echo "dynadapt needs Python 3.10 or later; none was found (set PYTHON=/path/to/python3)"; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || { echo "dynadapt needs a C++ compiler; $${CXX:-g++} was not found"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "setuptools>=77" "pybind11>=3" ninja "cmake>=3.25" -c requirements/constraints.txt
	$(INSTALL) -c requirements/constraints.txt -e .
	@touch $@

$(VENV)/native.stamp: $(VENV)/base.stamp $(NATIVE)
	@if [ -n "$(filter-out $(VENV)/base.stamp,$?)" ] && [ -e $@ ]; then $(INSTALL) --no-deps -e .; fi
	@touch $@

$(VENV)/test.stamp: $(VENV)/base.stamp | $(VENV)/native.stamp
	$(INSTALL) -c requirements/constraints.txt -e ".[test]"
	@touch $@

$(VENV)/check.stamp: requirements/constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c requirements/constraints.txt $(CHECKERS)
	@touch $@

check: $(VENV)/check.stamp
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)
	$(BIN)/mypy

format: $(VENV)/check.stamp
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $(C_SOURCES)

demo: $(VENV)/native.stamp
	$(BIN)/dynadapt fetch smollm2-135m
	$(BIN)/dynadapt demo $(ARGS)

test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

package: venv
	$(BIN)/python -m pytest tests/project/test_distribution.py -m slow

bench: venv
	$(BIN)/dynadapt fetch smollm2-135m
	$(BIN)/dynadapt bench step --against peft-eager,peft-compile

sanitize: venv
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/native/test_sanitized.py -m slow

sanitize-quick: venv
	for each in address,undefined thread; do \
		PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON=$(CURDIR)/$(BIN)/python tests/native/run_sanitized.sh --quick $$each || exit 1; done

# Debian's packages g++-aarch64-linux-gnu and qemu-user; the library is then in build/aarch64.
aarch64: venv
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/native/test_aarch64.py -m slow

clean:
	rm -rf $(VENV) build dynadapt/*.so dynadapt/include dynadapt/share
