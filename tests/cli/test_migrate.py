"""``migrate-state`` reports what it does and, on a dry run, what it would do."""

import json
from dataclasses import replace

import pytest

from celery_statemanager.models import SCHEMA_VERSION, Status
from celery_statemanager.records import JobKey, Write, new_job
from celery_statemanager.testing.kit import every_job


@pytest.fixture
def run(command):
    def run(*arguments):
        return command("migrate-state", *arguments)

    return run


@pytest.fixture
def old(store):
    """A store with two jobs of another program, of two states each, and one of this release."""
    for name in ("etl-42", "x" * 150):
        job = store.create_job(replace(new_job(name, 2), incarnation=""))
        for row in range(2):
            store.write(job.ref, Write(tag="a", task_index=row, status=Status.FINISHED, event_id=f"e{row}"))
    store.create_job(new_job("ours", 1))
    return store


def test_jobs_are_migrated_and_counted(run, old):
    result = run("--target", str(SCHEMA_VERSION))
    assert result.exit_code == 0
    counted = f"     2  migrated to schema {SCHEMA_VERSION}\n     0  states of these jobs\n"
    assert result.stdout == f"     3  jobs examined\n{counted}"
    assert all(job.incarnation for job in every_job(old))
    report = json.loads(run("--format", "json").stdout)
    counts = {"scanned": 3, "migrated": 0, "states": 0, "skipped": {}}
    assert report == {"target": SCHEMA_VERSION, **counts, "dryRun": False}


def test_a_dry_run_lists_each_job_and_changes_nothing(run, old):
    before = list(every_job(old))
    result = run("--dry-run")
    text = result.stdout
    assert result.stderr == "note: nothing was written\n"
    assert "would migrate: etl-42, created by another program, 0 states\n" in text
    assert f"     2  would be migrated to schema {SCHEMA_VERSION}\n" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "x…xxxxxxxxxxxxx, created by another program, 0 states\n" in text
    job, _, report = map(json.loads, run("--dry-run", "--format", "json").stdout.splitlines())
    assert job == {"jobID": "etl-42", "runToken": None, "action": "migrated", "states": 0, "schemaVersion": 0}
    assert (report["migrated"], report["dryRun"]) == (2, True)
    assert list(every_job(old)) == before


def test_a_dry_run_reports_the_schema_of_a_half_migrated_job(run, old):
    old.adopt_job(old.get_job(JobKey("etl-42")).ref, "f" * 16)
    text = run("--dry-run", "--job", "etl-42").stdout
    assert text.startswith("would migrate: etl-42, from schema 0, 0 states\n")


def test_one_job_and_a_limit(run, old):
    assert f"     1  migrated to schema {SCHEMA_VERSION}\n" in run("--job", "etl-42").stdout
    assert old.get_job(JobKey("etl-42")).incarnation
    assert f"     0  migrated to schema {SCHEMA_VERSION}\n" in run("--job", "ours").stdout
    old.create_job(replace(new_job("third", 1), incarnation=""))
    assert f"     1  migrated to schema {SCHEMA_VERSION}\n" in run("--limit", "1").stdout


def test_the_default_target_is_that_of_the_settings(run, app, old):
    app.conf.statemanager_migrate_target = 1
    assert "     2  migrated to schema 1\n" in run().stdout
    app.conf.statemanager_migrate_target = 9
    result = run()
    assert result.exit_code == 78
    text = f"statemanager_migrate_target: this release supports schemas up to {SCHEMA_VERSION}, not 9"
    assert result.stderr.startswith(f"Error: {text}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--target", str(SCHEMA_VERSION + 1)),
            f"this release supports schemas up to {SCHEMA_VERSION}, not {SCHEMA_VERSION + 1}: upgrade",
        ),
        (("--target", "0"), f"the target must be a schema number, 1 … {SCHEMA_VERSION}, not 0"),
        (("--run-token", "r"), "--run-token needs a job: add --job ID"),
        (("--job", ""), "--job"),
    ],
)
def test_invalid_arguments_are_rejected_before_anything_is_done(run, old, error_of, arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2
    assert error_of(result).startswith(words)
    assert not old.get_job(JobKey("etl-42")).incarnation


def test_a_lower_target_is_rejected(run, old, error_of):
    result = run("--target", "1", "--job", "ours")
    assert result.exit_code == 2
    text = f"job 'ours' has schema {SCHEMA_VERSION} and cannot be migrated back to 1"
    assert error_of(result).startswith(text)
    assert "     1  skipped: has a later schema\n" in run("--target", "1").stdout


def test_the_schema_of_the_store_is_migrated_alone(run, old, error_of):
    done = run("--schema")
    assert (done.exit_code, done.output.strip()) == (0, "the tables are up to date")
    assert run("--schema", "--format", "json").output == '{"tables":"up to date"}\n'
    refused = run("--schema", "--dry-run")
    assert (refused.exit_code, "--schema migrates no job" in error_of(refused)) == (2, True)


def test_an_unknown_job(run, old):
    assert run("--job", "nobody").exit_code == 66


def test_help_has_examples_and_exit_codes_and_fits_80_columns(run):
    text = run("--help").stdout
    assert "celery -A proj migrate-state --target 2 --dry-run" in text
    assert "69  the store became unavailable" in text
    assert max(map(len, text.splitlines())) <= 80
