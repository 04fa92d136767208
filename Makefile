# make demo   everything once, on the model that ships with the package
# make test   all tests; `make quick` leaves the slow ones out
PYTHON ?= python3.11
VENV := .venv

.PHONY: demo test quick lint clean

$(VENV)/ready: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/ready
	$(VENV)/bin/python recipes/demo/tour.py

test: lint
	$(VENV)/bin/python -m pytest

quick: $(VENV)/ready
	$(VENV)/bin/python -m pytest -m "not slow"

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
