"""The JSON of jobs, cells, grids and reasons (rule R25)."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from web_kit import HEADERS

from celery_statemanager import Manager, Status
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import smoke

FINISHED = int(Status.FINISHED)
STORES = pytest.mark.parametrize("store_kind", ["memory", "sqlite", "redis", "firestore"])


def write(job, row, *states):
    """Write states of a row: tag, status and message."""
    manager = Manager(job._tracker.store, job._record, row)
    for tag, status, *message in states:
        manager.begin(tag)
        manager.set_state(tag, status, *message)


@pytest.fixture
def job(submit):
    """A job with a finished, a failed, a running and a waiting row."""
    job = submit("etl 42/ä☃", metadata={"owner": "ada"})
    write(job, 0, ("scan", FINISHED), ("hash", FINISHED))
    write(job, 1, ("scan", -12, "disk 7 is full"))
    write(job, 2, ("scan", 40, "half"))
    return job


def url_of(job, rest=""):
    return f"/api/jobs/{quote(job.id, safe='')}{rest}"


@STORES
def test_a_job_is_shown_with_its_counts_tags_callbacks_and_failures(client, job):
    shown = client.get(url_of(job)).json()
    assert (shown["jobID"], shown["runToken"], shown["numTasks"]) == (job.id, None, 4)
    assert (shown["phase"], shown["settled"], shown["metadata"]) == ("failing", False, {"owner": "ada"})
    assert [shown[name] for name in ("expected", "finished", "running", "failed", "notStarted")] == [8, 2, 1, 1, 4]
    assert shown["percent"] == 30.0
    assert list(shown["tags"]) == ["scan", "hash"]
    assert shown["tags"]["scan"]["percent"] == 35.0
    assert shown["outbox"]["published"] == 4
    assert [(each["tag"], each["statusName"], each["count"], each["taskIDs"]) for each in shown["failures"]] == [
        ("scan", "-12", 1, "1")
    ]
    assert shown["callbacks"]["success"]["task"] is None
    assert shown["actions"] == ["cancel", "pause", "rerun"]
    assert not {"failedIDs", "states"} & {*shown}


def test_the_jobs_are_listed_newest_first_and_page_by_page(client, submit):
    for number in range(5):
        submit(f"job-{number}", 1)
    first = client.get("/api/jobs", params={"limit": 2}).json()
    second = client.get("/api/jobs", params={"limit": 2, "cursor": first["cursor"]}).json()
    last = client.get("/api/jobs", params={"limit": 2, "cursor": second["cursor"]}).json()
    names = [each["jobID"] for page in (first, second, last) for each in page["jobs"]]
    assert names == ["job-4", "job-3", "job-2", "job-1", "job-0"]
    assert last["cursor"] is None
    assert client.get("/api/jobs", params={"text": "JOB-3"}).json()["jobs"][0]["jobID"] == "job-3"
    assert client.get("/api/jobs", params={"phase": "finished"}).json() == {"jobs": [], "cursor": None}


@STORES
def test_states_are_listed_by_stage_and_row_and_filtered_by_class(client, job):
    def cells(**params):
        return [(s["tag"], s["taskIndex"]) for s in client.get(url_of(job, "/states"), params=params).json()["states"]]

    assert cells() == [(tag, row) for tag in ("scan", "hash") for row in range(4)]
    assert cells(tag="hash") == [("hash", row) for row in range(4)]
    assert cells(**{"class": "finished"}) == [("scan", 0), ("hash", 0)]
    assert cells(**{"class": "failed"}) == [("scan", 1)]
    assert cells(**{"class": "running"}) == [("scan", 2)]
    assert cells(**{"class": "notStarted"}) == [("scan", 3), ("hash", 1), ("hash", 2), ("hash", 3)]
    assert cells(**{"class": "stalled"}) == cells(**{"class": "notRun"}) == []
    assert cells(task_index=2) == [("scan", 2), ("hash", 2)]
    state = client.get(url_of(job, "/states"), params={"class": "running"}).json()["states"][0]
    assert (state["taskID"], state["status"], state["statusName"], state["percent"]) == (2, 40, "40", 40.0)
    assert (state["message"], state["terminal"], state["version"]) == ("half", False, 2)


def test_pages_of_states_contain_each_cell_once(client, job):
    found, cursor = [], None
    while cursor or not found:
        params = {"limit": 3, **({"cursor": cursor} if cursor else {})}
        page = client.get(url_of(job, "/states"), params=params).json()
        found += [(each["tag"], each["taskID"]) for each in page["states"]]
        cursor = page["cursor"]
    assert found == [(tag, row) for tag in ("scan", "hash") for row in range(4)]


@STORES
def test_cells_that_a_cancellation_ended_are_cancelled_and_not_failed(client, job):
    write(job, 3, ("scan", 10))
    job.cancel("wrong input")
    for row, status in ((2, Status.CANCELLED), (3, Status.FAILED)):
        stopping = Manager(job._tracker.store, job._record, row)
        stopping._attempts["scan"] = 1
        stopping.set_state("scan", status, "stopped")
    grid = client.get(url_of(job, "/grid")).json()["tags"]
    assert grid["scan"]["runs"] == [["finished", 0, 1], ["failed", 1, 1], ["cancelled", 2, 1], ["failed", 3, 1]]
    assert grid["hash"]["runs"] == [["finished", 0, 1], ["cancelled", 1, 3]]
    page = client.get(url_of(job, "/states"), params={"class": "cancelled"}).json()
    assert [(each["tag"], each["taskID"], each["statusName"], each["message"]) for each in page["states"]] == [
        ("scan", 2, "CANCELLED", "stopped"),
        *(("hash", row, "CANCELLED", "wrong input") for row in (1, 2, 3)),
    ]
    failed = client.get(url_of(job, "/states"), params={"class": "failed"}).json()["states"]
    assert [(each["tag"], each["taskID"]) for each in failed] == [("scan", 1), ("scan", 3)]
    assert client.get(url_of(job)).json()["cancelled"]["reason"] == "wrong input"


def test_rows_that_a_rerun_has_not_chosen_stay_cancelled(client, job):
    job.cancel("wrong input")
    stopping = Manager(job._tracker.store, job._record, 2)
    stopping._attempts["scan"] = 1
    stopping.set_state("scan", Status.CANCELLED)
    assert job.rerun("1").rows
    assert client.get(url_of(job, "/grid")).json()["tags"]["scan"]["runs"] == [
        ["finished", 0, 1],
        ["notStarted", 1, 1],
        ["cancelled", 2, 2],
    ]


@smoke
@STORES
def test_the_grid_has_a_run_for_each_class_and_covers_all_expected_rows(client, job):
    grid = client.get(url_of(job, "/grid")).json()
    assert grid == {
        "generation": 1,
        "tags": {
            "scan": {
                "rows": 4,
                "runs": [["finished", 0, 1], ["failed", 1, 1], ["running", 2, 1], ["notStarted", 3, 1]],
            },
            "hash": {"rows": 4, "runs": [["finished", 0, 1], ["notStarted", 1, 3]]},
        },
    }
    assert [*client.get(url_of(job, "/grid"), params={"tag": "hash"}).json()["tags"]] == ["hash"]


@pytest.fixture
def broken(states):
    """A job of 1,000 rows: 300 have failed for one cause, and then 20 for another one."""
    grid = Grid.submitted(states.store, 1_000, ("scan",), "broken")
    for row in range(320):
        grid.write("scan", row, Status.FAILED if row < 300 else -12)
    return "/api/jobs/broken"


def test_a_requested_number_of_failures_is_grouped_and_the_others_are_counted(client, broken):
    def groups(**params):
        shown = client.get(broken, params=params).json()
        return [(each["status"], each["count"]) for each in shown["failures"]], shown["otherFailed"]

    assert groups() == ([(-1, 200)], 120)
    assert groups(failures=310) == ([(-1, 300), (-12, 10)], 10)
    assert groups(failures=10_000) == ([(-1, 300), (-12, 20)], 0)
    for invalid in ("0", "10001", "all"):
        response = client.get(broken, params={"failures": invalid})
        assert response.status_code == 400
        assert "failures must be a whole number, 1 … 10000" in response.json()["error"]["message"]


def test_reasons_are_those_of_why_state(client, job):
    why = client.get(url_of(job, "/why")).json()
    assert why["settled"] is False
    assert {each["code"] for each in why["reasons"]} == {"running", "queued", "waits"}
    assert all({*each} == {"tag", "taskIDs", "code", "text"} for each in why["reasons"])


def test_a_job_without_a_plan_is_shown(client, states):
    manager = Manager.create(states.store, "planless", num_tasks=1, task_index=0)
    assert client.get("/api/jobs/planless").json()["tags"] == {}
    assert client.get("/api/jobs/planless/states").json() == {"states": [], "cursor": None}
    manager.set_state("scan", FINISHED)
    shown = client.get("/api/jobs/planless").json()
    assert (shown["settled"], shown["phase"], [*shown["tags"]]) == (True, "finished", ["scan"])
    assert shown["outbox"] is None


def test_a_message_of_60_kilobytes_and_strange_characters_is_passed_on(client, job):
    message = "<script>alert(1)</script> \u202e \x1b[31m " + "x" * 60_000
    write(job, 3, ("scan", 2, message))
    state = client.get(url_of(job, "/states"), params={"task_index": 3, "tag": "scan"}).json()["states"][0]
    assert state["message"] == message


def test_a_run_is_found_by_its_token(client, submit):
    submit("nightly", 1, run_token="monday")
    submit("nightly", 2, run_token="tuesday")
    assert client.get("/api/jobs/nightly", params={"run_token": "tuesday"}).json()["numTasks"] == 2
    missing = client.get("/api/jobs/nightly")
    assert missing.status_code == 404
    assert {each["runToken"] for each in missing.json()["error"]["nearest"]} == {"monday", "tuesday"}


@STORES
def test_a_job_is_paused_resumed_cancelled_and_rerun(client, job):
    def post(action, **body):
        return client.post(url_of(job, f"/{action}"), json=body, headers=HEADERS)

    assert post("pause", reason="lunch").json() == {"paused": True}
    assert client.get(url_of(job)).json()["outbox"]["pauseReason"] == "lunch"
    assert post("pause").json() == {"paused": False}
    assert client.post(url_of(job, "/resume"), headers=HEADERS).json() == {"resumed": True}
    assert post("cancel", reason="wrong input").json() == {"cancelled": True}
    assert post("cancel").json() == {"cancelled": False}
    write_end = Manager(job._tracker.store, job._record, 2)
    write_end._attempts["scan"] = 1
    write_end.set_state("scan", -1, "stopped")
    rerun = post("rerun", which="1,3").json()
    assert rerun == {"rows": "1,3", "skipped": "", "count": 2}
    assert client.get(url_of(job)).json()["generation"] == 2


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"which": "9-12"}, "not 12"),
        ({"which": 5}, "which must be"),
        ({"rows": "1"}, "unknown field 'rows'"),
        (["failed"], "JSON object"),
    ],
)
def test_an_invalid_rerun_is_refused(client, job, body, text):
    response = client.post(url_of(job, "/rerun"), content=json.dumps(body), headers=HEADERS)
    assert response.status_code == 400
    assert text in response.json()["error"]["message"]
    assert job.generation == 1
