"""``rerun-state`` runs rows again that failed, or shows which would."""

import json
from dataclasses import replace

import pytest

from celery_statemanager import Manager, StatefulTask, StateManager
from celery_statemanager.records import new_job


@pytest.fixture
def job(app):
    """A job of four rows: one has failed, one has finished, one was lost, one waits."""
    states = StateManager(app)

    @app.task(base=StatefulTask, tag="scan", shared=False)
    def scan(): ...

    job = states.submit([scan.s() for _ in range(4)], job_id="etl-42")
    for row, status in enumerate((-1, 2**31 - 1, -6)):
        Manager.open(states.store, "etl-42", task_index=row).set_state("scan", status, "why")
    return job


def test_the_rows_that_failed_run_again(command, job):
    dry = command("rerun-state", "etl-42", "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, "would rerun 2 rows of etl-42: 0,2\n")
    assert job.generation == 1
    result = command("rerun-state", "etl-42")
    assert (result.exit_code, result.stdout) == (0, "rerunning 2 rows of etl-42 as generation 2: 0,2\n")
    assert job.generation == 2
    assert str(job.summary().missing_indexes) == "0,2-3"


def test_chosen_rows_as_json(command, job):
    result = command("rerun-state", "etl-42", "--rows", "1-2", "--format", "json")
    assert json.loads(result.stdout) == {
        "jobID": "etl-42",
        "runToken": None,
        "generation": 2,
        "rows": "2",
        "skipped": "1",
        "dryRun": False,
    }


def test_nothing_to_run_again(command, job):
    result = command("rerun-state", "etl-42", "--rows", "1,3")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "Error: job 'etl-42' was not rerun: none of these rows has ended without success; skipped 2 rows (finished"
    )


def test_a_job_of_schema_1_is_refused_with_the_reason(command, store, error_of):
    store.create_job(replace(new_job("old", 2), schema_version=1))
    for arguments in ((), ("--dry-run",)):
        result = command("rerun-state", "old", *arguments)
        assert result.exit_code == 1
        assert error_of(result) == (
            "job 'old' cannot be rerun, because its messages are not stored: it was created by an earlier release, which "
            "stored none, or by another program; submit its tasks again under a new run_token"
        )


@pytest.mark.parametrize("rows", ["0-9", "x", "3-1"])
def test_unknown_rows_are_refused(command, job, error_of, rows):
    result = command("rerun-state", "etl-42", "--rows", rows)
    assert result.exit_code == 2
    assert error_of(result)
    assert job.generation == 1
