# make demo    prompts at 4, 4,2x, 4,1x and 1 steps a chunk side by side, in ./demo
# make test    the tests that need neither minutes nor an accelerator
# make test-browser    the page, in a Chromium of this machine's (BROWSER=path; found by itself where it is usual)
# make check   lint, types and tests: what a change must pass

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SMALL := $(VENV)/.installed-to-run
WORKERS ?= 2

DEMO := "a large red apple slides right slowly on snow" \
	"a small yellow banana bounces sideways at night" \
	"a medium orange basketball drifts up quickly in the sky" \
	"a large orange cat sits in front of a small house on a meadow"

.PHONY: install demo test test-slow test-gpu test-browser check lint types clean

install: $(STAMP)

# Bytecode is made of what is imported, when it is: of all that is installed it takes longer than the rest.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[train,dev]"
	touch $(SMALL) $@

$(SMALL): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

demo: $(SMALL)
	$(BIN)/nearstep compare $(DEMO) --seed 7 -o demo/

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout=1800

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

test-browser: $(STAMP)
	$(INSTALL) -e ".[browser]"
	$(BIN)/python -m pytest tests/browser -m "browser and not slow" --timeout=300

check: lint types test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src tests benchmarks

types: $(STAMP)
	$(BIN)/pyright

clean:
	rm -rf build dist demo .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
