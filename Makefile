# make help says what each target does. Every target makes what it needs, .venv included.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# $(call recipe) lines that start a long-lived program exec it, so that a signal to make reaches it.
PIP := exec $(BIN)/pip install --disable-pip-version-check --progress-bar off --quiet -c requirements.lock

.PHONY: help setup
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/.run ## .venv with all that training, export, serving and the client need

$(VENV)/bin/pip:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml requirements.lock | $(VENV)/bin/pip
	@echo "Installing into $(VENV) (about a minute)"
	@$(PIP) -e '.[train,export,serve]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "Installing the test tools into $(VENV)"
	@$(PIP) -e '.[train,export,serve,rtx,dev]'
	@touch $@
