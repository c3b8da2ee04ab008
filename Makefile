# Everything runs inside .venv, which `make setup` makes once; setup.cfg is the only list of packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := demo,align,emotion2vec,video,eval,dev
# One worker a core and one thread a worker: tiny models gain nothing from more threads, and lose when they fight.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)
TESTS ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup test lint format demo clean

help:  ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  e.g. make test TESTS=tests/unit/test_packer.py WORKERS=1, make demo ARGS=--seed=1987"

setup: $(STAMP)  ## make .venv and install the package with its extras (about 6 GB with torch)

# pip itself says what it downloads; the stamp is written last, so an interrupted install starts again.
$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is %s: make setup PYTHON=python3.11" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[$(EXTRAS)]"
	@touch $(STAMP)

test: $(STAMP)  ## run unit, consistency and integration tests and every docstring example
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15 $(ARGS) $(TESTS)

lint: $(STAMP)  ## check style
	$(BIN)/ruff check .

format: $(STAMP)  ## bring every file to the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(STAMP)  ## the main job on a corpus that it makes itself: 17 to 25 minutes on 2 idle cores
	$(BIN)/python train.py hparams/demo_ib.yaml $(ARGS)

clean:  ## take the environment and the caches away (results stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
