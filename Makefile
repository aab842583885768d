# `make` sets up and runs the whole pipeline; `make test` sets up and runs the tests.
# Both work on a fresh machine with git and Python 3.11 to 3.14 (`make PYTHON=python3.12`).
PYTHON ?= python3
VENV := .venv
# By its path: macOS's make doesn't look for commands on the PATH that is set here.
RUN := $(VENV)/bin/python -m
# The commands that DVC starts must find this environment's `python`.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# pip installs into this environment whatever the user's settings are; the index stays the user's.
export PIP_USER := 0
unexport PIP_TARGET PIP_PREFIX PYTHONHOME PYTHONPATH
# Containers often forbid Python to keep compiled modules. DVC and pytest start Python some forty
# times; see also stages/runtime/process.py.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: repro test lint scale rehearse compare sweep-guidance sweep-prompts setup setup-dev repository
repro: setup
	$(RUN) stages.params
	$(RUN) dvc repro

test: setup-dev
	$(RUN) stages.params
	$(RUN) pytest

lint: setup-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

# SCALE=paper: params.yaml becomes params/demo.yaml with the values of params/paper.yaml.
scale: setup
	$(RUN) tools.scale $(SCALE)

# What a scale will take here, and what would stop it: its pipeline on few images, in a copy.
rehearse: setup
	$(RUN) tools.rehearse $(SCALE)

# The experiments of this commit side by side: only the params that differ, and the few metrics that
# a person compares.
compare: setup
	$(RUN) dvc exp show --hide-workspace --only-changed --precision 3 --drop '(?!($(SHOWN))$$).*'
SECTIONS := $(shell sed -n 's/^\([a-z_]*\):.*/\1/p' params/demo.yaml)
EMPTY :=
METRICS := scene\.standard\.(fid|kid_x1000)|caption_agreement|class_agreement|validation_loss|perplexity
ACCURACY := metrics/classify_[a-z]*\.json:real_test\.overall_accuracy
SHOWN := Experiment|($(subst $(EMPTY) $(EMPTY),|,$(SECTIONS)))(\..*)?|$(METRICS)|$(ACCURACY)

# A dozen experiments, each in a temporary copy, one per GPU. Results: sweeps/*.md.
sweep-guidance: setup
	$(RUN) tools.sweep guidance
sweep-prompts: setup
	$(RUN) tools.sweep prompts

setup: $(VENV)/installed
setup-dev: $(VENV)/installed-dev

# DVC and the tests need git, whose own words say what is wrong with this folder.
repository:
	@git rev-parse --git-dir >/dev/null || \
		{ echo "error: this must be a git clone that git can use; a downloaded zip is none" >&2; exit 1; }

# An environment finds no packages once its Python is gone or was upgraded. Its scripts, such as
# pip, name their Python by its full path: they don't start once the folder was moved.
CLEAR :=
CHECK := $(VENV)/bin/python -c 'import pip' && $(VENV)/bin/pip --version
ifneq ($(wildcard $(VENV)/installed),)
ifeq ($(shell unset PYTHONHOME PYTHONPATH; ($(CHECK)) 2>/dev/null),)
$(info $(VENV) was moved, or its Python is gone or was upgraded: installing again.)
CLEAR := --clear
.PHONY: $(VENV)/installed
endif
endif

# --no-compile: compiling all 28,000 modules takes a minute; the few that are used are compiled when
# they are first imported.
INSTALL := $(RUN) pip install --no-compile --quiet --disable-pip-version-check
# What the pinned packages have wheels for.
WRONG_PYTHON := error: $(PYTHON) is not Python 3.11 to 3.14: type make PYTHON=python3.12 (name or path)
# `.venv/bin/dvc repro` works without activation: see this file.
PTH := stages/runtime/remote_diffusion.pth

$(VENV)/installed: requirements.txt $(PTH) | repository
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and "$(WRONG_PYTHON)")'
	@echo "Installing requirements.txt into $(VENV): about 7.5 GB, a few minutes."
	$(PYTHON) -m venv $(CLEAR) $(VENV)
	$(INSTALL) -r requirements.txt
	$(VENV)/bin/python -c 'import shutil, site; shutil.copy("$(PTH)", site.getsitepackages()[0])'
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(INSTALL) -r requirements-dev.txt
	touch $@
