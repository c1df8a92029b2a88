# What is assumed: python3 (3.11 or later) with pip, and make. Everything else goes into .venv.
#   make run     serve on 127.0.0.1:2223       make test    the whole test suite      (TESTS="-k name" picks)
#   make demo    the deployment story, live    make check   format, lint, types, imports, tests
#   make bench   measure, beside its peers     make setup   the .venv alone           make clean   remove it
#   make format  put the files into shape      make help    these lines
#   make simulate SEEDS=20000        three servers in one process: crash, cut and fill what there is; is anything lost?
#   make simulate ARGS="--fair"      users and strangers who never stop: does each get an equal share, and nobody wait long?
#   make fuzz MINUTES=10             anything, sent by anybody, to what reads and decides: does a rule break? [SEED=name:n: one story]
#   make lossy MESSAGES=10000        two hosts, as root, and a link between them that loses, is deaf, is cut: is anything lost?
#   make hostile SECONDS=60          a hostile user, handler and server, in turn, each at its worst beside honest traffic
#   make soak MINUTES=10             users, browsers, handlers and accounts come and go: does memory grow, or is a descriptor left?
#   make test-stores                 the store's and the delivery contract's tests on SQLite, memory and PostgreSQL
#   make chaos MINUTES=10 [SEED=n]   kill, freeze and mislead real processes for so long: is anything lost?
#                                    ARGS="--layout cluster": one server has two brokers, two bridges, a PostgreSQL
#   BESTER_WALK=1 make test TESTS=tests/hosts/test_cluster_page.py    as root: the page about a server on two hosts, walked
# ARGS="…" is passed on to the program behind run, demo, bench, hostile and others.

PYTHON3 ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(PYTHON3) -m pip --python $(BIN)/python --disable-pip-version-check install --quiet --no-input
# Stamps: written when an installation is complete, out of date when pyproject.toml changes.
SERVES := $(VENV)/.serves
COMPLETE := $(VENV)/.complete
MEASURES := $(VENV)/.measures
FUZZES := $(VENV)/.fuzzes
ARGS ?=
TESTS ?=
# Processes of `make test`: twice as many as there are processors, as a test waits as long as it computes.
WORKERS ?= $(shell $(PYTHON3) -c 'import os; print(2 * len(os.sched_getaffinity(0)))')
MINUTES ?= 1
SEEDS ?= 500
MESSAGES ?= 10000
SECONDS ?= 60
SEED ?=

.PHONY: help setup run demo test test-stores check format bench simulate fuzz lossy hostile soak chaos clean
.DEFAULT_GOAL := setup
# Two installations at once would spoil each other.
.NOTPARALLEL:

setup: $(COMPLETE)

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

run: $(SERVES)
	@exec $(BIN)/bester up $(ARGS)

demo: $(SERVES)
	@exec $(BIN)/bester demo deployment $(ARGS)

test: $(COMPLETE)
	@$(BIN)/python -m pytest -q -n $(WORKERS) $(TESTS)

# Each of these tests in full on each store; `make test` has the cheap ones of them.
test-stores: $(COMPLETE)
	@$(BIN)/python -m pytest -q -n $(WORKERS) tests/unit/test_store*.py
	@$(BIN)/python -m pytest -q -n $(WORKERS) --stores all -m stores tests/e2e

check: $(COMPLETE)
	@$(BIN)/ruff format --check --quiet . || { echo "make format puts these files into shape" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m tests.guard
	@$(BIN)/lint-imports --no-logo >$(VENV)/imports.txt 2>&1 || { cat $(VENV)/imports.txt >&2; exit 1; }
	@echo "check: format, lint, types, imports and the tests' own rules are good"

format: $(COMPLETE)
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

bench: $(MEASURES)
	@exec $(BIN)/python -m tests.benchmarks $(ARGS)

simulate: $(COMPLETE)
	@exec $(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

# Stories, then bytes that hypothesis and atheris draw, so many minutes each; a story that is named is played alone.
fuzz: $(FUZZES)
	@$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)
	@$(if $(SEED)$(ARGS),true,exec $(BIN)/python -m tests.fuzz.drawn --minutes $(MINUTES))

lossy: $(COMPLETE)
	@exec $(BIN)/python -m tests.hosts --messages $(MESSAGES) $(ARGS)

soak: $(COMPLETE)
	@exec $(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

hostile: $(COMPLETE)
	@exec $(BIN)/python -m tests.hostile --seconds $(SECONDS) $(ARGS)

chaos: $(COMPLETE)
	@exec $(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON3) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Bester needs python3 3.11 or later; make PYTHON3=/path/to/python3 names one" >&2; exit 1; }
	@$(PYTHON3) -m pip --version >/dev/null || { echo "Bester needs pip: on Debian, apt-get install python3-pip" >&2; exit 1; }
	@$(PYTHON3) -m venv --without-pip $(VENV)

# Running needs less than working on it: the first start stays short.
$(SERVES): pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) (once)" >&2
	@$(PIP) -e .
	@touch $@

$(COMPLETE): pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) with the tools (once)" >&2
	@$(PIP) -e '.[dev]'
	@touch $(SERVES) $@

$(MEASURES): pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) with what the benchmark measures against (once)" >&2
	@$(PIP) -e '.[bench]'
	@touch $(SERVES) $@

# Atheris has no package for some Pythons: hypothesis draws alone then.
$(FUZZES): pyproject.toml | $(COMPLETE)
	@echo "setting up $(VENV) with what the fuzzers need (once)" >&2
	@$(PIP) -e '.[fuzz]' || echo "atheris cannot be installed here: hypothesis draws alone" >&2
	@touch $@
