# cai_nb: `make run` and `make test` are all that most people need.  `make` alone lists the rest.

PYTHON ?= python3
VENV   ?= .venv
RECIPE ?= laptop
ARGS   ?=
PART   ?=

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# pyproject.toml says which Python is the oldest: 3.MINOR
MINOR  := $(shell sed -n 's/^requires-python = ">=3\.\([0-9]*\)"/\1/p' pyproject.toml)
FACTS  := settings.ini constraints.txt setup.py pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help run test prepare install dev lab docs docs-serve slides audit clean
.DELETE_ON_ERROR:

help:  ## this list
	@echo "usage: make TARGET [PYTHON=python3.12] [VENV=.venv]"
	@sed -n 's/^\([a-z-]*\):[^#]*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

run: $(VENV)/.installed  ## install, fetch the default model, run a recipe, say where report.html is (RECIPE=laptop, ARGS=)
	$(BIN)/cai-nb run $(RECIPE) $(ARGS)

test: $(VENV)/.installed-dev  ## install and check everything that CI checks (PART=ruff: that part only)
	@$(BIN)/python tools/check.py $(if $(PART),--only $(PART))

prepare: $(VENV)/.installed-dev  ## after a change in nbs/: clean the notebooks, export cai_nb/, make README.md
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	$(BIN)/python tools/readme.py

install: $(VENV)/.installed  ## make .venv and install what `cai-nb` needs
dev: $(VENV)/.installed-dev  ## the same, with what the tests need

lab: $(VENV)/.installed  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

docs: $(VENV)/.installed-docs  ## the docs site in _docs/, static pages that need no network
	$(BIN)/python tools/docs.py

docs-serve: docs  ## the same, shown on http://127.0.0.1:8000 (ARGS=8080: another port)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _docs $(ARGS)

slides: $(VENV)/.installed-dev  ## four decks of slides in _slides/, made from the notebooks (open _slides/index.html)
	$(BIN)/python tools/slides.py

audit: $(VENV)/.installed-dev  ## licences of what is pinned, and its known weaknesses (needs the network)
	$(BIN)/python tools/licences.py --check
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install -q pip-audit
	$(VENV)-audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip

clean:  ## remove caches and what builds leave behind (keeps .venv and runs/)
	rm -rf build dist *.egg-info _docs _slides _proc nbs/_proc nbs/sidebar.yml .pytest_cache .ruff_cache .hypothesis .ci/tmp.*
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# Stamps: pip runs again only when one of the files that say what to install has changed.
$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, $(MINOR)))" 2>/dev/null || { \
	  echo "cai_nb needs Python 3.$(MINOR) or later, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -n 1)."; \
	  echo "Install a newer one and name it:  make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { \
	  echo "'$(PYTHON)' comes without venv, which makes the environment that cai_nb is installed into."; \
	  echo "On Debian and Ubuntu:  sudo apt install python3-venv   Then run this again."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(FACTS) | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(FACTS) | $(BIN)/python
	$(PIP) install -c constraints.txt -e ".[dev,docs]"
	@touch $(VENV)/.installed $(VENV)/.installed-docs $@

$(VENV)/.installed-docs: $(FACTS) | $(BIN)/python
	$(PIP) install -c constraints.txt -e ".[docs]"
	@touch $(VENV)/.installed $@
