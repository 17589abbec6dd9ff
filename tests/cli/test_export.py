"""``export-state`` writes the rows of a job as JSON lines."""

import json
import math
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest

from celery_statemanager import Manager, StatefulTask, StateManager
from celery_statemanager.cli.common import Exit
from celery_statemanager.integration.outbox.values import result_to_text
from celery_statemanager.integration.submission.export import to_json_types
from celery_statemanager.records import Write
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import FAILED


@pytest.fixture
def states(app):
    return StateManager(app)


@pytest.fixture
def tasks(app, states):
    @app.task(base=StatefulTask, tag="scan", shared=False, name="scan")
    def scan(path, size=None): ...

    @app.task(base=StatefulTask, tag="count", shared=False, name="count")
    def count(found): ...

    return scan, count


@pytest.fixture
def job(states, tasks):
    """A job of six rows: two have finished, one has failed, one was too large, one runs, one waits."""
    scan, count = tasks
    members = [scan.s(f"/{row}") | count.s() for row in range(5)]
    job = states.submit([*members, scan.s("/5", size=Decimal("0.5"))], job_id="etl-42", results=True)
    grid = Grid(states.store, job.manager.ref)
    for row in (0, 1, 3):
        grid.run("scan", row, value="[]")
    grid.run("count", 0, value=result_to_text({"at": datetime(2026, 1, 31, tzinfo=timezone.utc)}, 100))
    grid.run("count", 3, value=result_to_text("x" * 100, 10))
    states.store.write(job.manager.ref, Write("scan", 2, FAILED, message="OSError: no space", block_later_stages=True))
    grid.begin("count", 1)
    states.store.write(job.manager.ref, Write("count", 1, 40, message="page 4", attempt=1))
    grid.run("scan", 5, value=result_to_text(math.nan, 100))
    return job


def objects(result):
    assert (result.exit_code, result.stderr) == (0, "")
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_each_row_is_one_object(command, job):
    found = objects(command("export-state", "etl-42"))
    assert [each["taskIndex"] for each in found] == [0, 1, 2, 3, 4, 5]
    assert found[0] == {
        "taskIndex": 0,
        "tasks": [
            {"task": "scan", "args": ["/0"], "kwargs": {}, "tag": "scan"},
            {"task": "count", "args": [], "kwargs": {}, "tag": "count"},
        ],
        "status": "FINISHED",
        "tag": "count",
        "message": None,
        "attempts": 2,
        "result": {"at": "2026-01-31T00:00:00+00:00"},
    }
    shown = [(each["status"], each["tag"], each["message"], each["attempts"]) for each in found]
    assert shown[1:] == [
        ("40", "count", "page 4", 2),
        ("FAILED", "scan", "OSError: no space", 0),
        ("FINISHED", "count", None, 2),
        ("NOT_STARTED", "scan", None, 0),
        ("FINISHED", "scan", None, 1),
    ]
    assert found[3]["unavailable"].startswith("it takes 102 bytes")
    assert found[5]["result"] is None
    assert found[5]["tasks"][0]["kwargs"] == {"size": "0.5"}
    assert ["result" in each or "unavailable" in each for each in found] == [True, False, False, True, False, True]


def test_only_the_rows_that_have_finished(command, job):
    assert [each["taskIndex"] for each in objects(command("export-state", "etl-42", "--results"))] == [0, 3, 5]


def test_only_the_rows_that_have_failed(command, job):
    (failed,) = objects(command("export-state", "etl-42", "--failed"))
    assert (failed["taskIndex"], failed["tasks"][0]["args"]) == (2, ["/2"])


def test_the_rows_of_a_cancelled_job_that_never_began(command, job):
    job.cancel("wrong input")
    found = objects(command("export-state", "etl-42", "--failed"))
    assert [(each["taskIndex"], each["status"], each["message"]) for each in found] == [
        (2, "FAILED", "OSError: no space"),
        (4, "CANCELLED", "wrong input"),
    ]


def test_a_job_that_keeps_no_results(command, states, tasks, error_of):
    states.submit([tasks[0].s("/")], job_id="etl-43")
    (found,) = objects(command("export-state", "etl-43"))
    assert "result" not in found
    result = command("export-state", "etl-43", "--results")
    assert result.exit_code == Exit.FAILED
    assert "submit it with results=True" in error_of(result)


def test_a_job_without_stored_members(command, store):
    Manager.create(store, "etl-44", num_tasks=2, task_index=1).set_state("scan", 5)
    found = objects(command("export-state", "etl-44"))
    assert found == [
        {"taskIndex": 0, "status": "NOT_STARTED", "tag": "", "message": None, "attempts": 0},
        {"taskIndex": 1, "status": "5", "tag": "scan", "message": None, "attempts": 0},
    ]


def test_a_run_and_a_store(command, states, tasks, url):
    states.submit([tasks[0].s("/run")], job_id="etl-45", run_token="monday")
    (found,) = objects(command("export-state", "etl-45", "--run-token", "monday", "--store", url))
    assert found["tasks"][0]["args"] == ["/run"]
    assert command("export-state", "etl-45").exit_code == Exit.NO_JOB


def test_arguments_that_must_not_be_decoded(command, app, states, tasks, error_of):
    app.conf.accept_content = ["json", "pickle"]
    states.submit([tasks[0].s({1, 2}).set(serializer="pickle")], job_id="etl-46")
    assert objects(command("export-state", "etl-46"))[0]["tasks"][0]["args"] == [[1, 2]]
    app.conf.accept_content = ["json"]
    result = command("export-state", "etl-46")
    assert result.exit_code == Exit.FAILED
    assert error_of(result).startswith("cannot read the arguments of a row: ")


def test_results_and_failures_exclude_each_other(command, job, error_of):
    result = command("export-state", "etl-42", "--results", "--failed")
    assert result.exit_code == Exit.USAGE
    assert "exclude each other" in error_of(result)


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.inf, None),
        (1.5, 1.5),
        (True, True),
        ("ß \ud800", "ß ?"),
        (b"\x00\xff", "AP8="),
        (Decimal("0.10"), "0.10"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (date(2026, 1, 31), "2026-01-31"),
        ((1, [2, {3}]), [1, [2, [3]]]),
        ({1: {"a": math.nan}, "\ud800": 2}, {"1": {"a": None}, "?": 2}),
        (Colour.RED, "red"),
    ],
)
def test_every_value_becomes_strict_json(value, expected):
    assert to_json_types(value) == expected
    json.dumps(to_json_types(value), allow_nan=False)
