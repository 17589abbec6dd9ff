"""Failures are grouped by cause, with the later stages that did not run because of them."""

import json
import re

import pytest

from celery_statemanager import Manager, Status
from celery_statemanager.cli.model import JobModel
from celery_statemanager.cli.rendering.final_summary import final_summary
from celery_statemanager.cli.rendering.frame import Frame
from celery_statemanager.cli.rendering.header import View
from celery_statemanager.cli.rendering.text import COLOURED, plain
from celery_statemanager.models import Scope
from celery_statemanager.records import Begin, Write, new_event_id, new_job, to_datetime

STAGES = ("scan", "hash", "sign")


def fail(store, ref, row, message="OSError: cannot read disk {row}", stage="scan", status=-1):
    """Let a stage of a row fail permanently, as a task does: the later stages of the row are not run."""
    store.begin(ref, Begin(tag=stage, task_index=row, event_id=new_event_id()))
    text = message and message.format(row=row)
    write = Write(tag=stage, task_index=row, status=status, event_id=new_event_id(), message=text, attempt=1)
    write.ends_attempt = write.block_later_stages = True
    store.write(ref, write)


@pytest.fixture
def chain(store):
    """A chain of three stages over 60 rows; stage one fails in 58 of them."""
    job = store.create_job(new_job("chain", 60, STAGES))
    for row in range(60):
        if row in (7, 41):
            for stage in STAGES:
                Manager.open(store, "chain", task_index=row).set_state(stage, Status.FINISHED)
        else:
            fail(store, job.ref, row)
    return job


def model_of(store, job, scope=None):
    model = JobModel(store.get_job(job.key), scope or Scope())
    model.loading = False
    for state in store.list_states(job.ref, model.scope):
        model.apply(state)
    return model


def rows_of(group):
    return str(group.rows.first), {tag: str(rows.first) for tag, rows in group.not_run.items()}


def shown(lines):
    return "\n".join(plain(line) for line in lines)


def test_one_cause_with_different_numbers_is_one_group(store, chain):
    (group,) = model_of(store, chain).failure_report().groups
    assert (group.cause.tag, group.text) == ("scan", "OSError: cannot read disk #")
    assert str(group.rows.first) == "0-6,8-40,42-59"
    assert group.not_run == {"hash": group.rows, "sign": group.rows}


def test_failed_cells_and_cells_not_run_are_counted_apart(store, chain):
    total = model_of(store, chain).total()
    assert (total.finished, total.failed, total.not_run, total.waiting) == (6, 58, 116, 0)
    summary = Manager.open(store, "chain").summary()
    assert (summary.failed, summary.not_run) == (58, 116)


@pytest.mark.parametrize("columns", [80, 100])
def test_the_display_and_the_summary_show_the_cause_once_and_first(store, chain, columns):
    view = View(model_of(store, chain), store_time(store))
    for lines in (Frame(COLOURED).draw(view, columns, 24), final_summary(view, columns, COLOURED)):
        text = shown(lines)
        assert "58 failed · 116 not run" in text
        assert text.count("OSError") == 1
        assert re.search(
            r"✗ FAILED   scan +0-6,8-40,.*42-59 \(58\)  OSError: cannot read disk #\n"
            r"   not run  hash, sign  0-6,8-40,.*42-59 \(58\)$",
            text,
            re.MULTILINE,
        ), text


@pytest.mark.parametrize("columns", [24, 32, 40, 60])
def test_a_narrow_summary_shows_all_rows_and_the_message(store, columns):
    job = store.create_job(new_job("job", 120, ("transform-of-the-long-name", "export")))
    for row in range(0, 120, 3):
        fail(store, job.ref, row, "ValueError: page of a long book is missing", stage="transform-of-the-long-name")
    lines = final_summary(View(model_of(store, job), store_time(store)), columns, COLOURED)
    text = shown(lines)
    assert max(map(len, text.splitlines())) <= columns
    _, failed, not_run = re.split("FAILED|not run  export", text.replace("not run\n", ""))
    for part in (failed, not_run):
        assert re.findall(r"\b\d+(?=[,\s])", part) == [str(row) for row in range(0, 120, 3)]
    assert "ValueError: page of a long book is missing" in " ".join(failed.split())


def store_time(store):
    return to_datetime(store.now())


def test_show_state_groups_failures_and_lists_running_rows(store, chain, command):
    text = command("show-state", "chain").stdout
    assert "6 of 180 finished · 58 failed · 116 not run" in text
    assert text.count("OSError") == 1
    assert text.index("✗ FAILED") < text.index("not run  hash, sign")


def test_show_state_groups_failures_for_programs(store, chain, command):
    (failure,) = json.loads(command("show-state", "chain", "--format", "json").stdout)["failures"]
    rows = "0-6,8-40,42-59"
    assert failure == {
        "tag": "scan",
        "status": -1,
        "statusName": "FAILED",
        "message": "OSError: cannot read disk #",
        "count": 58,
        "taskIDs": rows,
        "notRun": {"hash": rows, "sign": rows},
        "notRunCount": 116,
    }


def test_causes_that_differ_in_more_than_numbers_are_separate(store):
    job = store.create_job(new_job("job", 5, STAGES))
    for row, message in enumerate(("KeyError: 'a'", "KeyError: 'b'", "at 0x7f00 of 3", "at 0x12ab of 44")):
        fail(store, job.ref, row, message.replace("{", "{{"))
    groups = model_of(store, job).failure_report().groups
    assert sorted((group.text, str(group.rows.first)) for group in groups) == [
        ("KeyError: 'a'", "0"),
        ("KeyError: 'b'", "1"),
        ("at # of #", "2-3"),
    ]


def test_a_later_stage_that_fails_by_itself_is_its_own_cause(store):
    job = store.create_job(new_job("job", 2, STAGES))
    fail(store, job.ref, 0)
    fail(store, job.ref, 1, "ValueError: bad hash", stage="hash")
    groups = {group.cause.tag: group for group in model_of(store, job).failure_report().groups}
    assert rows_of(groups["scan"]) == ("0", {"hash": "0", "sign": "0"})
    assert rows_of(groups["hash"]) == ("1", {"sign": "1"})


def test_a_watched_later_stage_names_the_stage_that_failed(store, chain):
    view = View(model_of(store, chain, Scope(tag="sign")), store_time(store))
    assert "not run  0-6,8-40,42-59 (58)  stage 'scan' failed: OSError: cannot read disk #" in shown(
        final_summary(view, 100, COLOURED)
    )


def test_a_stage_that_begins_again_is_removed_from_its_group(store):
    job = store.create_job(new_job("job", 3, STAGES))
    for row in range(2):
        fail(store, job.ref, row)
    model = model_of(store, job)
    store.begin(job.ref, Begin(tag="scan", task_index=1, event_id=new_event_id()))
    for state in store.list_states(job.ref, Scope(task_index=1)):
        model.apply(state)
    (group,) = model.failure_report().groups
    assert rows_of(group) == ("0", {"hash": "0", "sign": "0"})
    assert (model.total().failed, model.total().not_run, model.total().running) == (1, 2, 1)


def test_failures_beyond_the_first_causes_are_counted(store, command):
    job = store.create_job(new_job("job", 300, STAGES))
    for row in range(300):
        fail(store, job.ref, row, "KeyError: " + chr(0x4E00 + row // 5))
    view = View(model_of(store, job), store_time(store))
    assert "… and 200 more failed, 400 more not run, by other causes" in shown(final_summary(view, 80, COLOURED))
    assert re.search(r"… and 2\d\d more failed, \d+ more not run, by other causes", command("show-state", "job").stdout)


def test_a_cancelled_job_lists_the_rows_that_never_began_with_those_that_were_cancelled(store, cancel):
    job = store.create_job(new_job("job", 5, ("scan",)))
    Manager.open(store, "job", task_index=2).set_state("scan", Status.CANCELLED, "user asked")
    cancel(store, "job")
    (group,) = model_of(store, job).failure_report(never_begun=True).groups
    assert (group.text, str(group.rows.first)) == ("user asked", "0-4")
