.DEFAULT_GOAL := help
.PHONY: help run test coverage test-long lint bench
# One target after the other even with -j: they share .venv.
.NOTPARALLEL:

PYTHON := $(shell for python in python3.11 python3.12 python3 python3.13 python3.14; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
BOOTSTRAP = $(if $(PYTHON),$(PYTHON) zenzefi/runtime/bootstrap.py,\
	$(error Python 3.11 or newer is needed, and none is on PATH))
# Relative, so that a checkout below a path with spaces needs no quoting.
VENV_PYTHON := .venv/bin/python
ARGS ?=
LEDGER_SECONDS ?= 420
LEDGER_SEED ?=

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 16

run: ## start everything on http://$HOST:$PORT (127.0.0.1:8000); Ctrl-C stops it
	@$(BOOTSTRAP) requirements.txt
	@exec $(VENV_PYTHON) manage.py up

test: ## the whole suite; ARGS="tests/wallet -x" narrows it
	@$(BOOTSTRAP) requirements-dev.txt
	$(VENV_PYTHON) -m pytest -n 4 $(ARGS)

coverage: ## the same with the coverage of every branch, which takes a third longer
	@$(BOOTSTRAP) requirements-dev.txt
	$(VENV_PYTHON) -m pytest -n 4 --cov --cov-report=term:skip-covered $(ARGS)

test-long: ## the ledger against its model on new examples for LEDGER_SECONDS=420, from LEDGER_SEED or a random one
	@$(BOOTSTRAP) requirements-dev.txt
	LEDGER_SECONDS=$(LEDGER_SECONDS) LEDGER_SEED=$(LEDGER_SEED) \
		$(VENV_PYTHON) -m pytest tests/ledger --hypothesis-profile=long $(ARGS)

lint: ## style, types, import directions, migrations, deployment settings, API schema
	@$(BOOTSTRAP) requirements-dev.txt
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy .
	.venv/bin/lint-imports
	$(VENV_PYTHON) manage.py makemigrations --check --dry-run
	DJANGO_SETTINGS_MODULE=zenzefi.settings.production \
		SECRET_KEY="$$($(VENV_PYTHON) -c 'import secrets; print(secrets.token_urlsafe(64))')" \
		DATABASE_URL=postgresql://nobody@127.0.0.1:1/none REDIS_URL=redis://127.0.0.1:1/0 \
		ZENZEFI_TARGET_URL=https://upstream.invalid ALLOWED_HOSTS=zenzefi.invalid \
		BACKEND_URL=https://zenzefi.invalid METRICS_TOKEN=only-for-this-check \
		$(VENV_PYTHON) manage.py check --deploy --fail-level WARNING
	$(VENV_PYTHON) manage.py spectacular --validate --fail-on-warn --file /dev/null

bench: ## measure the gateway beside nginx on this machine; needs nginx and wrk
	@$(BOOTSTRAP) requirements-dev.txt
	$(VENV_PYTHON) -m tests.bench $(ARGS)
