# Everything that is done with a working copy. `make` alone lists it. No step writes outside of this directory.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A Python that the server supports: `python3` if it will do, else the newest one found.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
ARGUMENTS ?=
# The oldest Python that runs the server, which has wheels of the oldest packages.
PYTHON_3_11 ?= $(firstword $(shell command -v python3.11) $(wildcard $(HOME)/.pyenv/versions/3.11.*/bin/python))
# For each package the tests of what uses it: what the rules, the files and SQLite do is the same with all of them.
MINIMUM_TESTS := $(patsubst %,tests/%,frameworks/test_jax.py frameworks/test_numpy.py installation/test_metadata.py wire)
MINIMUM_TESTS += tests/records/test_signatures.py
MINIMUM_TESTS += $(patsubst %,tests/cli/test_%.py,command_line lifecycle_commands)
MINIMUM_TESTS += tests/cli/test_model_registry_command_line.py::test_transfers_show_a_bar_on_a_terminal_unless_quiet
MINIMUM_TESTS += $(patsubst %,tests/storage/test_%.py,layout postgres_catalog)
# Without an S3 server, which is not installed there; the archive of one server asks nothing else of the library.
MINIMUM_TESTS += tests/storage/test_bucket.py::TestSharedBucketArchiveInMemory
# Those of the client run all calls of the server over gRPC, in both of its interfaces for Python.
MINIMUM_TESTS += $(patsubst %,tests/registry_client/test_%.py,calls failures lifecycle)
MINIMUM_TESTS += $(patsubst %,tests/web/test_%.py,api downloads events page_parts uploads)
MINIMUM_TESTS += $(patsubst %,tests/server/test_%.py,create_version health issuer metrics smoke version_update)
# What depends on Python rather than on the system or on other packages, such as gRPC, which says what fails.
PYTHON_TESTS := $(addprefix tests/,records rules settings wire frameworks/test_numpy.py)
# Without the S3 server, which is not installed there.
PYTHON_TESTS += $(filter-out tests/system/test_guarded_processes.py,$(wildcard tests/system/test_*.py))
PYTHON_TESTS += $(patsubst %,tests/registry_client/test_%.py,calls folders)
PYTHON_TESTS += $(patsubst %,tests/storage/test_%.py,catalog_database filesystem local_catalog memory)
PYTHON_TESTS += $(patsubst %,tests/server/test_%.py,version_update metrics health smoke)
# One kind of archive directory: the others differ in their file systems.
PYTHON_TESTS += -k "not ArchiveWho and not ArchiveWithout"
# Which builds of PyTorch `make test-frameworks` may install: those for the CPU alone, or any, with gigabytes of CUDA.
TORCH ?= cpu

export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/pycache
# Hundreds of processes that the tests start would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve test test-frameworks test-bridges test-minimum test-python test-environments install-frameworks install-bridges install-minimum install-python try-wheel torture bench bench-quick check format protos docs session lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/serve.stamp ## run the model registry for this machine, on its default port, with its archive in ./models/ and its audit log in ./audit/
	$(BIN)/cogment services model_registry --host=127.0.0.1 --archive_dir=./models/ --audit_log=./audit/ \
		--grpc_reflection --http_host=127.0.0.1 --http_port=9080 $(ARGUMENTS)

test: $(VENV)/develop.stamp ## run all tests
	$(BIN)/python -m pytest -n 4 --dist worksteal $(ARGUMENTS)

test-frameworks: install-frameworks ## run the tests of what needs PyTorch and JAX, in an environment of their own
	.venv-frameworks/bin/python -m pytest -n 2 tests/frameworks $(ARGUMENTS)

test-bridges: install-bridges ## run the tests of the bridges to MLflow and others, in the same environment
	.venv-frameworks/bin/python -m pytest -n 2 --dist loadfile tests/bridges $(ARGUMENTS)

test-minimum: install-minimum ## run what depends on other packages with the lowest versions that are supported, on Python 3.11
	.venv-minimum/bin/python -m pytest -n 4 --dist worksteal $(MINIMUM_TESTS) $(ARGUMENTS)

test-python: $(VENV)/test.stamp ## run what depends on Python, with another one: PYTHON=python3.13 VENV=.venv-3.13
	$(BIN)/python -m pytest -n 4 --dist worksteal $(PYTHON_TESTS) $(ARGUMENTS)

# What these take can be installed before, while something else runs.
install-frameworks:
	@$(MAKE) --no-print-directory VENV=.venv-frameworks .venv-frameworks/frameworks-$(TORCH).stamp

install-bridges:
	@$(MAKE) --no-print-directory VENV=.venv-frameworks .venv-frameworks/bridges-$(TORCH).stamp

install-minimum:
	@$(MAKE) --no-print-directory VENV=.venv-minimum $(if $(PYTHON_3_11),PYTHON=$(PYTHON_3_11)) .venv-minimum/minimum.stamp

install-python: $(VENV)/test.stamp

test-environments: $(VENV)/develop.stamp ## run tests in other locales, with an umask, as another user, and with closed streams
	$(BIN)/python -m tools.try_environments $(ARGUMENTS)

try-wheel: $(VENV)/develop.stamp ## build the wheel, and try it in new environments with each Python at hand and each protobuf
	$(BIN)/python tools/try_wheel.py $(ARGUMENTS)

torture: $(VENV)/develop.stamp ## try to break each promise for hours, going on where the last run ended
	$(BIN)/python -m tests.torture $(ARGUMENTS)

bench: $(VENV)/bench.stamp ## measure each figure beside its floor, in half an hour
	$(BIN)/python -m benchmarks --plots --json docs/benchmarks/figures.json $(ARGUMENTS)

bench-quick: $(VENV)/serve.stamp ## the same with less, in less than a minute
	$(BIN)/python -m benchmarks --quick $(ARGUMENTS)

check: $(VENV)/develop.stamp ## check style, types, the directions of imports and what is generated
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/generate_protos.py --check
	$(BIN)/python -m tools.generate_docs --check
	$(BIN)/lint-imports --cache-dir=.cache/imports

format: $(VENV)/develop.stamp ## format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(VENV)/develop.stamp ## generate the modules of wire/_generated
	$(BIN)/python tools/generate_protos.py

docs: $(VENV)/develop.stamp ## generate the tables and the help texts in README.md and docs/
	$(BIN)/python -m tools.generate_docs

session: $(VENV)/develop.stamp ## record the session on a terminal that the README shows
	$(BIN)/python tools/record_session.py

lock: $(VENV)/develop.stamp ## pin the dependencies anew
	$(BIN)/python tools/lock_requirements.py

clean: ## remove everything that these commands made, except the archive in ./models/ and the audit log in ./audit/
	rm -rf .venv .venv-* .cache dist

# The pins come first; then the package itself, without asking for anything more.
$(VENV)/serve.stamp: requirements/serve.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.14 found; name one with PYTHON=..." >&2; exit 1; }
	@echo "Installing the server and its pinned packages into $(VENV), which only the first run does."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --require-hashes -r requirements/serve.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/develop.stamp: requirements/develop.txt $(VENV)/serve.stamp
	$(BIN)/python -m pip install --require-hashes -r requirements/develop.txt
	touch $@

# Compiling modules that are never imported takes longer than the tests that run in these environments.
$(VENV)/test.stamp: requirements/test.txt $(VENV)/serve.stamp
	$(BIN)/python -m pip install --no-compile --require-hashes -r requirements/test.txt
	touch $@

$(VENV)/minimum.stamp: requirements/minimum.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --require-hashes -r requirements/minimum.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/bench.stamp: requirements/bench.txt $(VENV)/serve.stamp
	$(BIN)/python -m pip install --require-hashes -r requirements/bench.txt
	touch $@

$(VENV)/frameworks-$(TORCH).stamp: requirements/frameworks.txt tools/install_frameworks.py $(VENV)/test.stamp
	$(BIN)/python tools/install_frameworks.py --torch=$(TORCH)
	touch $@

$(VENV)/bridges-$(TORCH).stamp: requirements/bridges.txt tools/install_frameworks.py $(VENV)/frameworks-$(TORCH).stamp
	$(BIN)/python tools/install_frameworks.py --pins=requirements/bridges.txt
	touch $@
