"""``gc-state`` reports what it does and, on a dry run, what it would do."""

import json
import re

import pytest

from celery_statemanager import JobNotFound, Manager
from celery_statemanager.testing.kit import every_job


@pytest.fixture
def run(command):
    def run(*arguments):
        return command("gc-state", *arguments)

    return run


@pytest.fixture
def idle(store):
    for name in ("etl-42", "a\x1bname".replace("\x1b", "-")):
        Manager.create(store, name, num_tasks=2, tags=("a",))
    now = store.now()
    while store.now() - now < 20_000:
        pass
    return store


HIDE = ("--tombstone-age", "1ms", "--delete-age", "90d")
DELETE = ("--tombstone-age", "1ms", "--delete-age", "2ms")


def test_jobs_are_hidden_then_deleted_and_counted(run, idle):
    result = run(*HIDE)
    assert result.exit_code == 0
    assert "     2  hidden\n" in result.stdout
    assert all(job.tombstoned_at for job in every_job(idle))
    report = json.loads(run(*DELETE, "--format", "json").stdout)
    assert (report["deleted"], report["dryRun"], report["skipped"]) == (2, False, {})
    with pytest.raises(JobNotFound):
        Manager.open(idle, "etl-42")


def test_a_dry_run_lists_each_job_and_changes_nothing(run, idle):
    before = list(every_job(idle))
    result = run(*DELETE, "--dry-run")
    text = result.stdout
    assert result.stderr == "note: nothing was written\n"
    assert re.search(r"^would delete: etl-42, idle for \d+s$", text, re.MULTILINE)
    assert "     2  would be deleted\n" in text
    *jobs, report = map(json.loads, run(*HIDE, "--dry-run", "--format", "json").stdout.splitlines())
    assert [(job["jobID"], job["action"]) for job in jobs] == [("etl-42", "tombstoned"), ("a-name", "tombstoned")]
    assert (report["tombstoned"], report["dryRun"]) == (2, True)
    assert list(every_job(idle)) == before


def test_lines_fit_80_columns(run, store):
    Manager.create(store, "x" * 150, num_tasks=1)
    now = store.now()
    while store.now() - now < 5_000:
        pass
    first, *others = run(*HIDE, "--dry-run").stdout.splitlines()
    assert max(map(len, [first, *others])) <= 80
    assert re.search(r"x…x+, idle for \d+s$", first)


def test_the_default_ages_are_those_of_the_settings(run, app, idle):
    app.conf.update(statemanager_gc_tombstone_age=0.001, statemanager_gc_delete_age="90d")
    assert "     2  hidden\n" in run().stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "both ages are required, for example --tombstone-age 30d --delete-age 90d"),
        (("--tombstone-age", "30d"), "both ages are required, for example --tombstone-age 30d --delete-age 90d"),
        (("--tombstone-age", "30", "--delete-age", "90d"), "tombstone age: not a duration: '30'"),
        (("--tombstone-age", "4w", "--delete-age", "28d"), "the delete age (28d) must be longer than the tombstone"),
    ],
)
def test_invalid_ages_are_rejected_before_anything_is_done(run, idle, error_of, arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2
    assert error_of(result).startswith(words)
    assert not any(job.tombstoned_at for job in every_job(idle))


def test_an_invalid_setting_is_named(run, app, error_of):
    app.conf.statemanager_gc_tombstone_age = "30d"
    result = run()
    assert result.exit_code == 78
    assert error_of(result).startswith(
        "statemanager_gc_tombstone_age and statemanager_gc_delete_age must be set together"
    )


def test_help_has_examples_and_exit_codes(run):
    text = run("--help").stdout
    assert "celery -A proj gc-state --tombstone-age 30d --delete-age 90d" in text
    assert "69  the store became unavailable" in text
