# Every target sets up what it needs in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tritonserver and the Python of its models: they need another numpy.
TRITON := $(VENV)-triton
# Prometheus, promtool and redis_exporter, which pip does not have.
PROMETHEUS := $(VENV)-prometheus
# What pip shall do besides, for instance: make test PIP_FLAGS="--extra-index-url ..."
PIP_FLAGS ?=
# Python compiles what it imports, which is a small part of what is installed.
INSTALL := bin/pip install --quiet --no-compile $(PIP_FLAGS)
# Threads of torch that wait actively take the processor from the other workers.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
# In several processes; tests/conftest.py says what may not run at the same time.
WORKERS := --numprocesses logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
# What starts neither tritonserver nor a cluster, on the fake engine.
FAST := tests/calls tests/core tests/images tests/scheduling tests/segmentation tests/stores tests/memory tests/rpc tests/client \
	tests/models tests/settings tests/system tests/telemetry tests/test_*.py

.DEFAULT_GOAL := help

.PHONY: help
help: ## Lists the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

.PHONY: demo
demo: $(VENV)/.demo ## Serves the default model and draws masks on a photograph into demo/.
	$(BIN)/python examples/demo.py demo

.PHONY: triton
triton: $(VENV)/.dev $(TRITON)/.done ## Runs tritonserver on model_repository/ until Ctrl-C.
	$(BIN)/python -m harness.triton

.PHONY: cluster
cluster: $(VENV)/.dev ## Runs a Valkey Cluster of six nodes on loopback until Ctrl-C.
	$(BIN)/python -m harness.cluster

.PHONY: observe
observe: $(VENV)/.dev $(TRITON)/.done $(PROMETHEUS)/.done ## Runs it all under load before a real Prometheus.
	$(BIN)/python -m monitoring.live

.PHONY: dashboards
dashboards: $(VENV)/.dev ## Generates dashboards and rules for Prometheus from monitoring/.
	$(BIN)/python -m monitoring generate

.PHONY: chart
chart: $(VENV)/.dev ## Generates schema and README of the Helm chart from its values.yaml.
	$(BIN)/python -m chart generate

.PHONY: test
test: $(VENV)/.test $(TRITON)/.done $(PROMETHEUS)/.done ## Runs the tests, without the slow ones.
	$(PYTEST) $(WORKERS) -m "not slow and not long" --durations=10

.PHONY: test-fast
test-fast: $(VENV)/.test ## Runs in under a minute what is worth running after every change.
	$(PYTEST) $(WORKERS) -m "not slow and not long" --engine fake $(FAST)

.PHONY: test-all
test-all: $(VENV)/.test $(TRITON)/.done $(PROMETHEUS)/.done ## Runs what `make test` leaves out.
	$(PYTEST) $(WORKERS) -m "(slow or hypothesis) and not long" --hypothesis-profile thorough \
		--durations=10

.PHONY: test-long
test-long: $(VENV)/.test $(TRITON)/.done $(PROMETHEUS)/.done ## Runs what CI leaves out; takes half an hour.
	# In processes of their own: what ViT-H takes, 16 GB, leaves no room for what others have kept.
	$(PYTEST) -m long --durations=10 --ignore=tests/export/test_sizes.py
	$(PYTEST) -m long tests/export/test_sizes.py -k "not vit_h"
	$(PYTEST) -m long tests/export/test_sizes.py -k vit_h

.PHONY: check
check: $(VENV)/.dev ## Lints, checks types, and that generated code is up to date.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	./scripts/generate-stubs "$(BIN)" build/stubs
	diff -r build/stubs/samserve/v1 service/samserve/v1 --exclude __pycache__ --exclude __init__.py
	$(BIN)/python -m monitoring check
	$(BIN)/python -m chart check

.PHONY: proto
proto: $(VENV)/.dev ## Generates the stubs from proto/.
	./scripts/generate-stubs "$(BIN)" service

.PHONY: constraints
constraints: $(VENV)/.dev ## Pins what the images are made of to what .venv has.
	$(BIN)/python scripts/pin-images

.PHONY: wheel
wheel: $(VENV)/.dev ## Builds the wheel, with the default model inside, into dist/.
	$(BIN)/pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## Removes everything that was made, the virtual environments too.
	rm -rf $(VENV) $(TRITON) $(PROMETHEUS) build dist demo .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.base:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(VENV)/$(INSTALL) --editable ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.base pyproject.toml
	$(VENV)/$(INSTALL) --editable ".[test]"
	# For MobileSAM's original encoder; what it asks for, another torch among it, is not needed.
	$(VENV)/$(INSTALL) --no-deps samexporter==0.5.0
	touch $@

$(VENV)/.dev: $(VENV)/.test pyproject.toml
	$(VENV)/$(INSTALL) --editable ".[dev]"
	touch $@

# The same onnxruntime as in $(VENV), so that a served model computes the same bits.
$(TRITON)/.done: harness/triton/requirements.txt $(VENV)/.test
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/$(INSTALL) --constraint $< \
		onnxruntime==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("onnxruntime"))')
	$(TRITON)/$(INSTALL) --no-deps --requirement $<
	touch $@

$(PROMETHEUS)/.done: scripts/get-prometheus
	./scripts/get-prometheus $(PROMETHEUS)
	touch $@
