# `make` alone lists the targets. The first one run makes .venv (scripts/setup.sh).
python := .venv/bin/python
pytest := OMP_NUM_THREADS=1 $(python) -m pytest
ONLY ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-all check

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 18

setup: ## make .venv, or bring it up to date
	@scripts/setup.sh

demo: setup ## train and look at the embedded model: writes runs/demo
	.venv/bin/limner demo --out runs/demo

docs: setup ## build the documentation as a site: runs/docs/index.html
	$(python) -m sphinx --fail-on-warning -q docs runs/docs

test: setup ## the fast tests
	$(pytest) -m "not slow"

test-all: setup ## every test; ONLY='-m slow' leaves out what `make test` runs
	$(pytest) $(ONLY)

check: setup ## lint, format, types, layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	$(pytest) tests/test_layers.py
