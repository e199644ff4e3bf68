# make help lists the targets. Everything happens in .venv; nothing is installed outside it,
# but for the third-party programs that the tests talk to (make partners, as root).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYPATHS := components/radmesh components/_radmesh_htj2k.py native/radmesh_native gateway_proxy/radmesh_gateway_proxy tests bench tools setup.py
PATHS ?= $(PYPATHS)

.DEFAULT_GOAL := help
.PHONY: help up test test-full test-fast fuzz lint lint-fast format bench protos native partners docs clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.run: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("radmesh needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "radmesh: installing into $(VENV) (once)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt 'pip>=25.1' setuptools wheel cython grpcio-tools mypy-protobuf
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[postgresql]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "radmesh: installing the tools for tests and lint (once)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --group dev
	@touch $@

protos: $(VENV)/.run ## generate radmesh.api from protos/
	@$(BIN)/python setup.py -q --version >/dev/null

native: $(VENV)/.run ## compile native/ in place
	@$(BIN)/python setup.py -q build_ext --inplace

up: native ## set up and run a whole cluster on this machine (data in ./radmesh-data, or RADMESH_DATA)
	@exec $(BIN)/radmesh up

test: $(VENV)/.dev native ## set up and run every test (a quarter of an hour on two cores)
	@tools/partners
	@$(BIN)/python tools/run_tests.py

test-full: ## the same at full depth: every kill twenty times, every case on every back end; an hour, on a quiet machine
	@RADMESH_TEST_DEPTH=full $(MAKE) --no-print-directory test

test-fast: $(VENV)/.dev native ## the tests without the fault injection
	@$(BIN)/python -m pytest -m 'not faults'

fuzz: $(VENV)/.dev native ## fuzz the native code with clang's libFuzzer, for RADMESH_FUZZ_SECONDS of CPU time (3600)
	@nice -n 15 $(BIN)/python tools/fuzz.py

lint: $(VENV)/.dev native ## ruff, mypy --strict, cython-lint, import-linter, buf
	@$(BIN)/ruff check $(PYPATHS)
	@$(BIN)/ruff format --check $(PYPATHS)
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint native/radmesh_native
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code

lint-fast: $(VENV)/.dev ## ruff and mypy on PATHS="…"
	@$(BIN)/ruff check $(PATHS)
	@$(BIN)/ruff format --check $(PATHS)
	@$(BIN)/mypy $(PATHS)

format: $(VENV)/.dev ## ruff format, buf format
	@$(BIN)/ruff format $(PYPATHS)
	@$(BIN)/buf format -w

bench: $(VENV)/.dev native ## the peers and radmesh in one run, as ratios (bench/README.md)
	@$(BIN)/python bench/run.py
	@$(BIN)/python bench/queries.py
	@$(BIN)/python bench/retrieve.py
	@$(BIN)/python bench/transfer.py
	@$(BIN)/python bench/codec.py
	@$(BIN)/python bench/dicomweb.py

partners: ## install the third-party programs that the tests talk to (Debian, as root)
	@tools/partners --install

docs: $(VENV)/.dev ## rewrite the pages of docs/ that are made from the code's own tables
	@$(BIN)/python tools/make_docs.py

clean: ## remove everything that was built
	@rm -rf build dist components/radmesh/api native/radmesh_native/*.so native/radmesh_native/_*.c *.egg-info $(VENV)
