# make demo [INPUT= SHARDS=]     audit a folder with a Celery worker and watch it live; needs no server
# make demo-kill                 the same, with a worker killed in the middle, beside a chord with the same kill
# make test                      run all tests that finish within minutes
# make test-full                 run all combinations of the tests and more generated examples; use it before a release
# make test-core                 run the tests that need no server; with another Python: PYTHON=python3.13 VENV=build/python-3.13
# make test-celery CELERY=5.6.2  run the integration tests with another release of Celery
# make test-lowest               run test-core with the lowest supported release of each dependency
# make test-wheel                install the built package outside the checkout and test it there
# make test-firestore            run the full Firestore suite; uses FIRESTORE_EMULATOR_HOST if it is set
# make coverage                  run test-core and fail if branch coverage falls below the recorded value
# make check                     check lint, format, spelling, types and import directions
# make format                    fix lint and format
# make docs                      update the table of docs/settings.md
# make api                       record the public names after a change; tests/docs/public_api.json is the record
# make site                      build the documentation site into build/site; its Markdown and llms.txt too
# make site-serve                serve the site on http://127.0.0.1:8000 and rebuild it when a page changes
# make picture                   draw docs/images/live.svg, the picture of the README
# make screenshots               take docs/images/web-*.png, the pictures of the web pages; needs Chromium
# make bench                     measure the cost of tracking and of its alternatives; writes benchmarks/RESULTS.md
# make bench-quick               run the same measurements at a small scale, within two minutes
# make chaos [ROUNDS= SEED=]     kill workers and cut connections at random, and check the guarantees after each round
# make soak [HOURS=]             run mixed jobs for hours, kill a worker every minute, and check that nothing grows
# make firestore-init            enable the Firestore API and create the database: PROJECT_ID= REGION=
# make firestore-indexes         create the indexes of firestore.indexes.json: PROJECT_ID=
# make firestore-emulator        run the Firestore emulator on HOST_PORT= (default: localhost:8787)
# make gc                        collect garbage: PROJECT_ID= for Firestore or URL=; TOMBSTONE_AGE= DELETE_AGE= ARGS=--dry-run
# make migrate                   migrate jobs: PROJECT_ID= for Firestore or URL=; TARGET= ARGS=--dry-run
# make clean                     remove the virtual environment and build results
SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?= python3
VENV   ?= .venv
INPUT  ?=
SHARDS ?= 16
ROUNDS ?= 10
SEED   ?= 1
CHAOS_PLACES ?= folders-sqlite redis-redis rabbitmq-redis redis-postgres redis-cluster redis-firestore
SOAK_PLACES ?= redis-redis redis-postgres
HOURS  ?= 2
ARGS   ?=
CELERY ?= 5.6.2
FIRESTORE_TESTS ?= tests/stores tests/integration tests/web
TOMBSTONE_AGE ?= 30d
DELETE_AGE    ?= 90d
TARGET    ?=
URL       ?= $(if $(PROJECT_ID),firestore://$(PROJECT_ID))
HOST_PORT ?= localhost:8787
DATABASE  ?= (default)

bin    := $(VENV)/bin
pip    := $(bin)/python -m pip --quiet --quiet --disable-pip-version-check
# One process per core; tests that share servers and workers run in the same process.
xdist  := pytest -n auto --dist loadgroup
pytest := $(bin)/python -m $(xdist)

.PHONY: demo demo-kill test test-full test-core test-celery test-lowest test-wheel test-firestore coverage check format docs api site site-serve picture \
  screenshots bench bench-quick chaos soak clean help \
  firestore-init firestore-indexes firestore-emulator gc migrate

help:
	@sed -n 's/^# make /make /p' Makefile

demo: $(VENV)/.demo
	@$(bin)/python -m examples.demo $(if $(INPUT),--input "$(INPUT)") --shards $(SHARDS) $(ARGS)

demo-kill: $(VENV)/.demo
	@$(bin)/python -m examples.demo_kill $(if $(INPUT),--input "$(INPUT)") --shards $(SHARDS) $(ARGS)

test: $(VENV)/.test
	$(pytest) $(ARGS)

test-full: $(VENV)/.test
	HYPOTHESIS_PROFILE=full $(pytest) --full $(ARGS)

core := tests/unit tests/stores/test_contract.py tests/stores/sqlite tests/cli -k "not redis and not firestore and not postgres"

test-core: $(VENV)/.test
	$(pytest) $(core) $(ARGS)

# The integration tests that start no worker also run: the integration's modules are measured by them.
eager := eager sweep submit veto task_progress members canvases policy

# So do the tests of Django, of asynchronous readers and of the web. One measures the processor time of an event loop, which coverage
# increases.
django := $(filter-out %_shop.py,$(wildcard tests/with_django/test_*.py))
asynchronous := $(filter-out %_many_clients.py,$(wildcard tests/web/test_*.py)) tests/stores/test_hub.py \
  --deselect tests/stores/test_hub.py::test_a_thousand_subscribers_cost_one_watch_and_no_thread_each

# The result omits the stores that need a server, because these tests do not reach them. Processes that tests kill may
# leave unreadable data; coverage warns and skips it.
coverage: $(VENV)/.test
	rm -rf build/coverage && mkdir -p build/coverage
	$(bin)/coverage run -m $(xdist) $(eager:%=tests/integration/test_%.py) $(asynchronous) $(django) $(core) $(ARGS)
	$(bin)/coverage combine --quiet
	$(bin)/coverage report --omit="*/stores/firestore/*,*/stores/postgres/*,*/stores/redis/*" --skip-covered

test-celery: build/celery-$(CELERY)/.test
	build/celery-$(CELERY)/bin/python -m pytest tests/integration $(ARGS)

build/celery-$(CELERY)/.test: pyproject.toml
	@echo "Installing Celery $(CELERY) into $(@D) …"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check install -U "pip>=25.1"
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check install -e . "celery==$(CELERY)" --group dev
	@touch $@

# uv can choose the lowest releases; pip cannot. Tests of later releases, and of what this environment lacks, are left out.
lowest := --all-extras -r pyproject.toml --group lowest

test-lowest: build/lowest/.test
	build/lowest/bin/python -m $(xdist) $(core) $(ARGS)

build/lowest/.test: pyproject.toml
	@echo "Installing the lowest releases into $(@D) …"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check install uv
	@$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --resolution lowest-direct -e . $(lowest)
	@touch $@

screenshots: $(VENV)/.test
	$(bin)/python scripts/render_web_screenshots.py

bench: $(VENV)/.bench
	@failed=0; $(bin)/python -m benchmarks --json benchmarks/results.json || failed=1; \
	  $(bin)/python -m benchmarks.report benchmarks/results.json > benchmarks/RESULTS.md && \
	  $(bin)/python -m benchmarks.plot benchmarks/cost-by-size.png && exit $$failed

bench-quick: $(VENV)/.bench
	$(bin)/python -m benchmarks --scale quick --json build/bench-quick.json

test-wheel: $(VENV)/.test
	rm -rf build/wheel && $(bin)/python -m build --wheel --outdir build/wheel . > build-wheel.log 2>&1 || { cat build-wheel.log; exit 1; }
	rm -f build-wheel.log
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip --quiet --disable-pip-version-check install -U "pip>=25.1"
	build/wheel/venv/bin/python -m pip --quiet --disable-pip-version-check install "$$(echo build/wheel/*.whl)[monitor,web]" --group dev
	cp -r tests pyproject.toml build/wheel/
	cd build/wheel && venv/bin/python -m $(xdist) tests/unit tests/stores/test_contract.py tests/cli

chaos: $(VENV)/.test
	@bad=0; for place in $(CHAOS_PLACES); do \
	  PYTHONPATH=tests:. $(bin)/python -m chaos --place $$place --rounds $(ROUNDS) --seed $(SEED) || bad=1; done; exit $$bad

soak: $(VENV)/.test
	@bad=0; for place in $(SOAK_PLACES); do \
	  PYTHONPATH=tests:. $(bin)/python -m chaos.soak --place $$place --hours $(HOURS) --seed $(SEED) || bad=1; done; exit $$bad

check: $(VENV)/.test
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/codespell
	$(bin)/mypy && $(bin)/mypy tests/typed_use.py examples/folder_store.py
	$(bin)/lint-imports

docs: $(VENV)/.test
	$(bin)/python scripts/document_settings.py

api: $(VENV)/.test
	@$(bin)/python scripts/record_api.py

# The variable turns off a note about the future of mkdocs.
site site-serve: export NO_MKDOCS_2_WARNING := 1

site: $(VENV)/.docs
	@$(bin)/mkdocs build --strict

site-serve: $(VENV)/.docs
	@$(bin)/mkdocs serve

picture: $(VENV)/.test
	$(bin)/python scripts/render_readme_picture.py

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
	$(pytest) $(FIRESTORE_TESTS) --firestore -k firestore $(ARGS)

clean:
	rm -rf $(VENV) .demo build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), but Python 3.10 or newer is needed; choose one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "cannot create the virtual environment $(VENV); on Debian and Ubuntu, install it with: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) …"
	@$(pip) install -e ".[monitor,web]"
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) …"
	@$(pip) install -U "pip>=25.1"
	@$(pip) install -e ".[monitor]" --group dev
	@touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.test
	@$(pip) install --group docs
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.test
	@$(pip) install --group bench
	@touch $@
