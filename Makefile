# coserve: everything that one does with a checkout. `make` alone lists it.

MAKEFLAGS += --no-print-directory
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SETUP := pyproject.toml constraints.txt $(wildcard setup.py src/coserve/kernels/native/*.cpp src/coserve/kernels/native/*.h)
SOURCES := src tests $(wildcard benchmarks docs examples recipes)

.DEFAULT_GOAL := help
.PHONY: help venv up test test-all lint audit bench clean

help: ## this list
	@echo "make TARGET, where TARGET is one of"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1|/' | \
		while IFS='|' read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

venv: .venv/dev ## make .venv with everything that running and testing need; nothing else

up: .venv/run ## serve the built-in model and fine-tune it meanwhile; ARGS="--demo-load --port 8001"
	@$(BIN)/coserve up $(ARGS)

test: .venv/dev ## the fast tests; SLOW=1 adds the slow ones; ARGS="tests/cli -x"
	@$(BIN)/python -m pytest $(if $(SLOW),,-m "not slow") $(ARGS)

test-all: ## all tests
	@$(MAKE) test SLOW=1

lint: .venv/dev ## ruff (rules and format) and mypy
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

audit: .venv/dev ## bandit on the sources, pip-audit on what is installed (it says what it could not look up)
	$(BIN)/bandit -q -ll -ii -r src/coserve
	$(BIN)/pip-audit --local --progress-spinner off --skip-editable

bench: .venv/dev ## the benchmarks, a minute each; ARGS="" for the full ones
	@for file in benchmarks/coserving.py benchmarks/training.py benchmarks/decode.py benchmarks/quantization.py benchmarks/planner_validation.py benchmarks/planner_here.py benchmarks/tiers.py benchmarks/gateway.py; do \
		$(BIN)/python $$file $(if $(filter undefined,$(origin ARGS)),--quick,$(ARGS)) || exit 1; done

clean: ## remove .venv and what was built; the models and jobs in ~/.coserve stay
	rm -rf .venv build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache src/*.egg-info
	find src tests -name __pycache__ -prune -exec rm -rf {} + -o -name '*.so' -exec rm -f {} +

# The two stamps: what running needs, and that with the tests' tools. Each is made again when its sources change.
.venv/run: $(SETUP) | .venv/bin/python
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

.venv/dev: $(SETUP) | .venv/bin/python
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch .venv/run $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "coserve needs Python 3.11 or newer; found $$(python3 -V 2>&1). Try: make venv PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) -V); its packages take a few minutes the first time" >&2
	$(PYTHON) -m venv .venv
