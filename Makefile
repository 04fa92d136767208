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

# A bundle is exported again when anything that made it is newer.
SOURCES := $(shell find vlmexport recipes/*.toml calibration -type f ! -path '*/__pycache__/*')
BUNDLES := out/demo-x86 out/demo-arm64 out/demo-gguf

out/demo-x86/vlmexport.json: $(VENV)/ready $(SOURCES)
	$(VENV)/bin/vlmexport onnx demo --target x86 --output out/demo-x86 --force

out/demo-arm64/vlmexport.json: $(VENV)/ready $(SOURCES)
	$(VENV)/bin/vlmexport onnx demo --target arm64 --output out/demo-arm64 --force

out/demo-gguf/vlmexport.json: $(VENV)/ready $(SOURCES)
	$(VENV)/bin/vlmexport gguf demo --bits 4 --output out/demo-gguf --force

demo: $(BUNDLES:=/vlmexport.json)
	$(VENV)/bin/python recipes/demo/tour.py $(BUNDLES)

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
