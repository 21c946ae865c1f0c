# ATLAS: `make serve` runs it, `make test` proves it.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
PYTHON ?= python3
TORCH := torch==2.13.0
LLAMA := llama-cpp-python==0.3.36
NVCC := $(shell command -v nvcc 2>/dev/null)
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | head -1)
LLAMA_FLAGS := -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF

.PHONY: help install system serve test test-slow conformance check static bench nano clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(VENV)/.installed  ## create .venv with everything: server, MiniLM embedder, trainer, tests

# torch first: anything that depends on it would otherwise pick a build of its own. A CUDA build of llama.cpp is compiled for
# this machine and never taken from pip's cache, where a CPU build may lie.
$(VENV)/.installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q $(TORCH)
ifneq ($(and $(GPU),$(NVCC)),)
	@echo "GPU and nvcc found: building llama.cpp with CUDA (10-20 minutes)" >&2
	CMAKE_ARGS="$(LLAMA_FLAGS) -DGGML_CUDA=ON" $(PY) -m pip install --no-cache-dir --no-binary llama-cpp-python $(LLAMA)
	@$(PY) -c "import llama_cpp, sys; sys.exit(not llama_cpp.llama_supports_gpu_offload())" || \
	  { echo "llama.cpp was built, but without CUDA: see docs/operations.md, 'A GPU without nvcc'" >&2; exit 1; }
else
ifneq ($(GPU),)
	@echo "GPU found, but no nvcc: llama.cpp is built for the CPU. See docs/operations.md, 'A GPU without nvcc'." >&2
endif
	@echo "building llama.cpp for this CPU (3-6 minutes, once)" >&2
	CMAKE_ARGS="$(LLAMA_FLAGS)" $(PY) -m pip install -q $(LLAMA)
endif
	$(PY) -m pip install -q -e '.[embed,postgres,telemetry,train,dev]'
	touch $@

serve: install  ## serve the best model this machine can run (nano if none is there)
	$(VENV)/bin/atlas serve

# Real servers and a real browser for the tests; without root or sudo the tests that need them say so and are skipped.
SYSTEM_PACKAGES := redis-server postgresql chromium bubblewrap
SUDO := $(shell [ "$$(id -u)" = 0 ] || (command -v sudo >/dev/null && sudo -n true 2>/dev/null && echo sudo))
system: $(VENV)/.system
$(VENV)/.system: | $(VENV)/.installed
	@if command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || [ -n "$(SUDO)" ]; }; then \
	  $(SUDO) apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES) >/dev/null || \
	    echo "could not install $(SYSTEM_PACKAGES): tests that need them are skipped" >&2; \
	else echo "no root or sudo: tests with $(SYSTEM_PACKAGES) run only where these are installed" >&2; fi
	touch $@

# Tests wait more than they compute: three processes, each with whole files, keep two processors busy.
test: install system static  ## everything that needs no GPU
	$(PY) -m pytest -q -n 3 --dist loadfile

test-slow: install system  ## minutes-long tests: soak, retraining checks, editors and agents
	$(PY) -m pytest -q -m slow

conformance: install  ## other projects' tests of this API, against a real server (downloads their sources; minutes)
	$(PY) -m tests.conformance

check: install static  ## static checks and the quick unit tests, in about two minutes
	$(PY) -m pytest -q tests/test_*.py tests/engine tests/store tests/ralph tests/nano --deselect tests/engine/test_contract.py

static: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

bench: install  ## the engine beside llama-server, in one run
	$(PY) -m benchmarks.engine
	$(PY) -m benchmarks.contention

nano: install  ## make the bundled model again from nothing (about an hour on one CPU core)
	$(PY) -m nano.train --out nano/out/checkpoint
	$(PY) -m nano.export nano/out/checkpoint --out nano/out/model
	$(PY) -m nano.evaluate --model nano/out/model/nano-q8_0.gguf

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
