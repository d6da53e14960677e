# The one door. `make` lists what there is; CI runs these very targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ENGINE ?= embedded
TRACE ?=
# hyperflexis, or <scheduler>+<worker> as in round_robin+fcfs; several with commas are compared.
POLICY ?=
LOAD ?=
ARGS ?=
# Test processes side by side: many tests wait more than they compute. JOBS=0 runs them in one, as pdb needs.
JOBS ?= 2

SERVICES := router scheduler worker scaler
PACKAGES := proto libs/common $(SERVICES:%=services/%) clients/python sim cli
MODEL := models/tiny

MANIFESTS := Makefile $(PACKAGES:%=%/pyproject.toml) $(wildcard constraints/*.txt)
LITE := $(VENV)/.installed-lite
FULL := $(VENV)/.installed
PIP := $(BIN)/pip --disable-pip-version-check --quiet

# Modelled engines sleep what the step-time model says: no torch, no weights.
DEMO_NEEDS := $(if $(filter modelled,$(ENGINE)),$(LITE),$(FULL) $(MODEL)/config.json)

##@ Use it

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(FULL) ## Everything installed, editable, in .venv; nothing to do when warm

.PHONY: setup-lite
setup-lite: $(LITE) ## The same without torch (modelled engine only)

.PHONY: model
model: $(FULL) $(MODEL)/config.json ## A small model with a real tokenizer in models/tiny

.PHONY: demo
demo: $(DEMO_NEEDS) ## The whole stack on this machine under load (ENGINE=embedded|modelled, TRACE=file.csv, POLICY=a,b, LOAD=1.5)
	$(BIN)/hyperflexis demo --engine $(ENGINE) $(if $(TRACE),--trace $(TRACE)) $(if $(POLICY),--policy $(POLICY)) \
	  $(if $(LOAD),--load $(LOAD)) $(ARGS)

##@ Check it

# Several test processes on few cores: threads that spin for each other cost minutes.
test test-all test-wheels test-compose chaos chaos-embedded bench-control bench-engine bench-fidelity bench-kv bench-slo: export OMP_NUM_THREADS := 1

.PHONY: test
test: $(FULL) $(MODEL)/config.json ## Unit, property, contract and integration tests (ARGS=pytest arguments)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not wheels and not compose" $(ARGS)

.PHONY: test-all
test-all: $(FULL) $(MODEL)/config.json ## The same and the slow ones
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not wheels and not compose" $(ARGS)

.PHONY: test-wheels
test-wheels: $(FULL) wheels ## Each service's wheel, installed alone, answers --help and --health
	$(BIN)/python -m pytest -q -m wheels tests/repository $(ARGS)

.PHONY: test-compose
test-compose: $(FULL) ## The real images under docker compose: replay while a worker and the leader are killed
	$(BIN)/python -m pytest -q -m compose tests/compose $(ARGS)

.PHONY: chaos
chaos: $(FULL) ## Faults of every kind under load; ends with the count of tokens lost, repeated or spliced
	$(BIN)/python tests/chaos/run.py $(ARGS)

.PHONY: chaos-embedded
chaos-embedded: $(FULL) $(MODEL)/config.json ## The same on the torch engine: 50 faults in one cell, build/chaos-embedded/summary.json
	$(BIN)/python tests/chaos/run.py --engine embedded --model $(MODEL) --faults 50 --cells 1 \
	  --out build/chaos-embedded $(ARGS)

.PHONY: bench-control
bench-control: $(FULL) ## Latency and throughput of router and scheduler on modelled workers
	$(BIN)/python bench/control.py $(ARGS)

.PHONY: bench-engine
bench-engine: $(FULL) $(MODEL)/config.json ## The torch engine against transformers' own generate, same model, same run
	$(BIN)/python bench/engine.py --model $(MODEL) $(ARGS)

.PHONY: bench-kv
bench-kv: $(FULL) ## How fast caches move, by transport, and what moving costs requests: five minutes (ARGS=--quick)
	$(BIN)/python bench/kv.py $(ARGS)

.PHONY: bench-prefix
bench-prefix: $(FULL) ## Hit rate and time to first token with and without placement by cached prefixes, live: six minutes
	$(BIN)/python bench/prefix.py $(ARGS)

.PHONY: bench-slo
bench-slo: $(LITE) ## Attainment of our scheduling and of the baselines, simulated: half an hour (ARGS=--quick: minutes; --disaggregated)
	$(BIN)/python bench/slo.py $(ARGS)

.PHONY: bench-variants
bench-variants: $(LITE) ## What each scheduling mechanism is worth, and what disturbances cost, simulated: 20 minutes (ARGS="--seeds 1")
	$(BIN)/python bench/variants.py $(ARGS)

.PHONY: bench-moves
bench-moves: $(LITE) ## What each reason to move running requests is worth, simulated: ten minutes (ARGS="--seeds 1")
	$(BIN)/python bench/moves.py $(ARGS)

.PHONY: bench-pulls
bench-pulls: $(LITE) ## What reading cached prefixes from peers could gain, simulated: half an hour (ARGS="--gpus h200 --loads 1")
	$(BIN)/python bench/pulls.py $(ARGS)

.PHONY: bench-fidelity
bench-fidelity: $(FULL) $(MODEL)/config.json ## The simulator against live runs on this machine: a quarter of an hour (ARGS="--engine modelled")
	$(BIN)/python bench/fidelity.py --model $(MODEL) $(ARGS)

.PHONY: lint
lint: $(FULL) ## ruff, import contracts, file lengths and names
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/repository/test_repository_style.py

.PHONY: type
type: $(FULL) ## mypy --strict over every package, the shared tests and the benches
	$(BIN)/mypy libs services clients sim cli tests bench

##@ Change the protocol

# The versions that a change must not break on the wire; `PROTO_SINCE=<commit>..HEAD` forgets the older ones.
PROTO_SINCE ?= HEAD
BUF := build/buf/node_modules/.bin/buf

.PHONY: proto
proto: ## Stubs in proto/gen, regenerated
	./proto/generate.sh

.PHONY: proto-check
proto-check: $(BUF) proto ## buf lint, no wire break against recent versions, stubs that match
	cd proto && ../$(BUF) lint
	for version in $$(git log -n 5 --format=%H $(PROTO_SINCE) -- proto/hyperflexis); do \
	  (cd proto && ../$(BUF) breaking --against "../.git#ref=$$version,subdir=proto"); \
	done
	git diff --exit-code --stat -- proto/gen
	@untracked=$$(git ls-files --others --exclude-standard proto/gen); \
	  [ -z "$$untracked" ] || { echo "generated, but not committed: $$untracked" >&2; exit 1; }

$(BUF):
	npm install --silent --no-save --prefix build/buf @bufbuild/buf@1

##@ Ship it

.PHONY: wheels
wheels: $(FULL) ## Every package as a wheel in dist/
	rm -rf dist $(PACKAGES:%=%/build)
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist $(PACKAGES:%=./%)
	rm -rf $(PACKAGES:%=%/build)

.PHONY: images
images: $(SERVICES:%=image-%) ## Every service as a container image hyperflexis-<service>:dev

image-%:
	docker build --file services/$*/Dockerfile --tag hyperflexis-$*:dev .

.PHONY: clean
clean: ## What builds and tests left behind; .venv and models stay
	rm -rf build dist $(PACKAGES:%=%/build) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(LITE): $(MANIFESTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints/dev.txt --requirement constraints/tools.txt
	$(PIP) install --constraint constraints/dev.txt --no-build-isolation $(PACKAGES:%=--editable ./%)
	touch $@

$(FULL): $(LITE)
	$(PIP) install --constraint constraints/dev.txt --no-build-isolation --editable './services/worker[embedded,nixl]'
	touch $@

$(MODEL)/config.json:
	$(BIN)/python -m hyperflexis_worker.sample_model $(MODEL)
