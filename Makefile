# `make demo` and `make test` do everything from nothing: Python 3.11+, make and a network are all they need.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: setup demo test bench-cuda wheel clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; pass PYTHON=python3.11.")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,triton]"
	@touch $@

demo: setup
	$(VENV)/bin/cvvae demo

test: setup
	$(VENV)/bin/python -m pytest

bench-cuda: setup
	$(VENV)/bin/python benchmarks/gpu_suite.py

wheel: setup
	$(VENV)/bin/pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist demo *.egg-info
