# Everything here makes .venv by itself, with what it needs, and builds the package into it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py src/fastxent/cpu/engine.pyx src/fastxent/cpu/threads.h \
	$(wildcard src/fastxent/cpu/kernels/*.[ch] src/fastxent/cpu/kernels/isa/*.c)
# Stamps of what has been installed: one per dependency group, one for the package.
GROUP = $(VENV)/.group-$(1)
BUILT := $(VENV)/.built

.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(BUILT) $(call GROUP,demo)  ## train on the digits beside scikit-learn; writes demo.png
	$(BIN)/python examples/digits.py

imbalance: $(BUILT) $(call GROUP,demo)  ## plain, weighted, focal and smoothed training on rare positives; writes imbalance.png
	$(BIN)/python examples/imbalance.py

test: $(BUILT) $(call GROUP,test)  ## run the tests, doctests included
	$(BIN)/python -m pytest

test-slow: $(BUILT) $(call GROUP,test)  ## the long accuracy sweep; every GPU plan, every GPU kernel through the compiler (10 minutes)
	$(BIN)/python -m pytest -m slow

# Those that are worth it, and take no more than a minute: not the proofs in 60 digits, nor what draws its own cases.
PARALLEL_QUICK := $(patsubst %,tests/test_%.py,activations binary_errors binary_layouts binary_outputs cross_entropy_outputs \
	errors everyday focal_layouts focal_outputs loss_objects sigmoid threads)
PARALLEL_TESTS := $(PARALLEL_QUICK) $(patsubst %,tests/test_%.py,binary_options binary_values config cross_entropy_layouts \
	cross_entropy_values engine focal_values half)

# CuPy is for the user to choose, by version of CUDA: .venv/bin/python -m pip install cupy-cuda13x[ctk]
gpu-test: $(BUILT) $(call GROUP,test)  ## the tests of the CPU on CuPy arrays, and those of the GPU alone; needs a GPU and CuPy
	$(BIN)/python -c 'import fastxent.gpu, sys; fastxent.gpu.is_available() or sys.exit("CuPy finds no GPU here")'
	$(BIN)/python -m pytest -k "gpu and not emulated and not stand_in" tests/test_gpu_parity.py tests/test_gpu_alone.py

gpu-emulated: $(BUILT) $(call GROUP,test)  ## the tests of the CPU on the kernels of the GPU, emulated (half an hour)
	$(BIN)/python -m pytest -m "emulated or not emulated" -k emulated tests/test_gpu_parity.py

gpu-bench: $(BUILT) $(call GROUP,test)  ## the speed table on a GPU, beside the peers that can be imported
	$(BIN)/python -m benchmarks.gpu

parallel-tests: $(BUILT) $(call GROUP,parallel)  ## most of the tests, each of them in four threads at once (five minutes)
	$(BIN)/python -m pytest --parallel-threads=4 $(PARALLEL_TESTS)

parallel-tests-quick: $(BUILT) $(call GROUP,parallel)  ## a part of these (a minute)
	$(BIN)/python -m pytest --parallel-threads=4 $(PARALLEL_QUICK)

exhaustive: $(BUILT) $(call GROUP,demo)  ## exp and log1p of every level, for every float32 number (a few minutes)
	$(BIN)/python tools/exhaustive.py

fuzz: $(BUILT) $(call GROUP,test)  ## 100 000 random calls against the reference (about 2 minutes)
	$(BIN)/python tools/fuzz.py --processes $$(nproc)

sanitize: $(call GROUP,dev)  ## build with gcc's sanitizers; 1000 random calls and some tests (about a minute)
	$(BIN)/python tools/sanitize.py

guard-pages: $(BUILT)  ## every kernel between pages that must not be touched
	$(BIN)/python tools/guard_pages

lint: $(call GROUP,lint)  ## ruff, cython-lint and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH=$(BIN):$$PATH cython-lint --max-line-length 120 src
	$(BIN)/python tools/format_c.py

types: $(BUILT) $(call GROUP,dev)  ## mypy --strict
	$(BIN)/mypy

format: $(call GROUP,lint)  ## format the Python and the C code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/format_c.py --apply

bench: $(BUILT) $(call GROUP,demo) $(call GROUP,test)  ## run the benchmarks beside every peer that can be imported (about 20 minutes)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.pipelines

bench-quick: $(BUILT) $(call GROUP,demo) $(call GROUP,test)  ## fewer cases and repeats (about 2 minutes)
	$(BIN)/python -m benchmarks --quick
	$(BIN)/python -m benchmarks.pipelines --quick

bench-readme: $(BUILT) $(call GROUP,demo)  ## rewrite the README's speed section from the newest results
	$(BIN)/python -m benchmarks.readme

bench-guard: $(BUILT)  ## instruction counts of three calls beside the recorded ones (needs valgrind)
	$(BIN)/python -m benchmarks.guard

bench-guard-record: $(BUILT)  ## record the instruction counts of today
	$(BIN)/python -m benchmarks.guard --record

accuracy: $(BUILT) $(call GROUP,demo) $(call GROUP,test)  ## the accuracy table, beside every peer that can be imported
	$(BIN)/python -m benchmarks.accuracy

bench-peers: $(call GROUP,peers)  ## install PyTorch and JAX for the benchmarks and the parity tests

package: $(call GROUP,dev)  ## build sdist and wheel, look inside, and run the wheel's self-test in a new environment
	$(BIN)/python tools/check_package.py

portable: $(call GROUP,dev)  ## build without vector types and without OpenMP, and run the self-test of that
	FASTXENT_ONE_LANE=1 FASTXENT_NO_OPENMP=1 $(BIN)/python tools/check_package.py --wheel-only

trust: $(BUILT)  ## every check in full, and a table of them (an hour)
	$(BIN)/python tools/trust.py

docs: $(BUILT) $(call GROUP,docs)  ## build the site in build/docs/html; every warning is an error
	$(BIN)/python -m sphinx -E -n -W --keep-going -q -b html docs build/docs/html

docs-doctest: $(BUILT) $(call GROUP,docs) $(call GROUP,test)  ## run the examples of the site
	$(BIN)/python -m sphinx -E -n -W --keep-going -q -b doctest docs build/docs/doctest

stubs: $(BUILT) $(call GROUP,types)  ## stubtest of the engine; pyright knows every public type
	$(BIN)/python tools/types_complete.py

docstrings: $(BUILT) $(call GROUP,types)  ## numpydoc's checks of the public docstrings
	$(BIN)/python tools/docstrings.py

review: $(call GROUP,review)  ## sp-repo-review, validate-pyproject and zizmor
	$(BIN)/sp-repo-review .
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/zizmor --offline --quiet .github

wheel: $(call GROUP,wheel)  ## build, repair and check the wheel, rebuild it bit for bit, test it on every Python here (half an hour)
	$(BIN)/python tools/wheel.py

wheel-quick: $(call GROUP,wheel)  ## the same without the rebuild, with one NumPy per Python and a part of the tests
	$(BIN)/python tools/wheel.py --quick

wheel-tests: $(call GROUP,wheel)  ## test the wheel in dist on every Python here
	$(BIN)/python tools/wheel.py --wheel dist/*.whl

clean:  ## remove everything that was built, .venv included
	rm -rf $(VENV) build dist src/*.egg-info src/fastxent/cpu/engine.c src/fastxent/cpu/*.so demo.png imbalance.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(VENV)/.group-%: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --group $*
	@touch $@

$(BUILT): $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@
