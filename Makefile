# `make` sets up and runs the whole pipeline; `make test` sets up and runs the tests.
# Both work on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
# The commands that DVC starts must find this environment's `python`.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Containers often forbid Python to keep compiled modules. DVC and pytest start Python some forty
# times; see also stages/runtime/process.py.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: repro test lint compare sweep-guidance sweep-prompts setup setup-dev
repro: setup
	python -m stages.params
	dvc repro

test: setup-dev
	python -m stages.params
	python -m pytest

lint: setup-dev
	ruff check .
	ruff format --check .
	mypy

# The experiments of this commit side by side: only the params that differ, and the dozen metrics
# (of some 200) that a person compares.
compare: setup
	dvc exp show --hide-workspace --only-changed --precision 3 --drop '(?!($(SHOWN))$$).*'
SECTIONS := $(shell sed -n 's/^\([a-z_]*\):.*/\1/p' params.yaml)
EMPTY :=
METRICS := scene\.standard\.(fid|kid_x1000)|caption_agreement|class_agreement|validation_loss|perplexity
ACCURACY := metrics/classify_[a-z]*\.json:real_test\.overall_accuracy
SHOWN := Experiment|($(subst $(EMPTY) $(EMPTY),|,$(SECTIONS)))(\..*)?|$(METRICS)|$(ACCURACY)

# A dozen experiments, each in a temporary copy, one per GPU. Results: sweeps/*.md and *.png.
sweep-guidance: setup
	python -m tools.sweep guidance
sweep-prompts: setup
	python -m tools.sweep prompts

setup: $(VENV)/installed
setup-dev: $(VENV)/installed-dev

# --no-compile: compiling all 28,000 modules takes a minute; the few that are used are compiled when
# they are first imported.
INSTALL := $(VENV)/bin/python -m pip install --no-compile --quiet --disable-pip-version-check

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@echo "Installing requirements.txt into $(VENV): about 7.5 GB, a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(INSTALL) -r requirements-dev.txt
	touch $@
