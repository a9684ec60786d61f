# `make demo` and `make test` work from an empty clone: each sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TOOLS  := $(VENV)/tools
LOCKED := pip install --quiet --quiet --require-hashes

# torch without CUDA, a version that ends in +cpu, where pip finds it, else PyPI's; `make setup TORCH=pypi` decides.
CPU_TORCH := $(shell sed -n 's/^torch==\([^ ]*\).*/\1/p' requirements/torch-cpu.txt)
TORCH ?= $(if $(shell $(BIN)/pip index versions torch 2>/dev/null | grep -wF '$(CPU_TORCH)'),cpu,pypi)

.PHONY: help setup minkowski demo test test-image lint format lock audit clean
help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(READY)  ## create .venv and install voxelwave with its development tools

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/pip
	$(BIN)/$(LOCKED) $(foreach part,torch-$(TORCH) run dev,--requirement requirements/$(part).txt)
	$(BIN)/pip install --quiet --quiet --no-deps --no-build-isolation --editable .
	touch $@

minkowski: setup  ## build MinkowskiEngine into .venv, or take the wheel of an earlier build; not needed to train
	PYTHON=$(BIN)/python docker/install_minkowski.sh

demo: setup  ## generate heads, pretrain one model on MRI and CT, draw figures
	$(BIN)/voxelwave synthesize data/demo --num-mri 50 --num-ct 50 --size 96 --seed 0
	$(BIN)/voxelwave pretrain configs/pretrain/demo.yaml --resume

# Two processes at most, a file in one of them: its tests share what they have trained. More would wait for each other,
# since tests start processes of their own, and each holds torch and a gigabyte.
test: setup  ## run every test but that of the image
	$(BIN)/pytest --numprocesses logical --maxprocesses 2 --dist loadfile

test-image: setup  ## run the steps of docker/Dockerfile.cpu, some minutes; skipped without MinkowskiEngine
	$(BIN)/pytest -m image tests/test_docker.py

lint: setup  ## formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## rewrite the files as `make lint` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(TOOLS)/.ready: requirements/tools.txt
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/$(LOCKED) --requirement requirements/tools.txt
	touch $@

lock: $(TOOLS)/.ready  ## lock what pyproject.toml asks for; UV='--upgrade' takes newer versions
	$(TOOLS)/bin/python requirements/lock.py $(UV)

# PyPI's build of torch stands for both: advisories do not know versions that end in +cpu.
AUDITED := $(filter-out requirements/torch-cpu.txt,$(wildcard requirements/*.txt))
audit: $(TOOLS)/.ready  ## ask PyPI for the known vulnerabilities of every locked package
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes $(AUDITED:%=--requirement %)

clean:  ## remove the environment and caches, keep data and runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
