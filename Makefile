# Two commands matter: `make book` builds the book, `make test` proves it. `make help` lists the rest.

PYTHON ?= python3
TORCH = torch==2.13.0
VENV = .venv
PY = $(VENV)/bin/python
PIP = $(PY) -m pip install --disable-pip-version-check -qq -c constraints.txt
JOBS ?= 2
ONLY ?=
LAB ?=
OPTIONS = --jobs $(JOBS) --only "$(ONLY)"
INPUTS = pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book html test lab chapters claims records assignments bench seeds mutations lint format clean

help: ## list the commands
	@echo "make <command>   (PYTHON=python3.12 picks an interpreter, JOBS=1 runs one process at a time,"
	@echo "                  ONLY='02 03' takes these chapters alone,"
	@echo "                  LAB='--no-browser --allow-root' is passed to JupyterLab)"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	  printf '  %-11s %s\n' $$name "$$text"; done

# Where the interpreter is gone, what was installed for it counts no more.
$(shell test -x $(PY) || rm -f $(VENV)/.book $(VENV)/.test)

# One environment for everything; readers of the book need no test tools. torch comes first and
# pinned: a resolver that is free to choose may fetch gigabytes that are not needed.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12"; exit 1; }
	@echo "making $(VENV)"
	@trap : INT TERM HUP; $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.book: $(INPUTS) | $(PY)
	@echo "installing the book's pinned packages into $(VENV) (minutes the first time)"
	@$(PIP) $(TORCH)
	@$(PIP) -e '.[book]'
	@touch $@

$(VENV)/.test: $(INPUTS) | $(PY)
	@echo "installing the pinned packages, test tools included, into $(VENV) (minutes the first time)"
	@$(PIP) $(TORCH)
	@$(PIP) -e '.[book,test]'
	@touch $@ $(VENV)/.book

book: $(VENV)/.book ## execute copies of the chapters and build the HTML book
	@$(PY) -m book build $(OPTIONS)

html: $(VENV)/.book ## build the HTML book from the stored outputs, without running anything
	@$(PY) -m book html

test: $(VENV)/.test ## run every test, every chapter included
	@$(PY) -m pytest -q -n $(JOBS)

lab: $(VENV)/.book ## open the chapters in JupyterLab
	@$(PY) -m jupyter lab --notebook-dir=chapters $(LAB)

chapters: $(VENV)/.book ## execute the chapters and store outputs and figures (writes tracked files)
	@$(PY) -m book chapters $(OPTIONS)

claims: $(VENV)/.book ## measure every claim and print the ledger
	@$(PY) -m book claims $(OPTIONS)

records: $(VENV)/.book ## repeat the long sweeps that chapters plot (writes tracked files; ONLY=name)
	@$(PY) -m book records $(ONLY)

assignments: $(VENV)/.book ## write the graded assignments without solutions to _build/assignments
	@$(PY) -m book assignments release $(ONLY)

bench: $(VENV)/.book ## measure speed, as ratios in one process (ONLY=tree: benchmarks of this name)
	@$(PY) -m book bench --only "$(ONLY)"

seeds: $(VENV)/.book ## check every claim at three other seeds
	@$(PY) -m book seeds $(OPTIONS)

mutations: $(VENV)/.book ## break the code behind each claim; each must notice
	@$(PY) -m book mutations $(OPTIONS)

lint: $(VENV)/.test ## check style, formatting, spelling and imports
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/codespell
	@$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/.test ## fix style and formatting where it can be done safely
	@$(PY) -m ruff check --fix-only -q .
	@$(PY) -m ruff format -q .

clean: ## remove what the commands made; .venv stays
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
