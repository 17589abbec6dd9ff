# make demo    watch a real job from start to report, no server needed
# make test    everything that can be proven in a few minutes
# make test-core PYTHON=python3.13 VENV=build/python-3.13   what needs no server, with another Python
# make test-celery CELERY=5.6.2   the acceptance tests with another Celery
# make chaos ROUNDS= SEED=   random trouble, and what must hold after it
# make bench   what tracking costs, beside what it replaces: writes benchmarks/RESULTS.md; make bench-quick takes two minutes
# make check   lint, types, import directions
# make docs    write the README's table of settings
# make firestore-init PROJECT_ID= REGION=   enable the API, create the database
# make firestore-indexes PROJECT_ID=        create what firestore.indexes.json says
# make firestore-emulator HOST_PORT=        run the emulator, on localhost:8787 if nothing else is said
# make gc PROJECT_ID= TOMBSTONE_AGE= DELETE_AGE= ARGS=--dry-run   collect garbage in Firestore; URL= for another store
# make migrate PROJECT_ID= TARGET= ARGS=--dry-run   bring jobs in Firestore to a later schema; URL= for another store
# make test-firestore                       test the Firestore store, on FIRESTORE_EMULATOR_HOST if that is set
SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?= python3
VENV   ?= .venv
INPUT  ?=
SHARDS ?= 16
ROUNDS ?= 10
SEED   ?= 1
CHAOS_PLACES ?= folders-sqlite redis-redis rabbitmq-redis redis-firestore
ARGS   ?=
CELERY ?= 5.6.2
TOMBSTONE_AGE ?= 30d
DELETE_AGE    ?= 90d
TARGET    ?=
URL       ?= $(if $(PROJECT_ID),firestore://$(PROJECT_ID))
HOST_PORT ?= localhost:8787
DATABASE  ?= (default)

bin := $(VENV)/bin
pip := $(bin)/python -m pip --quiet --quiet --disable-pip-version-check
# as many processes as there are cores; tests that share servers and workers stay together
beside := pytest -n auto --dist loadgroup
pytest := $(bin)/python -m $(beside)

.PHONY: demo bench bench-quick test test-full test-core test-celery test-wheel test-firestore chaos check docs format clean help \
  firestore-init firestore-indexes firestore-emulator gc migrate

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/.demo
	@$(bin)/python -m examples.demo $(if $(INPUT),--input "$(INPUT)") --shards $(SHARDS) $(ARGS)

test: $(VENV)/.test
	$(pytest) $(ARGS)

# every combination, and more examples from hypothesis: before a release
test-full: $(VENV)/.test
	HYPOTHESIS_PROFILE=full $(pytest) --full $(ARGS)

# what needs no server
test-core: $(VENV)/.test
	$(pytest) tests/unit tests/stores/test_contract.py tests/stores/sqlite tests/cli -k "not redis and not firestore" $(ARGS)

# the lowest that is supported, or any other
test-celery: build/celery-$(CELERY)/.test
	build/celery-$(CELERY)/bin/python -m pytest tests/integration $(ARGS)

build/celery-$(CELERY)/.test: pyproject.toml
	@echo "Installing Celery $(CELERY) into $(@D) …"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check install -U "pip>=25.1"
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check install -e . "celery==$(CELERY)" --group dev
	@touch $@

bench: $(VENV)/.bench
	@failed=0; $(bin)/python -m benchmarks --json benchmarks/results.json || failed=1; \
	  $(bin)/python -m benchmarks.report benchmarks/results.json > benchmarks/RESULTS.md && \
	  $(bin)/python -m benchmarks.plot benchmarks/cost-by-size.png && exit $$failed

bench-quick: $(VENV)/.bench
	$(bin)/python -m benchmarks --scale quick --json build/bench-quick.json

# what users install, away from the checkout
test-wheel: $(VENV)/.test
	rm -rf build/wheel && $(bin)/python -m build --wheel --outdir build/wheel . > build-wheel.log 2>&1 || { cat build-wheel.log; exit 1; }
	rm -f build-wheel.log
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip --quiet --disable-pip-version-check install -U "pip>=25.1"
	build/wheel/venv/bin/python -m pip --quiet --disable-pip-version-check install "$$(echo build/wheel/*.whl)[monitor]" --group dev
	cp -r tests pyproject.toml build/wheel/
	cd build/wheel && venv/bin/python -m $(beside) tests/unit tests/stores/test_contract.py tests/cli

chaos: $(VENV)/.test
	@bad=0; for place in $(CHAOS_PLACES); do \
	  PYTHONPATH=tests:. $(bin)/python -m chaos --place $$place --rounds $(ROUNDS) --seed $(SEED) || bad=1; done; exit $$bad

check: $(VENV)/.test
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy && $(bin)/mypy tests/typed_use.py
	$(bin)/lint-imports

docs: $(VENV)/.test
	$(bin)/python scripts/document_settings.py

format: $(VENV)/.test
	$(bin)/ruff check --fix --exit-zero
	$(bin)/ruff format

firestore-init:
	@test -n "$(PROJECT_ID)" -a -n "$(REGION)" || { echo "usage: make firestore-init PROJECT_ID=my-project REGION=europe-west1" >&2; exit 2; }
	@scripts/firestore_enable.sh "$(PROJECT_ID)" "$(REGION)" "$(DATABASE)"

firestore-indexes:
	@test -n "$(PROJECT_ID)" || { echo "usage: make firestore-indexes PROJECT_ID=my-project [DATABASE=id]" >&2; exit 2; }
	@scripts/firestore_apply_indexes.sh "$(PROJECT_ID)" "$(DATABASE)"

firestore-emulator:
	@exec scripts/firestore_emulator.sh "$(HOST_PORT)"

gc: $(VENV)/.test
	@test -n "$(URL)" || { echo "usage: make gc PROJECT_ID=my-project [TOMBSTONE_AGE=30d] [DELETE_AGE=90d] [ARGS=--dry-run]" >&2; exit 2; }
	@$(bin)/celery gc-state --store "$(URL)" --tombstone-age "$(TOMBSTONE_AGE)" --delete-age "$(DELETE_AGE)" $(ARGS)

migrate: $(VENV)/.test
	@test -n "$(URL)" || { echo "usage: make migrate PROJECT_ID=my-project [TARGET=1] [ARGS='--job etl-42 --dry-run']" >&2; exit 2; }
	@$(bin)/celery migrate-state --store "$(URL)" $(if $(TARGET),--target "$(TARGET)") $(ARGS)

test-firestore: $(VENV)/.test
	$(bin)/python -m pytest tests/stores tests/integration --firestore -k firestore $(ARGS)

clean:
	rm -rf $(VENV) .demo build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, $$($(PYTHON) --version) was found: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "no virtual environment could be made: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) …"
	@$(pip) install -e ".[monitor]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) …"
	@$(pip) install -U "pip>=25.1"
	@$(pip) install -e ".[monitor]" --group dev
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.test
	@$(pip) install --group bench
	@touch $@
