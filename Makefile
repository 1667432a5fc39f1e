# Two commands set everything up on a machine with nothing but Python and make:
#   make demo     make test
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
NEWEST := $(CURDIR)/build/triton-newest
TESTS  ?=
# Import from the checkout, with or without an editable install.
export PYTHONPATH := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format golden docs bench compile-newest clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

$(READY): pyproject.toml tools/bootstrap.py
	@$(PYTHON) tools/bootstrap.py --venv $(VENV)
	@touch $@

demo: $(READY)  ## four masks from expression to checked kernels; leaves demo_out/
	@$(PY) -m maskwright demo

# Tests run side by side: threads of their own would only wait for each other.
test compile-newest: export OMP_NUM_THREADS ?= 1

test: lint  ## lint, types, then all tests
	$(PY) -m pytest -n 2 $(TESTS)

lint: $(READY)  ## ruff check, ruff format --check, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY)  ## let ruff fix and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

golden: $(READY)  ## accept the current generated text as the golden files
	$(PY) -m pytest -n 2 -m golden --update-golden $(TESTS)

docs: $(READY)  ## write the generated pages under docs/
	$(PY) -m maskwright.runtime.settings > docs/settings.md

bench: $(READY)  ## the benchmark harness; needs a GPU
	$(PY) -m maskwright bench

$(NEWEST)/.ready: $(READY)
	$(PY) -m pip install --quiet --no-deps --upgrade --target $(NEWEST) triton
	@touch $@

# Shared memory is counted for the pinned Triton; the newest is not what is tuned for.
compile-newest: $(NEWEST)/.ready  ## cross-compile and smoke-test with the newest Triton
	PYTHONPATH=$(NEWEST):$(CURDIR) $(PY) -m pytest -n 2 tests/compile tests/interpret/test_demo.py --ignore tests/compile/test_shared_memory.py

clean:  ## remove everything that make created
	rm -rf $(VENV) build dist demo_out *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
