# Two commands do everything on a fresh machine with Python 3.11+:
#   make demo   install, register the sample pair, print where the report is
#   make test   install, check and test everything
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint docs bench clean

demo: $(STAMP)
	$(BIN)/clemreg demo --out demo-report

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not gpu and not bench"

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bspline_points.py

# torch first, from constraints.txt: an unpinned torch pulls gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo-report site .mypy_cache .ruff_cache .pytest_cache
