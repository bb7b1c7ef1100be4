# Everything a contributor runs. `make` alone lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := .venv/bin
# Tests that must not run beside each other share a name: @pytest.mark.xdist_group("name").
PYTEST_ARGS ?= -n auto --dist loadgroup
# What to test, for example: make test TESTS=tests/integration
TESTS ?= tests
UV_VERSION ?= 0.13.8
LOCK_TOOL := .cache/lock-tool/bin/uv
PIP_COMPILE := $(LOCK_TOOL) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
COMPILE := $(PIP_COMPILE) pyproject.toml

.PHONY: help setup demo demo-fleet test check bench lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing and make .venv
	@bash scripts/setup.sh

demo: ## Rehearse a plan of 15 tasks in tmux, no API key needed
	@bash scripts/setup.sh
	@bash scripts/demo.sh

demo-fleet: ## Two machines in miniature, 200 agents, 1,000 tasks, and everything that can go wrong; needs root
	@bash scripts/setup.sh --test
	@$(BIN)/python scripts/demo_fleet.py

test: ## Run every test
	@bash scripts/setup.sh --test
	@bash scripts/setup_agents.sh --all
	@$(BIN)/pytest $(PYTEST_ARGS) $(TESTS)

check: ## The gate before a commit: format, lint, types, unit and conformance tests, some simulated worlds
	@bash scripts/setup.sh --dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	ORCHESTRA_SIM_SEEDS=20 $(BIN)/pytest $(PYTEST_ARGS) tests/unit tests/conformance tests/simulation/test_world.py

bench: ## Run the benchmarks, one after the other
	@bash scripts/setup.sh --dev
	@set -e; for file in $(or $(wildcard benchmarks/bench_*.py),$(error there is no benchmarks/bench_*.py)); do $(BIN)/python "$$file"; done

# An existing pin stays unless it no longer fits; `make lock LOCK_ARGS=--upgrade` moves all of them.
lock: $(LOCK_TOOL) ## Lock the dependencies by version and hash
	$(COMPILE) $(LOCK_ARGS) -o requirements/runtime.txt
	$(COMPILE) $(LOCK_ARGS) -c requirements/runtime.txt --group build -o requirements/build.txt
	$(COMPILE) $(LOCK_ARGS) -c requirements/runtime.txt -c requirements/build.txt --group dev -o requirements/dev.txt
	$(PIP_COMPILE) $(LOCK_ARGS) --override requirements/agents/aider.overrides requirements/agents/aider.in -o requirements/agents/aider.txt
	$(PIP_COMPILE) $(LOCK_ARGS) requirements/agents/mini.in -o requirements/agents/mini.txt

$(LOCK_TOOL):
	@$(or $(PYTHON),python3) -m venv .cache/lock-tool
	@.cache/lock-tool/bin/pip install --quiet uv==$(UV_VERSION)

clean: ## Remove what these targets made
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
