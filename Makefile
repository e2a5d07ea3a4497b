# make demo | test | lint | bench | host | comfy | rehearse | gpu | clean.  Needs Python 3.10 or newer with pip, and nothing else.
# PYTHON chooses the interpreter that .venv is made from: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
# Tests side by side, with one thread each: the models are small.
JOBS ?= auto

# A ComfyUI for the tests of the nodes: named, around the pack, or at home; else `make host` puts it
# where comfy-cli does. It runs in an environment of its own, which has what it requires and nothing
# else, as a stranger's has; COMFYUI_PYTHON names another interpreter.
AROUND := $(wildcard ../../custom_nodes/../main.py $(HOME)/comfy/ComfyUI/main.py $(HOME)/ComfyUI/main.py)
COMFYUI := $(or $(COMFYUI_PATH),$(patsubst %/main.py,%,$(firstword $(AROUND))),$(HOME)/comfy/ComfyUI)
REQUIRED := $(COMFYUI)/requirements.txt
HOST_VENV := .venv-host/$(shell cksum 2>/dev/null < "$(REQUIRED)" | cut -d " " -f 1)
HOST := $(if $(COMFYUI_PYTHON),,$(if $(wildcard $(REQUIRED)),$(HOST_VENV)/.installed))
IN_HOST := COMFYUI_PATH="$(COMFYUI)" COMFYUI_PYTHON="$(or $(COMFYUI_PYTHON),$(CURDIR)/$(HOST_VENV)/bin/python)"
WORLD := out/comfyui

.PHONY: demo test lint bench host comfy rehearse gpu clean

# The command and the nodes side by side, with a thread each: pocket makes little of a second one.
demo: $(INSTALLED) $(HOST)
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs 2 by-command by-nodes

.PHONY: by-command by-nodes
by-command:
	$(VENV)/bin/esd demo --concept "Van Gogh" --concept fish --out out/demo
by-nodes:
	@$(IN_HOST) $(VENV)/bin/python tests/host/demo.py out/demo

# What to test goes into ARGS: make test ARGS="tests/host -k pocket".
test: $(INSTALLED) $(HOST)
	$(IN_HOST) OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	@# The nodes import the core from above, as a part of ComfyUI: the pack needs a name for that.
	@mkdir -p build && ln -sfn .. build/esd_pack
	MYPYPATH=build $(VENV)/bin/mypy --package esd_pack.nodes

# A figure beside its rival's: make bench NAME=samples|erase|memory|step|concepts|batching|ranks|load, or all.
# JSON=FILE keeps the figures, PAIRS=N sets how often each side runs.
# NAME=efficacy|probes|rivals|attack make tables of what is erased: all leaves them out, since they take an
# hour or more. JSON=FILE keeps their runs, and goes on from them; PAIRS=N seeds, but for attack, which has one;
# options of their own go into ARGS: make bench NAME=rivals ARGS="--only house --per-pair 4".
bench: $(INSTALLED)
	$(IN_HOST) PYTHONPATH=tests $(VENV)/bin/python -m benchmarks $(NAME) $(if $(JSON),--json $(JSON)) $(if $(PAIRS),--pairs $(PAIRS)) $(ARGS)

# A ComfyUI for the tests of the nodes, where comfy-cli puts it, and an environment for it.
host: $(INSTALLED)
	@test -f "$(COMFYUI)/main.py" || \
	    $(VENV)/bin/comfy --skip-prompt --workspace "$(COMFYUI)" install --cpu \
	        --skip-requirement --skip-manager --skip-torch-or-directml $(if $(COMFYUI_URL),--url $(COMFYUI_URL)) || { \
	    echo "No ComfyUI could be installed into $(COMFYUI) (see above). Name the folder of one with" >&2; \
	    echo "COMFYUI_PATH, or with COMFYUI_URL a git repository of it that can be reached from here." >&2; \
	    exit 1; }
	@$(MAKE) --no-print-directory environment

.PHONY: environment
environment: $(HOST)

$(HOST_VENV)/.installed: $(REQUIRED)
	@echo "Installing what $(COMFYUI) requires into $(HOST_VENV); this takes some minutes."
	$(PYTHON) -m venv $(HOST_VENV)
	@# ComfyUI 0.3.64 imports requests without asking for it: its transformers brought it along then.
	$(HOST_VENV)/bin/python -m pip install --quiet --requirement "$(REQUIRED)" requests
	@touch $@

# A ComfyUI with the pack, for a person: http://127.0.0.1:8188, files below $(WORLD), Ctrl-C ends it.
# Its own options go into ARGS: where there is no GPU, make comfy ARGS=--cpu.
comfy: host
	@mkdir -p $(WORLD)/custom_nodes $(WORLD)/user && ln -sfn "$(CURDIR)" $(WORLD)/custom_nodes/esd-concept-erasure
	@$(MAKE) --no-print-directory run ARGS="$(ARGS)"

.PHONY: run
run:
	$(or $(COMFYUI_PYTHON),$(HOST_VENV)/bin/python) "$(COMFYUI)/main.py" --base-directory "$(CURDIR)/$(WORLD)" $(ARGS)

# The whole way at full SDXL size, on random weights: some 22 GB of memory and half an hour.
rehearse: $(INSTALLED) host
	$(IN_HOST) PYTHONPATH=tests $(VENV)/bin/python -m benchmarks.rehearse out/rehearsal $(ARGS)

# Where there is a CUDA GPU: what was never measured here, into out/gpu/report.md, to paste into an issue.
# MODEL names a checkpoint of SDXL to draw pictures of. ARGS="--device sim" tries it where there is none.
gpu: $(INSTALLED) host
	$(IN_HOST) PYTHONPATH=tests $(VENV)/bin/python -m benchmarks.gpu out/gpu $(if $(MODEL),--model "$(MODEL)") $(ARGS)

# The stamp is written last, so that an install that broke off is taken up again.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "Python 3.10 or newer is needed, and '$(PYTHON)' is not: see PYTHON in the Makefile." >&2; \
	    exit 1; }
	@echo "Installing into $(VENV); the first time this takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Keeps the environments: they are slow to make again.
clean:
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find esd_core tests -name __pycache__ -type d -exec rm -rf {} +
