# make demo   trace a circuit of a real language model (a few minutes the first time, most of it pip and one download)
# make test   run the tests
# make help   everything else

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev
PYTEST_ARGS ?=
JOBS ?= auto

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS)

.PHONY: help demo test fix check docs bench app clean
.DELETE_ON_ERROR:

help: ## show this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 8

# The package and what it needs to run. torch goes first and alone: it is by far the largest download.
$(VENV)/.package: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "circuitsae needs Python 3.11 or newer: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch and the package into $(VENV) ..."
	$(PIP) "$$(grep '^torch==' $(CONSTRAINTS))"
	$(PIP) --editable .
	@touch $@

# The same with the extras that tests, checks and docs use.
$(VENV)/.extras-$(EXTRAS): $(VENV)/.package
	@echo "Installing the extras [$(EXTRAS)] into $(VENV) ..."
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(VENV)/.package ## trace an indirect-object prompt on SmolLM2-135M; leaves demo/circuit.json and demo/circuit.html
	@mkdir -p demo
	$(BIN)/circuitsae trace --preset smollm2 "When Mary and John went to the store, John gave a drink to" --answer " Mary" --foil " John" \
	  --output demo/circuit.json --html demo/circuit.html
	@echo
	@echo "The circuit lies in $(CURDIR)/demo/circuit.json; open $(CURDIR)/demo/circuit.html in a browser to see it."

test: $(VENV)/.extras-$(EXTRAS) ## run the tests (PYTEST_ARGS="-m 'not slow'" for the quick ones)
	@command -v chromium chromium-browser google-chrome > /dev/null || echo "No Chromium here: the browser tests will be skipped."
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

fix: $(VENV)/.extras-$(EXTRAS) ## format, mend what can be mended, write the generated docs anew
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m tests.node fix
	$(BIN)/python docs/generate.py

check: $(VENV)/.extras-$(EXTRAS) ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tests.node check

docs: $(VENV)/.extras-$(EXTRAS) ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.extras-$(EXTRAS) ## measure time and memory, as ratios to the bare model's passes
	$(BIN)/python -m benchmarks

app: $(VENV)/.extras-$(EXTRAS) ## open the app in the browser
	$(BIN)/circuitsae serve

clean: ## remove what make has made, the virtual environment excepted
	rm -rf demo site build dist .ci/work node_modules
