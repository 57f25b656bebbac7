# The work is in tools/envsetup; `make help` explains the variables.
.PHONY: help setup test reliability demo docs lint format clean

# They reach the worker through the environment, so no value passes through a shell.
export VENV PYTHON VERSIONS TORCH DETECTRON2 PANOPTICAPI ARGS

worker = @"$(or $(PYTHON),python3)" tools/setup_env.py

help:
	$(worker) help

setup:
	$(worker) setup

test:
	$(worker) test

reliability:
	$(worker) reliability

demo:
	$(worker) demo

docs:
	$(worker) docs

lint:
	$(worker) lint

format:
	$(worker) format

clean:
	$(worker) clean
