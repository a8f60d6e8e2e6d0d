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
PYTEST := $(BIN)/python -m pytest
# In several processes; tests/conftest.py says what may not run at the same time.
WORKERS := --numprocesses logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
# What any engine must pass: the suite of the gateway, and the part that says most in short.
BEHAVIOUR := tests/rpc tests/automask/test_service.py tests/client
BEHAVIOUR_IN_SHORT := tests/rpc/test_service.py tests/rpc/test_concurrency.py

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
test: $(VENV)/.dev $(TRITON)/.done $(PROMETHEUS)/.done ## Runs the tests, without the slow ones.
	$(PYTEST) $(WORKERS) -m "not slow" --durations=10
	$(PYTEST) -m "not slow" --engine triton $(BEHAVIOUR_IN_SHORT)

.PHONY: test-all
test-all: $(VENV)/.dev $(TRITON)/.done $(PROMETHEUS)/.done ## Runs what `make test` leaves out.
	$(PYTEST) $(WORKERS) -m slow --durations=10 --ignore=tests/export/test_sizes.py
	# In processes of their own: what ViT-H takes, 16 GB, leaves no room for what others have kept.
	$(PYTEST) -m slow tests/export/test_sizes.py -k "not vit_h"
	$(PYTEST) -m slow tests/export/test_sizes.py -k vit_h
	$(PYTEST) $(WORKERS) -m "not slow" --engine onnx $(BEHAVIOUR)
	$(PYTEST) -m "not slow" --engine triton $(BEHAVIOUR)
	$(PYTEST) -m "not slow" --engine triton-message $(BEHAVIOUR_IN_SHORT)

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
	$(BIN)/pip install $(PIP_FLAGS) --quiet --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	$(BIN)/pip install $(PIP_FLAGS) --quiet --editable ".[dev]"
	# For MobileSAM's original encoder; what it asks for, another torch among it, is not needed.
	$(BIN)/pip install $(PIP_FLAGS) --quiet --no-deps samexporter==0.5.0
	touch $@

# The same onnxruntime as in $(VENV), so that a served model computes the same bits.
$(TRITON)/.done: harness/triton/requirements.txt $(VENV)/.dev
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install $(PIP_FLAGS) --quiet --constraint $< \
		onnxruntime==$$($(BIN)/python -c 'import onnxruntime; print(onnxruntime.__version__)')
	$(TRITON)/bin/pip install $(PIP_FLAGS) --quiet --no-deps --requirement $<
	touch $@

$(PROMETHEUS)/.done: scripts/get-prometheus
	./scripts/get-prometheus $(PROMETHEUS)
	touch $@
