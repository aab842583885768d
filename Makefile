# `make`: set up and run the whole pipeline. `make test`: set up and test. Both work on a fresh machine with Python 3.11+.
PYTHON ?= python3
VENV := .venv
# What DVC starts must find this environment's `python`.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Containers often forbid Python to keep compiled modules; DVC and pytest start anew some forty times (stages/__init__.py, too).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: repro test compare sweep-guidance sweep-prompts setup
repro: setup
	python -m stages.params
	dvc repro

test: setup
	python -m stages.params
	python -m pytest

# The experiments of this commit side by side: the params that differ, and the numbers that a person compares (there are 200).
compare: setup
	dvc exp show --hide-workspace --only-changed --precision 3 --drop '(?!($(READ))$$).*'
SECTIONS := $(shell sed -n 's/^\([a-z_]*\):.*/\1/p' params.yaml)
EMPTY :=
READ := Experiment|($(subst $(EMPTY) $(EMPTY),|,$(SECTIONS)))(\..*)?|scene\.standard\.(fid|kid_x1000)|caption_agreement|class_agreement|validation_loss|perplexity|metrics/classify_[a-z]*\.json:real_test\.overall_accuracy

# Each of a dozen experiments in a temporary copy, one per GPU; sweeps/*.md and *.png say what came out (tools/sweep.py).
sweep-guidance: setup
	python -m tools.sweep guidance
sweep-prompts: setup
	python -m tools.sweep prompts

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@echo "Installing requirements.txt into $(VENV): about 7.5 GB, a few minutes."
	$(PYTHON) -m venv $(VENV)
	@# Compiling all 28,000 modules ahead takes a minute; the few that are used are compiled as they are met.
	$(VENV)/bin/python -m pip install --no-compile --quiet --disable-pip-version-check -r requirements.txt
	touch $@
