"""``show-state`` shows everything about one job."""

import json
import re
from dataclasses import replace

import pytest

from celery_statemanager import Manager, Status
from celery_statemanager.cli.rendering.text import width
from celery_statemanager.completion import expire, record_end
from celery_statemanager.indexset import IndexSet
from celery_statemanager.plan import Plan
from celery_statemanager.records import CALLBACK_ROW, Flow, Latch, Policy, Write, new_event_id, new_job
from celery_statemanager.testing import Grid

FINISHED = int(Status.FINISHED)
FAILED = int(Status.FAILED)


@pytest.fixture
def run(command):
    def run(*arguments):
        return command("show-state", *arguments)

    return run


@pytest.fixture
def shown(run):
    """Give the JSON object of a job."""

    def shown(*arguments):
        result = run(*arguments, "--format", "json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return shown


@pytest.fixture
def etl(store, write):
    """A job with everything: two tags, failures of both, callbacks, unpublished rows."""
    callbacks = {"success": '{"task": "proj.publish"}', "failure": '{"task": "proj.alert"}'}
    Grid.submitted(store, 10, ("ingest", "export"), "etl-42", published=7, **callbacks)
    write("etl-42", *((row, "ingest", FINISHED, None) for row in range(4)), (4, "ingest", 40, "page 4"))
    write("etl-42", (9, "ingest", -5, "too slow"), (3, "export", -1, "no\x1b[2J such page"))
    return "etl-42"


def run_callback(store, job_id, latch, status, message=None):
    ref = Manager.open(store, job_id).ref
    store.write(ref, Write(tag=latch, task_index=CALLBACK_ROW, status=status, event_id=new_event_id(), message=message))


def test_a_complete_job_as_json(etl, shown):
    found = shown(etl)
    assert (found["jobID"], found["phase"], found["status"], found["numTasks"]) == ("etl-42", "failing", -5, 10)
    assert list(found["tags"]) == ["ingest", "export"]
    assert found["tags"]["ingest"]["failedIDs"] == "9"
    assert found["tags"]["export"]["missingIDs"] == "0-2,4-9"
    assert (found["outbox"]["published"], found["outbox"]["maxInFlight"]) == (7, None)
    assert found["callbacks"]["failure"]["task"] == "proj.alert"
    assert found["callbacks"]["failure"]["decidedAt"] is not None
    assert found["callbacks"]["success"] == {
        "task": "proj.publish",
        "decidedAt": None,
        "publishedAt": None,
        "state": None,
    }


def test_failed_rows_come_first_then_running_ones(etl, shown):
    states = shown(etl)["states"]
    assert [(each["tag"], each["taskID"], each["status"]) for each in states] == [
        ("ingest", 9, -5),
        ("export", 3, -1),
        ("ingest", 4, 40),
    ]


def test_the_limit_bounds_the_rows_and_the_others_are_counted(etl, run, shown):
    found = shown(etl, "--limit", "1")
    assert (len(found["states"]), found["statesHidden"]) == (1, 2)
    assert "more running" not in run(etl, "--limit", "1").stdout
    assert "and 1 more running: --limit shows them" in run(etl, "--limit", "0").stdout
    assert shown(etl, "--limit", "0")["states"] == []


def test_a_complete_job_as_text(etl, run):
    result = run(etl)
    lines = result.stdout.splitlines()
    assert lines[0] == "etl-42 · 10 tasks · failing"
    assert max(map(width, lines)) <= 80
    for part in (
        "4 of 20 finished · 1 running · 2 failed · 13 waiting",
        "published   7 of 10 rows",
        "on_success  proj.publish  not decided yet",
        "on_failure  proj.alert    decided",
        "not published yet",
        "✗ TIMED_OUT  ingest  9  too slow",
        "✗ FAILED     export  3  no[2J such page",
        "4  ingest  40%          page 4",
    ):
        assert part in result.stdout
    assert "\x1b" not in result.stdout


def test_the_result_of_a_callback(store, etl, run, shown):
    run_callback(store, etl, "failure", -1, "OSError: no mail today")
    assert "now, FAILED: OSError: no mail today" in run(etl).stdout
    assert shown(etl)["callbacks"]["failure"]["state"]["status"] == -1


def test_a_callback_that_will_not_be_called(store, run, write):
    store.create_job(new_job("job", 1, ("a",)).with_latches(success=Latch('{"task": "proj.publish"}')))
    write("job", (0, "a", -1, "boom"))
    text = run("job").stdout
    assert "on_success  proj.publish  will not be called" in text
    assert "on_settled" not in text
    assert re.search(r", (now|\d+s ago): the first cell failed permanently", text)


def test_a_cancelled_job(store, etl, run, shown, cancel):
    cancel(store, etl, "user asked")
    found = shown(etl)
    assert found["cancelled"]["reason"] == "user asked"
    text = run(etl).stdout
    assert ": user asked" in text
    assert "cancelled" in text.splitlines()[0]


def test_a_cancelled_job_shows_the_cells_that_the_cancellation_ended(store, etl, run, shown, cancel):
    cancel(store, etl, "user asked")
    found = shown(etl)
    cancelled = {each["tag"]: each["taskIDs"] for each in found["failures"] if each["status"] == Status.CANCELLED}
    assert cancelled == {"ingest": "5-8", "export": "0-2,4-9"}
    states = [(each["tag"], each["taskID"], each["status"], each["message"]) for each in found["states"]]
    assert states[:3] == [
        ("ingest", 9, -5, "too slow"),
        ("export", 3, -1, "no\x1b[2J such page"),
        ("ingest", 5, -7, "user asked"),
    ]
    assert len(states) + found["statesHidden"] == 16
    assert re.search(r"CANCELLED +ingest +5-8", run(etl).stdout)


def test_a_job_without_a_plan_that_is_marked_deleted(store, run):
    Manager.create(store, "job", num_tasks=3).tombstone_job()
    text = run("job").stdout
    assert text.startswith("job (hidden) · 3 tasks · waiting\n")
    assert "hidden from listings, deleted later" in text
    assert "none: every row is expected under every tag seen" in text


def test_the_run_token_selects_the_run(store, etl, shown):
    store.create_job(new_job(etl, 3, ("x",), "r2"))
    assert shown(etl, "--run-token", "r2")["numTasks"] == 3


def test_an_unknown_job(run, error_of):
    result = run("nope")
    assert result.exit_code == 66
    assert error_of(result).startswith("no job 'nope' in this store")


def test_the_number_of_rows_in_flight_is_shown(store, run, shown):
    Grid.submitted(store, 2_500, flow=Flow(1_200))
    assert "published   1,200 of 2,500 rows, at most 1,200 in flight" in run("job").stdout
    assert shown("job")["outbox"] == {
        "published": 1_200,
        "inFlight": 1_200,
        "maxInFlight": 1_200,
        "paused": False,
        "pauseReason": None,
    }


def test_a_pause_and_a_generation_are_shown(store, run, shown):
    grid = Grid.submitted(store, 3, published=2)
    grid.run("a", 0, -1)
    grid.update(lambda job: replace(job, flow=Flow(paused=True, pause_reason="deploying")))
    grid.update(lambda job: job.with_generation(IndexSet([0]), 1))
    text = run("job").stdout
    assert text.startswith("job · 3 tasks · generation 2 · paused\n")
    assert "paused      deploying; 1 row in flight\n" in text
    assert (shown("job")["generation"], shown("job")["outbox"]["pauseReason"]) == (2, "deploying")


def test_a_job_without_messages_has_no_outbox(store, run, shown):
    Manager.create(store, "managers", num_tasks=1, tags=("a",))
    assert shown("managers")["outbox"] is None
    assert "published" not in run("managers").stdout


def test_the_failed_rows_of_a_job_that_tolerates_some(store, run, shown):
    grid = Grid.create(store, 4, ("a",), policy=Policy(1))
    grid.run("a", 0, FAILED)
    assert "failed      1 of at most 1 failed rows" in run("job").stdout
    assert (shown("job")["failedRows"], shown("job")["maxFailed"], shown("job")["phase"]) == (1, 1, "running")
    grid.run("a", 1, FAILED)
    text = run("job").stdout
    assert "failed      2 of at most 1 failed rows" in text
    assert ": too many rows have failed" in text
    assert ": 2 rows failed, at most 1 may (max_failed)" in text


def test_the_deadline_of_a_job(store, run, shown):
    grid = Grid.create(store, 2, ("a",), policy=Policy(deadline=store.now() + 724_900_000))
    assert "deadline    in 12m 04s (2" in run("job").stdout
    assert shown("job")["deadline"].endswith("Z")
    grid.update(lambda job: replace(job, policy=Policy(deadline=store.now() - 5_000_000)))
    assert "deadline    passed 5s ago, the next begin or sweep cancels the job" in run("job").stdout
    expire(store, grid.ref)
    text = run("job").stdout
    assert "deadline  " not in text
    assert re.search(r"cancelled   \S+ \S+, now: its deadline of", text)


@pytest.fixture
def chord(store):
    """A job with a body of two stages and errbacks, whose only row has finished."""
    job = new_job("a chord", 1, ("a",)).with_latches(
        success=Latch('{"task": "proj.collect"}', is_body=True),
        **{"body-2": Latch('{"task": "proj.publish"}', is_body=True), "errbacks": Latch('{"task": "proj.alert"}')},
    )
    grid = Grid(store, store.create_job(job).ref)
    grid.run("a", 0)
    return grid


def lines(run, *labels):
    text = run("a chord").stdout
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith(labels)]


def test_the_stages_of_a_body_and_its_errbacks_are_shown(chord, store, run):
    found = lines(run, "body", "errbacks")
    assert found[0].startswith("body 1 of 2 proj.collect decided")
    assert found[1:] == ["body 2 of 2 proj.publish not decided yet", "errbacks proj.alert not decided yet"]
    run_callback(store, "a chord", "success", int(Status.LOST), "lost with its worker w")
    cell = store.get_cell(chord.ref, "success", CALLBACK_ROW)
    assert record_end(store, chord.ref, "success", cell, calls_errbacks=True) == ("errbacks",)
    stages = lines(run, "body")
    assert "LOST: lost with its worker w" in stages[0]
    assert stages[1] == "body 2 of 2 proj.publish will not be called"
    assert "not published yet" in lines(run, "errbacks")[0]
    chord.update(lambda job: job.with_latches(errbacks=replace(job.latches["errbacks"], published_at=store.now())))
    assert lines(run, "errbacks") == ["errbacks proj.alert called now"]


def test_a_job_without_rows_is_shown(store, run):
    job = replace(new_job("empty", 1), num_tasks=0, plan=Plan(()))
    decided = replace(job.latches["settled"], decided_at=store.now())
    store.create_job(job.with_latches(success=decided, settled=decided))
    assert "0 of 0 finished" in run("empty").stdout
