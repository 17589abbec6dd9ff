"""``make gc`` and ``make migrate`` take the variables of the Go module's targets."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from celery_statemanager import Manager, open_store
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import new_job
from celery_statemanager.testing.kit import every_job

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not (ROOT / "Makefile").exists(),
    reason="make, or the checkout's Makefile, is missing",
)


@pytest.fixture
def make():
    """Run a make target with the environment of the tests, without the flags of an outer make."""
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKEOVERRIDES"}}

    def make(target, **variables):
        given = [f"{name}={value}" for name, value in {"VENV": sys.prefix, "ARGS": "", **variables}.items()]
        return subprocess.run(
            ["make", "--silent", "--old-file", f"{sys.prefix}/.test", target, *given],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return make


def test_make_gc_collects_with_the_given_ages(make, tmp_path):
    url = f"sqlite:///{tmp_path}/states.db"
    with open_store(url) as store:
        Manager.create(store, "old", num_tasks=1)
        dry_run = make("gc", URL=url, TOMBSTONE_AGE="1us", ARGS="--dry-run")
        assert "     1  would be hidden\n" in dry_run.stdout, dry_run.stderr
        assert "     1  hidden\n" in make("gc", URL=url, TOMBSTONE_AGE="1us").stdout
        assert "     1  deleted\n" in make("gc", URL=url, TOMBSTONE_AGE="1us", DELETE_AGE="2us").stdout
        assert list(every_job(store)) == []


def test_make_gc_prints_its_usage(make):
    done = make("gc")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: make gc PROJECT_ID=my-project [TOMBSTONE_AGE=30d] [DELETE_AGE=90d]")


def test_make_migrate_migrates_jobs_to_the_target(make, tmp_path):
    url = f"sqlite:///{tmp_path}/states.db"
    with open_store(url) as store:
        job = store.create_job(replace(new_job("old", 1), incarnation=""))
        dry_run = make("migrate", URL=url, TARGET="1", ARGS="--dry-run --job old")
        assert "     1  would be migrated to schema 1\n" in dry_run.stdout, dry_run.stderr
        assert "     1  migrated to schema 1\n" in make("migrate", URL=url, TARGET="1").stdout
        assert store.get_job(job.key).schema == 1
        assert (
            f"this release supports schemas up to {SCHEMA_VERSION}, not 99"
            in make("migrate", URL=url, TARGET="99").stderr
        )


def test_make_migrate_prints_its_usage(make):
    done = make("migrate")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: make migrate PROJECT_ID=my-project [TARGET=1]")
