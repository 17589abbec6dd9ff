"""``why-state`` prints sentences that fit the terminal and contain no control characters."""

import json
from dataclasses import replace

import pytest

from celery_statemanager import Manager, Status
from celery_statemanager.cli.rendering.text import width
from celery_statemanager.completion import expire, publish_due, record_end
from celery_statemanager.explain import JobDiagnosis
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import CALLBACK_ROW, Begin, Latch, Policy, new_event_id, new_job
from celery_statemanager.testing import Grid


@pytest.fixture
def run(command):
    def run(*arguments):
        return command("why-state", *arguments)

    return run


@pytest.fixture
def etl(store):
    """A job with rows queued, running for nobody, written by a Manager, and one that waits for a stage."""
    Grid.submitted(store, 4, ("ingest", "export"), "etl-42")
    manager = Manager.open(store, "etl-42", task_index=0)
    manager.set_state("ingest", Status.FINISHED)
    store.begin(manager.ref, Begin(tag="ingest", task_index=1, event_id=new_event_id(), owner="pod-\x1b[2J3:4711:ab"))
    Manager.open(store, "etl-42", task_index=2).set_state("ingest", 40, "page 4")
    return "etl-42"


def test_each_range_of_open_rows_has_a_sentence(etl, run):
    result = run(etl)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "etl-42: not settled, 7 cells open:"
    assert any(line.startswith("  ingest  3: no live worker has received it") for line in lines)
    assert any(line.startswith("  ingest  1: lost on pod-[2J3, worker pid 4711, attempt 1") for line in lines)
    assert any(line.startswith("  ingest  2: written by a Manager") for line in lines)
    assert "\x1b" not in result.stdout
    assert max(map(len, lines)) <= 80


def test_the_reasons_as_json(etl, run):
    reasons = [json.loads(line) for line in run(etl, "--format", "json").stdout.splitlines()]
    assert {(each["tag"], each["taskIDs"], each["code"]) for each in reasons} >= {
        ("ingest", "3", "queued"),
        ("ingest", "1", "lost"),
        ("ingest", "2", "written"),
        ("export", "1-3", "waits"),
    }


@pytest.mark.parametrize(("job_id", "tag"), [("x" * 200, "t" * 200), ("夜間" * 100, "取り込み🎉" * 40)])
def test_long_and_wide_names_fit_80_columns(store, run, job_id, tag):
    Manager.create(store, job_id, num_tasks=20_001, tags=(tag,))
    for row in range(0, 200, 2):
        Manager.open(store, job_id, task_index=row).set_state(tag, Status.FINISHED)
    name, verdict, first, *others = run(job_id).stdout.splitlines()
    assert max(map(width, (name, verdict, first, *others))) <= 80
    assert name.endswith("…")
    assert verdict == "  not settled, 19,901 cells open:"
    assert "…  1,3,5,7,9," in first
    assert others[-1].endswith("…): never written; no task was submitted for it") or "(19,901)" in others[-1]


def test_a_settled_job_has_no_open_cells(store, run, write):
    Manager.create(store, "job", num_tasks=1, tags=("a",))
    write("job", (0, "a", Status.FINISHED, None))
    assert run("job").stdout == "job: settled, no cell is open\n"


def test_a_cancelled_job_shows_the_reason(store, run, cancel, write):
    Manager.create(store, "job", num_tasks=2, tags=("a",))
    write("job", (0, "a", 40, None))
    cancel(store, "job", "user\x1b[2J asked")
    assert run("job").stdout.startswith("job: cancelled (user[2J asked), not settled, 1 cell open:\n")


def test_a_successor_created_meanwhile_is_not_shown(store, run, cancel, monkeypatch):
    """The job is deleted and created again while the command reads; the verdict is that of the job it has read."""
    job = Manager.create(store, "etl-42", num_tasks=4, tags=("ingest",))
    list_workers = store.list_workers

    def replaced_meanwhile(*arguments, **options):
        job.delete_job()
        Manager.create(store, "etl-42", num_tasks=2, tags=("a",))
        cancel(store, "etl-42", "the successor")
        return list_workers(*arguments, **options)

    monkeypatch.setattr(store, "list_workers", replaced_meanwhile)
    assert run("etl-42").stdout.startswith("etl-42: not settled, 4 cells open:\n  ingest  0-3 (4): never written")


def test_an_unknown_job(run, error_of):
    result = run("nope")
    assert result.exit_code == 66
    assert error_of(result).startswith("no job 'nope' in this store")


def test_a_successor_that_comes_meanwhile_is_not_explained(store, etl, run, monkeypatch):
    diagnose = JobDiagnosis.reasons

    def diagnose_and_replace(self):
        reasons = diagnose(self)
        Manager.open(store, etl).delete_job()
        Manager.create(store, etl, num_tasks=1, tags=("other",))
        return reasons

    explained = run(etl).stdout
    monkeypatch.setattr(JobDiagnosis, "reasons", diagnose_and_replace)
    assert run(etl).stdout.splitlines()[0] == explained.splitlines()[0] == "etl-42: not settled, 7 cells open:"


def test_rows_of_an_interrupted_rerun_have_a_sentence(store, run):
    grid = Grid.submitted(store, 3, job_id="etl-43")
    grid.run("a", 0, -1)
    grid.update(lambda job: job.with_generation(IndexSet([0]), 1))
    lines = run("etl-43").stdout.splitlines()
    assert any(line.startswith("  a  0: being reset for generation 2; no sweep yet") for line in lines)


def test_a_job_that_was_cancelled_because_too_many_rows_failed(store, run):
    grid = Grid.create(store, 4, ("a",), policy=Policy(0))
    grid.run("a", 0, Status.FAILED)
    text = " ".join(run("job").stdout.split())
    assert text == "job cancelled (1 row failed, at most 0 may (max_failed)), settled, no cell is open"


def test_the_deadline_of_a_job(store, run):
    grid = Grid.create(store, 2, ("a",), policy=Policy(deadline=store.now() + 724_900_000))
    assert "not settled, deadline in 12m 04s, 2 cells open:" in " ".join(run("job").stdout.split())
    grid.update(lambda job: replace(job, policy=Policy(deadline=1)))
    expire(store, grid.ref)
    text = " ".join(run("job").stdout.split())
    assert "cancelled (its deadline of 1970-01-01 00:00:00 UTC passed), settled" in text


def test_the_stages_of_a_body_are_named(store, run):
    body = {"success": Latch('{"task": "a"}', is_body=True), "body-2": Latch('{"task": "b"}', is_body=True)}
    grid = Grid(store, store.create_job(new_job("chord", 1, ("a",)).with_latches(**body, errbacks=Latch("{}"))).ref)
    grid.run("a", 0)
    grid.write("success", CALLBACK_ROW, Status.FINISHED)
    record_end(store, grid.ref, "success", grid.cell("success", CALLBACK_ROW))
    grid.begin("body-2", CALLBACK_ROW)
    found = run("chord").stdout.splitlines()
    assert found[0] == "chord: settled, but a callback has not finished:"
    assert found[1].startswith("  body 2 of 2: attempt 1 of a Manager")
    assert len(found) == 2


def test_errbacks_that_were_called_are_no_reason(store, run):
    latches = {"success": Latch("{}", is_body=True), "errbacks": Latch('{"task": "alert"}')}
    grid = Grid(store, store.create_job(new_job("chord", 1, ("a",)).with_latches(**latches)).ref)
    grid.run("a", 0, Status.FAILED)
    assert "  errbacks: decided 0 s ago, not published" in run("chord").stdout
    publish_due(store, grid.ref, ["failure"], lambda *_: True)
    assert run("chord").stdout == "chord: settled, no cell is open\n"
