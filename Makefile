# `make demo` and `make test` work from nothing: each makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
BIN := $(VENV)/bin
RUNTIME_STAMP := $(VENV)/.installed-runtime
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-docs
READERS := build/readers
READERS_STAMP := $(READERS)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-fullsize test-browser test-api check format docs dist round-trips picture image image-base clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(RUNTIME_STAMP)  ## install the runtime, segment the built-in clip, print FPS and J&F
	$(BIN)/mpn demo -o demo-out

test: $(DEV_STAMP)  ## run the tests (minutes, 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal \
	  -m "not fullsize and not browser and not api"

test-fullsize: $(DEV_STAMP)  ## export and run the paper-size networks
	$(BIN)/python -m pytest -q -m fullsize

test-browser: $(DEV_STAMP)  ## drive the page of mpn studio in Chromium (apt-get install chromium)
	$(BIN)/python -m pytest -q -m browser

test-api: $(DEV_STAMP)  ## send generated requests to mpn serve, by its OpenAPI document
	$(BIN)/python -m pytest -q -m api

check: $(DEV_STAMP)  ## lint, types, layers, language
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_language.py

format: $(DEV_STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS_STAMP)  ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: $(DEV_STAMP)  ## build code and weights into dist, install the wheels and check them
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m build --outdir dist weights/lite
	.ci/check_wheel dist $(BIN)

round-trips: $(DEV_STAMP) $(READERS_STAMP)  ## read exported annotations with other programs' packages
	$(BIN)/python -m benchmarks.round_trips --python $(READERS)/bin/python

picture: $(RUNTIME_STAMP)  ## make the README's picture of the demo clip again
	$(BIN)/python -m benchmarks.readme_picture

image:  ## build the CPU image with docker, podman or buildah (docs/containers.md)
	tools/build_image

# For machines without a registry: the Dockerfile's base, made of Debian's packages.
image-base:  ## make localhost/debian:trixie with mmdebstrap and buildah
	mkdir -p build
	mmdebstrap --variant=minbase \
	  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
	  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	  trixie build/debian.tar
	container=$$(buildah from scratch) && buildah add --quiet $$container build/debian.tar / \
	  && buildah commit --quiet --rm $$container localhost/debian:trixie

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) demo-out build dist

# The runtime and the default weights: no torch.
$(RUNTIME_STAMP): pyproject.toml weights/lite/pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "error: no venv module: apt-get install python3-venv"; exit 1; }
	@echo "installing the runtime into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[cpu]' -e weights/lite
	@touch $@

# Everything for development. torch first and pinned: all results come from this version.
$(DEV_STAMP): $(RUNTIME_STAMP) pyproject.toml
	@echo "installing torch $(TORCH) and the development tools into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'torch==$(TORCH)'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[cpu,export,dev]'
	@touch $@

# The site is built from the sources as text: it needs neither torch nor the runtime.
$(DOCS_STAMP): $(RUNTIME_STAMP) pyproject.toml
	@echo "installing the documentation tools into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[cpu,docs]'
	@touch $@

# Readers of annotations: Datumaro needs OpenCV 4, and labelme Qt, so they have an environment alone.
$(READERS_STAMP): $(RUNTIME_STAMP) benchmarks/round_trips/requirements.txt
	@echo "installing the readers of other programs into $(READERS) ..."
	@$(PYTHON) -m venv $(READERS)
	@$(READERS)/bin/python -m pip install -q --disable-pip-version-check -r benchmarks/round_trips/requirements.txt
	@touch $@
