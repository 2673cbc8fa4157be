# `make demo` and `make test` work from nothing: each makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
BIN := $(VENV)/bin
RUNTIME_STAMP := $(VENV)/.installed-runtime
DEV_STAMP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-fullsize check format picture clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(RUNTIME_STAMP)  ## install the runtime, segment the built-in clip, print FPS and J&F
	$(BIN)/mpn demo -o demo-out

test: $(DEV_STAMP)  ## run the tests (minutes, 2 cores)
	$(BIN)/python -m pytest -q -m "not fullsize"

test-fullsize: $(DEV_STAMP)  ## export and run the paper-size networks
	$(BIN)/python -m pytest -q -m fullsize

check: $(DEV_STAMP)  ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_language.py

format: $(DEV_STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

picture: $(RUNTIME_STAMP)  ## make the README's picture again
	$(BIN)/python benchmarks/readme_picture.py

clean:  ## remove the environment and what demo wrote
	rm -rf $(VENV) demo-out build

# The runtime alone: no torch. pip is quiet, but says what it is doing.
$(RUNTIME_STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "error: no venv module: apt-get install python3-venv"; exit 1; }
	@echo "installing the runtime into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[cpu]'
	@touch $@

# Everything for development. torch alone and first: the one version that all numbers come from.
$(DEV_STAMP): $(RUNTIME_STAMP) pyproject.toml
	@echo "installing torch $(TORCH) and the development tools into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'torch==$(TORCH)'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[cpu,export,dev]'
	@touch $@
