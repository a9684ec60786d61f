# `make demo` and `make test` work from an empty clone: each sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help setup minkowski demo test test-image lint format clean
help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(READY)  ## create .venv and install voxelwave with its development tools

# torch goes first and alone, so that no other package's range decides which build is fetched.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --quiet --constraint constraints.txt --editable '.[dev]'
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

clean:  ## remove the environment and caches, keep data and runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
