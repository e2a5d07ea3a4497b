# make demo | test | lint | clean.  Needs Python 3.10 or newer with pip, and nothing else.
# PYTHON chooses the interpreter that .venv is made from: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(VENV)/bin/esd demo --out out/demo

test: $(INSTALLED)
	$(VENV)/bin/pytest -q

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	@# The nodes import the core from above, as a part of ComfyUI: the pack needs a name for that.
	@mkdir -p build && ln -sfn .. build/esd_pack
	MYPYPATH=build $(VENV)/bin/mypy --package esd_pack.nodes

# The stamp is written last, so that an install that broke off is taken up again.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "Python 3.10 or newer is needed, and '$(PYTHON)' is not: see PYTHON in the Makefile." >&2; \
	    exit 1; }
	@echo "Installing into $(VENV); the first time this takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Keeps .venv: it is slow to make again.
clean:
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find esd_core tests -name __pycache__ -type d -exec rm -rf {} +
