# Every command does its own set-up: a virtual environment in .venv, from the hashed requirements.
#   make PYTHON=/path/to/python3.12 …   builds it with another Python.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime-installed
TOOLS := $(VENV)/.tools-installed
PIP := $(PY) -m pip --disable-pip-version-check --quiet install --require-hashes
PYTEST := $(PY) -m pytest
ROUNDS ?= 300
REQUIREMENTS := requirements.txt requirements-tracing.txt requirements-dev.txt
.DEFAULT_GOAL := help

.PHONY: help setup run test test-all test-stores conformance check audit format docs bench crash-test fuzz lock clean

help: ## Say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

setup: $(TOOLS) ## Install everything that running and testing need, into .venv

# The greeter is in a subshell so that it is no child of the server, which would take it for a worker.
run: $(RUNTIME) ## Start the server on http://127.0.0.1:5001, and send it a first message
	@( $(PY) -m examples.hello $$$$ & ); exec $(PY) server_ws.py

test: $(TOOLS) ## Run the quick tests: a few minutes
	$(PYTEST) -n 3 --dist loadfile -m "not slow and not full"

test-all: test ## Run every test, the slow ones and those that need other programs included
	$(PYTEST) -n 3 --dist loadfile -m "slow or full"

test-stores: $(TOOLS) ## Run conformance and integration on SQLite, PostgreSQL, with Redis, and on three nodes: an hour
	$(PY) -m tests.stores

conformance: $(TOOLS) ## See whether the bus at URL, asked with KEY, keeps the protocol; without URL, one that is started
	BUS_URL='$(URL)' BUS_KEY='$(KEY)' $(PYTEST) tests/conformance

check: $(TOOLS) ## Lint, formatting, types, risky code
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m bandit --quiet --configfile pyproject.toml --recursive .

audit: $(TOOLS) ## Ask PyPI for known vulnerabilities of what is installed
	$(PY) -m pip_audit --strict --disable-pip --require-hashes --progress-spinner off $(REQUIREMENTS:%=-r %) || { \
	  echo "Either something is vulnerable, or PyPI's advisories can't be asked from here: the lines above say which."; \
	  exit 1; }

format: $(TOOLS) ## Format the code and mend what the linter can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(RUNTIME) ## Write what is made from the code anew: settings, reference, commands, dashboards
	$(PY) docs/make_settings.py
	$(PY) docs/make_reference.py
	$(PY) docs/make_cli.py
	$(PY) deploy/grafana/make_dashboards.py

bench: $(TOOLS) ## Compare the bus with its peers: tables and plots in benchmarks/results, in an hour
	$(PY) -m benchmarks

crash-test: $(TOOLS) ## Kill the server ROUNDS times (300) under load and look for what was lost
	$(PY) -m tests.faults.crash --rounds $(ROUNDS)
	$(PY) -m tests.faults.crash_delivery --rounds $(ROUNDS)

fuzz: $(TOOLS) ## Feed parsers and signed ingress with broken bytes, for ten minutes and for 100,000 requests
	$(PY) -m tests.fuzz.parsers --seconds 600
	$(PY) -m tests.fuzz.ingress --requests 100000

lock: $(TOOLS) ## Compile the requirements anew from the .in files (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  requirements.in -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  -c requirements.txt requirements-tracing.in -o requirements-tracing.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  -c requirements.txt -c requirements-tracing.txt requirements-dev.in -o requirements-dev.txt

clean: ## Remove the virtual environment and the tools' caches; your data stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, once. Installing the tools brings what the server needs, too: requirements-dev.txt holds both.

$(PY):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no $(PYTHON) here; install Python 3.11 or newer, or say make PYTHON=/path/to/python3."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), the bus needs 3.11 or newer; say make PYTHON=/path/to/python3."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) can't make virtual environments: install its venv module (Debian: apt-get install python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUNTIME): requirements.txt | $(PY)
	$(PIP) -r requirements.txt
	@touch $@

$(TOOLS): requirements-dev.txt | $(PY)
	$(PIP) -r requirements-dev.txt
	@touch $(RUNTIME) $@
