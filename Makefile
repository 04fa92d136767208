# make demo   everything once, on the model that ships with the package
# make test   all tests; `make quick` leaves the slow ones out
# make thorough  every encoder with every projector and language model, from `new` to `check`; towers of timm; right bundles over 20 seeds (a quarter of an hour)
# make rotating  a part of `make thorough`, which SEED chooses (by default the commit), so that CI goes through all of it in time
# make parity the demo's bundles against the committed baselines; `make baselines` makes them anew
# make same-bytes BASE=v1 whether this working copy exports what a commit exported, byte by byte: four minutes a tree
# make optimum  optimum, which pins an older transformers, in an environment of its own: a test and a benchmark use it
# make arm64  arm64's onnxruntime under QEMU, for `vlmexport check --on arm64` and its tests (Debian; 180 MB)
# make bench  us and the peers in turn, on a MobileVLM V2 1.7B of random weights (16 GB of disk and 11 GB of memory)
PYTHON ?= python3.11
VENV := .venv

.PHONY: demo announce test quick thorough rotating parity baselines same-bytes optimum arm64 bench lint clean

# `make demo` says which of its five steps it is at. Other goals share them, without the numbers.
step = $(if $(filter demo,$(MAKECMDGOALS)),[$(1)/5] )

$(VENV)/ready: pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python recipes/demo/step.py --log $(VENV)/install.log \
	    '$(call step,1)Python packages, once: minutes, and six more if llama.cpp is compiled' \
	    -- sh -c '$(VENV)/bin/python -m pip install --quiet --upgrade pip && \
	    $(VENV)/bin/python -m pip install --progress-bar off --editable ".[dev]"'
	@touch $@

# A bundle is exported again when anything that made it is newer.
SOURCES := $(shell find vlmexport recipes/*.toml calibration -type f ! -path '*/__pycache__/*')
BUNDLES := out/demo-x86 out/demo-arm64 out/demo-gguf

out/demo-x86/vlmexport.json: $(VENV)/ready $(SOURCES)
	@echo '$(call step,2)ONNX int8 for x86, calibrated on 72 pictures: a minute or more'
	@$(VENV)/bin/vlmexport onnx demo --target x86 --output out/demo-x86 --force

out/demo-arm64/vlmexport.json: $(VENV)/ready $(SOURCES)
	@echo '$(call step,3)ONNX int8 for arm64: the same statistics, other kernels'
	@$(VENV)/bin/vlmexport onnx demo --target arm64 --output out/demo-arm64 --force

out/demo-gguf/vlmexport.json: $(VENV)/ready $(SOURCES)
	@echo '$(call step,4)GGUF in 4 bits for llama.cpp: decoder and vision encoder'
	@$(VENV)/bin/vlmexport gguf demo --bits 4 --output out/demo-gguf --force

demo: announce $(BUNDLES:=/vlmexport.json)
	@echo '$(call step,5)a check of each, stage by stage, and their answers: some minutes'
	@$(VENV)/bin/python recipes/demo/tour.py $(BUNDLES)

announce:
	@echo 'make demo: five steps; what is there already is not made again'

# Two processes, one for each core; a file's tests stay together, because they share what they export, and files with
# slow tests come first (tests/conftest.py). One thread each, ONNX Runtime's and llama.cpp's too: four on two cores would
# take each other's time.
WORKERS ?= 2
CALM := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

PYTEST := $(VENV)/bin/python -m pytest -n $(WORKERS) --durations=20 --durations-min=2
THOROUGH := tests/conformance/test_combinations.py tests/conformance/test_vision.py::test_onnx_in_float_and_int8 \
    tests/mutations/test_unmutated.py
SEED ?= $(shell git rev-parse --short=12 HEAD)

test: lint
	$(CALM) $(PYTEST) --dist loadfile --no-loadscope-reorder

thorough: $(VENV)/ready
	$(CALM) VLMEXPORT_TEST_ALL=1 $(PYTEST) $(THOROUGH)

rotating: $(VENV)/ready
	@echo 'the part of $(SEED); again with: make rotating SEED=$(SEED)'
	$(CALM) VLMEXPORT_TEST_SEED=$(SEED) $(PYTEST) $(THOROUGH)

# The demo's bundles against what was reached before (baselines/). Half of the losses may be added: another machine has other kernels.
parity: $(BUNDLES:=/vlmexport.json)
	@for bundle in $(BUNDLES); do \
	    $(VENV)/bin/vlmexport check $$bundle --baseline baselines/$$(basename $$bundle).json --slack 0.5 || exit 1; \
	done

# After a change that is meant to change them: look at the difference that git shows before you commit it.
baselines: $(BUNDLES:=/vlmexport.json)
	for bundle in $(BUNDLES); do \
	    $(VENV)/bin/vlmexport check $$bundle || exit 1; \
	    cp $$bundle/parity.json baselines/$$(basename $$bundle).json; \
	done

# For changes that move code and are meant to change nothing. What BASE wrote stays in out/, for the next time.
BASE ?= main

same-bytes: $(VENV)/ready
	@base=$$(git rev-parse --verify --short=12 "$(BASE)^{commit}") && \
	    $(VENV)/bin/python benchmarks/same_bytes.py $$base --keep out/same-bytes/$$base

quick: $(VENV)/ready
	$(CALM) $(PYTEST) --dist loadfile -m "not slow"

# It sees torch and ONNX Runtime of $(VENV) behind its own packages, so neither is installed twice.
OPTIMUM := .venv-optimum
PACKAGES := import sysconfig; print(sysconfig.get_path("purelib"))

$(OPTIMUM)/ready: $(VENV)/ready
	$(VENV)/bin/python -m venv $(OPTIMUM)
	$(VENV)/bin/python -c '$(PACKAGES)' > "$$($(OPTIMUM)/bin/python -c '$(PACKAGES)')/behind.pth"
	$(OPTIMUM)/bin/python -m pip install --quiet --no-warn-conflicts 'optimum-onnx[onnxruntime]==0.1.0'
	touch $@

optimum: $(OPTIMUM)/ready

arm64: $(VENV)/ready
	$(VENV)/bin/python -m vlmexport.runtime.ort.arm64.install

# llama.cpp's converter and Llama's vocabulary come in the source archive of llama-cpp-python.
BENCH ?= out/bench
REPEAT ?= 3
LLAMA_CPP := $(BENCH)/source/vendor/llama.cpp

$(LLAMA_CPP)/convert_hf_to_gguf.py: $(VENV)/ready
	mkdir -p $(BENCH)/source
	$(VENV)/bin/python -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest $(BENCH) \
	    llama-cpp-python==$$($(VENV)/bin/python -c 'import llama_cpp; print(llama_cpp.__version__)')
	tar -xzf $(BENCH)/llama_cpp_python-*.tar.gz -C $(BENCH)/source --strip-components 1
	touch $@

$(BENCH)/MobileVLM_V2-1.7B/config.json: $(LLAMA_CPP)/convert_hf_to_gguf.py benchmarks/generate.py
	$(VENV)/bin/python benchmarks/generate.py 1.7b $(@D) --vocab $(LLAMA_CPP)/models/ggml-vocab-llama-spm.gguf

bench: $(BENCH)/MobileVLM_V2-1.7B/config.json
	$(VENV)/bin/python benchmarks/gguf_export.py $(<D) $(LLAMA_CPP) --types q4_k_m q4_0 --repeat $(REPEAT) --json $(BENCH)/gguf.json
	$(VENV)/bin/python benchmarks/onnx_export.py $(<D) --work $(BENCH) --repeat $(REPEAT) --json $(BENCH)/onnx.json
	$(VENV)/bin/python benchmarks/calibration.py $(<D) --json $(BENCH)/calibration.json

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
