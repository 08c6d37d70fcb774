# Every target bootstraps its own .venv from the hash-pinned requirement files.
PYTHON ?= python3
BIN := .venv/bin
BUF := $(BIN)/buf

.DEFAULT_GOAL := help
.PHONY: help run test check soak bench generate lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z.]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: .venv/installed ## Create the virtual environment (PYTHON=python3.12 chooses another interpreter)

.venv/installed: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else \
		"Inferplane needs Python 3.11 or 3.12, and $(PYTHON) is %d.%d: make .venv PYTHON=python3.12" % v)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: .venv ## Train, serve, call and measure a digits classifier, then keep serving (ONCE=1: then stop)
	$(BIN)/python examples/digits.py $(if $(ONCE),--once)

test: .venv ## Run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not soak"

soak: .venv ## Run the long forms of the claims
	$(BIN)/python -m pytest -m soak --timeout 3600

bench: .venv ## Measure the data plane beside Triton itself and a bare pass-through
	$(BIN)/python -m tests.benchmarks.data_plane

check: .venv ## Check style, types, layers, the contract and the generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BUF) lint
	$(BUF) format --diff --exit-code
	$(BIN)/python protos/generate.py --check
	.ci/check-breaking $(BUF)

generate: .venv ## Regenerate the stubs in generated/ from protos/
	$(BIN)/python protos/generate.py

lock: .venv ## Re-resolve the pinned requirement files from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--extra server --extra embedded --extra demo --group dev pyproject.toml --output-file requirements/dev.txt

clean: ## Remove everything that the targets above created
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist
