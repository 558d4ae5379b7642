# Everything runs in .venv, which is made on first use; no environment need be activated.

PYTHON ?= python3
JOBS   ?= 2

BIN       := .venv/bin
INSTALLED := .venv/.installed

# A PYTHONPATH or PYTHONHOME of the caller's would let other packages in before those of .venv.
unexport PYTHONPATH
unexport PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

$(INSTALLED): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { echo "'$(PYTHON)' was not found: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "limbeck needs Python 3.11 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1): make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Distil a small model on real data and write a report (minutes, no downloads but the packages)
	$(BIN)/limbeck demo

test: $(INSTALLED) ## Run the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(INSTALLED) ## Style, formatting and who may import whom
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED) ## Check the types
	$(BIN)/python -m mypy

bench: $(INSTALLED) ## Run every benchmark beside its peers (results in benchmarks/results)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev,bench]'
	@failed=; for file in $(filter-out benchmarks/common.py benchmarks/step_peers.py,$(wildcard benchmarks/*.py)); do \
		echo "$$file"; $(BIN)/python "$$file" || failed="$$failed $$file"; done; \
	test -z "$$failed" || { echo "not measured:$$failed" >&2; exit 1; }

clean: ## Remove .venv, caches and build outputs (never runs/)
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
