# Set up the environment, then test, demonstrate or check the project in it.
VENV ?= .venv
PYTHON ?= python3
export VENV VERSIONS TORCH DETECTRON2 DETECTRON2_EXT PANOPTICAPI
python = $(abspath $(VENV))/bin/python

.PHONY: help setup test reliability demo docs lint format clean

help: # each target and variable
	@grep -hE '^[a-z]+:.* # |^# [A-Z0-9_]+ ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*#/ \t/; s/^# //'

setup: # create or update the environment: torch, Detectron2, panopticapi, this project
	@"$(PYTHON)" tools/setup_env.py

test: setup # run the tests on all cores
	"$(python)" -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

reliability: setup # run the long tests: load, fuzzing, killing
	"$(python)" -m pytest -m reliability $(ARGS)

demo: setup # train, evaluate and show SOLOv2 on generated images, in minutes on a CPU
	"$(python)" tools/quickstart.py $(ARGS)

docs: setup # build the site of the documentation in build/site
	"$(python)" -m mkdocs build --strict

lint: setup # check format, lint, types, import layers, spelling and language
	"$(python)" -m ruff format --check . && "$(python)" -m ruff check . && \
		"$(python)" -m mypy && PYTHONPATH=. "$(dir $(python))lint-imports" && \
		"$(dir $(python))codespell" && \
		"$(python)" -m pytest -q --noconftest tests/docs/test_language.py

format: setup # rewrite files with ruff
	"$(python)" -m ruff check --fix-only . && "$(python)" -m ruff format .

clean: # remove caches, nothing that was installed or trained
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build
	find solo_d2 tests tools demo -name __pycache__ -prune -exec rm -rf {} +

# Variables, for example `make test TORCH="torch==2.10.0 torchvision==0.25.0"`:
#
# VENV            folder of the environment (.venv)
# PYTHON          interpreter that makes it, 3.10 to 3.13 (python3)
# VERSIONS        tested (constraints.txt), oldest (lower bounds of pyproject.toml) or newest
# TORCH           what pip installs as torch and torchvision: versions, wheels, --index-url ...
# DETECTRON2      a checkout, a wheel or a pip requirement; keep: what PYTHON has, with its torch
# DETECTRON2_EXT  1 builds the C++ extension of Detectron2, which nothing here needs
# PANOPTICAPI     a checkout, a wheel or a pip requirement
# ARGS            more arguments of pytest (test, reliability) or tools/quickstart.py (demo)
