PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo demo-quick test test-fast coverage lint bench bench-tables docs clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

install: $(VENV)/.installed

demo-quick: install
	$(BIN)/bmmae demo --out runs/demo-quick --quick

demo: install
	$(BIN)/bmmae demo --out runs/demo

test: install
	$(BIN)/pytest -n 2 --dist loadfile --durations=10

coverage: install
	$(BIN)/pytest --cov --cov-report=term:skip-covered

test-fast: install
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow" -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Alone on the machine: the benchmarks measure it.
bench: install
	for script in data pretrain_step scaling; do $(BIN)/python benchmarks/$$script.py || exit 1; done

bench-tables: install
	$(BIN)/python benchmarks/tables.py

# The pages are Markdown; their code is executed by the tests.
docs: install
	$(BIN)/pytest -q tests -k "readme or docs or weights_md"

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
