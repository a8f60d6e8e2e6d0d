# Every target installs what it needs into .venv*; on the machine, only curl and jq where they are missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tritonserver and the Python environment of its models, which need a different numpy.
TRITON := $(VENV)-triton
# Prometheus, promtool and redis_exporter, which are not on PyPI.
PROMETHEUS := $(VENV)-prometheus
# Node.js, for the web page; Chromium and the packages of examples/, for the tests.
NODE := $(VENV)-node
NPM := PATH="$(CURDIR)/$(NODE)/bin:$$PATH" npm
NPM_INSTALL := $(NPM) install --no-package-lock --no-audit --no-fund --ignore-scripts
# Everything that the page is built from; web/hatch_build.py has the same list.
PAGE_INPUTS := web/src web/public web/index.html web/package.json web/vite.config.ts web/tsconfig.json \
	web/buf.gen.yaml proto examples/shared/google_rpc.proto service/samserve/export/samples
PAGE := web/dist/index.html
# Label Studio, for `make test-long`.
LABEL_STUDIO := $(VENV)-label-studio
# Label Studio's SDK without its server, for the test that it reads our tasks.
LABEL_STUDIO_SDK := $(VENV)-label-studio-sdk
# CVAT's command line, whose dependencies are not those of the server.
CVAT := $(VENV)-cvat
# The client of X-AnyLabeling, for the test of `samserve bridge` with it.
X_ANYLABELING := $(VENV)-x-anylabeling
# Additional flags of pip, for example: make test PIP_FLAGS="--extra-index-url ..."
PIP_FLAGS ?=
# --no-compile: Python compiles modules on import, and most are never imported.
INSTALL := bin/pip install --quiet --no-compile $(PIP_FLAGS)
# Empty: off. Where it is set, as in many containers, every process of a test run compiles all its imports.
export PYTHONDONTWRITEBYTECODE :=
# PASSIVE: waiting threads of torch would otherwise spin and slow down the other workers.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
# In several processes; tests/conftest.py defines which tests must not run concurrently.
WORKERS := --numprocesses logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
# Tests that start neither tritonserver nor a cluster, on the fake engine.
FAST := tests/calls tests/core tests/images tests/scheduling tests/segmentation tests/cache tests/memory tests/rpc tests/client \
	tests/models tests/settings tests/system tests/telemetry tests/test_*.py

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

.PHONY: demo
demo: $(VENV)/.demo ## Serve the default model and draw masks on a photo into demo/.
	$(BIN)/python examples/demo.py demo

.PHONY: web
web: $(VENV)/.demo $(PAGE) ## Build the web page and serve it with the default model until Ctrl-C.
	$(BIN)/samserve serve --web

.PHONY: triton
triton: $(VENV)/.dev $(TRITON)/.done ## Run tritonserver with model_repository/ until Ctrl-C.
	$(BIN)/python -m harness.triton

.PHONY: cluster
cluster: $(VENV)/.dev ## Run a Valkey Cluster of six nodes on loopback until Ctrl-C.
	$(BIN)/python -m harness.cluster

.PHONY: observe
observe: $(VENV)/.dev $(TRITON)/.done $(PROMETHEUS)/.done ## Run the whole system under load, scraped by a real Prometheus.
	$(BIN)/python -m monitoring.live --faults

.PHONY: dashboards
dashboards: $(VENV)/.dev ## Generate the Grafana dashboards and Prometheus rules from monitoring/.
	$(BIN)/python -m monitoring generate

.PHONY: chart
chart: $(VENV)/.dev ## Generate schema and README of the Helm chart from its values.yaml.
	$(BIN)/python -m chart generate

.PHONY: test
test: $(VENV)/.test $(TRITON)/.done $(PROMETHEUS)/.done ## Run the tests, except slow ones.
	$(PYTEST) $(WORKERS) -m "not slow and not long" --durations=10

.PHONY: test-fast
test-fast: $(VENV)/.test ## Run the fast tests, in under a minute.
	$(PYTEST) $(WORKERS) -m "not slow and not long" --engine fake $(FAST)

.PHONY: test-all
test-all: $(X_ANYLABELING)/.done $(CVAT)/.done $(LABEL_STUDIO_SDK)/.done
test-all: $(VENV)/.test $(TRITON)/.done $(PROMETHEUS)/.done $(NODE)/.done $(PAGE) ## Run the slow tests, which `make test` skips.
	$(PYTEST) $(WORKERS) -m "(slow or hypothesis) and not long" --hypothesis-profile thorough \
		--durations=10

.PHONY: test-long
test-long: $(LABEL_STUDIO)/.done
test-long: $(VENV)/.test $(TRITON)/.done $(PROMETHEUS)/.done $(NODE)/.done $(PAGE) ## Run the tests that CI skips; takes half an hour.
	# In separate processes: ViT-H needs 16 GB, so memory that other tests keep must be released first.
	$(PYTEST) -m long --durations=10 --ignore=tests/export/test_sizes.py
	$(PYTEST) -m long tests/export/test_sizes.py -k "not vit_h"
	$(PYTEST) -m long tests/export/test_sizes.py -k vit_h

.PHONY: bench
bench: $(VENV)/.test $(if $(filter web,$(PART)),$(NODE)/.done $(PAGE)) ## Measure speed and memory against other ways of running SAM: PART=..., QUICK=1.
	$(BIN)/python -m benchmarks $(PART) $(if $(QUICK),--quick) $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: bench-publish
bench-publish: $(VENV)/.test ## Put the last results of `make bench` into docs/benchmarks.md.
	$(BIN)/python -m benchmarks --publish

.PHONY: check
check: $(VENV)/.dev web/node_modules/.done ## Lint, check types, and check that generated code is up to date.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(NPM) run --silent --prefix web generate
	$(NPM) run --silent --prefix web check
	$(BIN)/python scripts/check-words
	$(BIN)/python scripts/contract check
	./scripts/generate-stubs "$(BIN)" build/stubs
	diff -r build/stubs/samserve/v1 service/samserve/v1 --exclude __pycache__ --exclude __init__.py
	$(BIN)/python -m monitoring check
	$(BIN)/python -m chart check

.PHONY: proto
proto: $(VENV)/.dev ## Generate the stubs from proto/.
	./scripts/generate-stubs "$(BIN)" service

.PHONY: contract
contract: $(VENV)/.test ## Record the API contract of proto/; CHANGELOG.md must have a line for the change.
	$(BIN)/python scripts/contract renew

.PHONY: constraints
constraints: $(VENV)/.dev ## Pin the packages of the images to the versions in .venv.
	$(BIN)/python scripts/pin-images

.PHONY: wheel
wheel: $(VENV)/.base $(PAGE) ## Build the wheels of server (with default model and web page) and client into dist/.
	REQUIRE_WEB_PAGE=1 $(BIN)/pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist . ./clients/python

.PHONY: clean
clean: ## Remove all build outputs and virtual environments.
	rm -rf $(CVAT) $(LABEL_STUDIO) $(LABEL_STUDIO_SDK) $(X_ANYLABELING)
	rm -rf $(NODE) examples/*/node_modules examples/browser/gen examples/browser/dist
	rm -rf web/node_modules web/src/gen web/dist
	rm -rf $(VENV) $(TRITON) $(PROMETHEUS) build dist demo .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.base:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(VENV)/$(INSTALL) --editable ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.base pyproject.toml scripts/get-programs
	./scripts/get-programs
	$(VENV)/$(INSTALL) --editable ".[test]"
	# For MobileSAM's original encoder. Its dependencies, a different torch among them, are not needed.
	$(VENV)/$(INSTALL) --no-deps samexporter==0.5.0
	# The reference of SAM-HQ, likewise.
	$(VENV)/$(INSTALL) --no-deps segment-anything-hq==0.3
	# EdgeTAM's encoder; of torchvision, which does not work with this torch, it only needs names.
	$(VENV)/$(INSTALL) --no-deps timm==1.0.31
	# The reference of SAM 2, in a folder of its own: it would also install a package `training`.
	SAM2_BUILD_CUDA=0 $(VENV)/$(INSTALL) --no-deps --no-build-isolation --upgrade \
		--target $(VENV)/sam2 sam2==1.1.0
	touch $@

$(VENV)/.dev: $(VENV)/.test pyproject.toml
	$(VENV)/$(INSTALL) --editable ".[dev]"
	touch $@

# The same onnxruntime as in $(VENV), so that results are bit-identical.
$(TRITON)/.done: harness/triton/requirements.txt $(VENV)/.test
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/$(INSTALL) --constraint $< \
		onnxruntime==$$($(BIN)/python -c 'from importlib.metadata import version; print(version("onnxruntime"))')
	$(TRITON)/$(INSTALL) --no-deps --requirement $<
	touch $@

$(X_ANYLABELING)/.done: tests/tools/x_anylabeling/requirements.txt
	$(PYTHON) -m venv $(X_ANYLABELING)
	$(X_ANYLABELING)/$(INSTALL) --no-deps --requirement $<
	touch $@

$(PROMETHEUS)/.done: scripts/get-prometheus
	./scripts/get-prometheus $(PROMETHEUS)
	touch $@

$(LABEL_STUDIO)/.done: tests/tools/label_studio/requirements.txt
	$(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/$(INSTALL) --requirement $<
	touch $@

$(LABEL_STUDIO_SDK)/.done: tests/tools/label_studio/sdk_requirements.txt
	$(PYTHON) -m venv $(LABEL_STUDIO_SDK)
	$(LABEL_STUDIO_SDK)/$(INSTALL) --no-deps --requirement $<
	touch $@

# The client is installed for its dependencies; the tests import the files of service/.
$(CVAT)/.done: clients/python/pyproject.toml
	$(PYTHON) -m venv $(CVAT)
	$(CVAT)/$(INSTALL) cvat-cli==2.80.0 cvat-sdk==2.80.0 ./clients/python
	touch $@

$(NODE)/.node: scripts/get-node | $(VENV)/.base
	./scripts/get-node $(NODE) $(VENV)/$(INSTALL)
	touch $@

$(NODE)/.done: scripts/get-chromium examples/node/package.json examples/browser/package.json \
		$(NODE)/.node web/node_modules/.done
	./scripts/get-chromium $(NODE)
	$(NPM_INSTALL) --prefix examples/node
	$(NPM_INSTALL) --prefix examples/browser
	touch $@

web/node_modules/.done: web/package.json $(NODE)/.node
	$(NPM_INSTALL) --prefix web
	touch $@

$(PAGE): web/node_modules/.done $(shell find $(PAGE_INPUTS) -type f -not -path 'web/src/gen/*')
	$(NPM) run --silent --prefix web build -- --logLevel warn
