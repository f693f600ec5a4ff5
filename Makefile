# Two commands set a fresh machine up: `make run` and `make test`. Both are quick the second time.

PYTHON ?= python3
PLUGIN ?= images
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ALL    := $(notdir $(wildcard plugins/*))
TESTED_images := [diffusers,hf]
TESTED_molecules := [xtb,dft,posebusters]
TESTED_timeseries := [parquet,real]

.PHONY: run test test-slow kills lint types docs pictures bench install clean help
.SECONDARY:
.DEFAULT_GOAL := help

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile
	@echo "  make run PLUGIN=name	another plugin: $(ALL)"

run: $(VENV)/.platform $(VENV)/.plugin-$(PLUGIN)   ## install the platform and one plugin, and run its default preset
	$(BIN)/platform run $(PLUGIN)

test: install lint types   ## everything installed; lint, types, every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-slow: install   ## the checks that train for longer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

kills: install    ## kill a run at twenty random moments and compare what comes of it with a run that was left alone
	$(BIN)/python tests/kills.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

docs: install     ## renew the generated pages of docs/reference
	$(BIN)/python docs/generate.py

pictures: install ## renew the pictures of the playground page
	$(BIN)/python docs/pictures.py

install: $(VENV)/.all   ## the platform, its tools and every plugin, editable, in .venv

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flowplat needs Python 3.11 or newer; name one with make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.platform: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.all: $(VENV)/.python pyproject.toml constraints.txt $(ALL:%=plugins/%/pyproject.toml)   # in one go, which is quicker
	$(PIP) -e '.[dev,hub]' $(foreach plugin,$(ALL),-e 'plugins/$(plugin)$(TESTED_$(plugin))')
	@touch $(VENV)/.platform $(ALL:%=$(VENV)/.plugin-%) $@

$(VENV)/.plugin-%: $(VENV)/.platform plugins/%/pyproject.toml
	$(PIP) -e plugins/$*
	@touch $@

plugins/%/pyproject.toml:
	@echo "there is no plugin $*; there are: $(ALL)" && exit 1

bench: $(VENV)-bench/.peers   ## speed against torchcfm, flow_matching, torchdiffeq, POT and hand-written loops
	for script in couplings solvers likelihood training; do \
	  OMP_NUM_THREADS=1 $(VENV)-bench/bin/python core/benchmarks/$$script.py || exit 1; done

$(VENV)-bench/.peers: $(VENV)/.python pyproject.toml constraints.txt core/benchmarks/peers.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	$(VENV)-bench/bin/python -m pip install -q --disable-pip-version-check --no-deps -r core/benchmarks/peers.txt
	@touch $@

clean:           ## remove the virtual environment and caches
	rm -rf $(VENV) $(VENV)-bench .mypy_cache .pytest_cache .ruff_cache build dist
