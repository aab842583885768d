# `make`: set up and run the whole pipeline. `make test`: set up and test. Both work on a fresh machine with Python 3.11+.
PYTHON ?= python3
VENV := .venv
# What DVC starts must find this environment's `python`.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro test compare sweep-guidance sweep-prompts setup
repro: setup
	python -m stages.params
	dvc repro

test: setup
	python -m stages.params
	python -m pytest

# The experiments of this commit side by side: the params that differ and the numbers that a person compares.
compare: setup
	dvc exp show --only-changed --no-pager --hide-workspace --precision 3 --drop '$(UNREAD)'
# Data and code (a hash each), and numbers that another number is read against. Matched from a column's first letter.
UNREAD := (data|models|stages|metrics)/|.*_(lo|hi|std|floor|base|last|n)$$|.*\.n$$|Created|State|Executor

# Each of a dozen experiments in a temporary copy, one per GPU; sweeps/*.md and *.png say what came out (stages/sweep.py).
sweep-guidance: setup
	python -m stages.sweep guidance
sweep-prompts: setup
	python -m stages.sweep prompts

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@echo "Installing requirements.txt into $(VENV): about 7.5 GB, a few minutes."
	$(PYTHON) -m venv $(VENV)
	@# Compiling all 28,000 modules ahead takes a minute; the few that are used are compiled as they are met.
	$(VENV)/bin/python -m pip install --no-compile --quiet --disable-pip-version-check -r requirements.txt
	touch $@
