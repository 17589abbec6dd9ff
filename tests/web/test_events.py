"""Events of a job: cells that any server continues, summaries, and how a stream ends (rule R25)."""

from __future__ import annotations

import threading
import time

import pytest
from web_kit import PATIENCE, Server, events, everyone, new_states, serving

from celery_statemanager import Manager, Status
from celery_statemanager.testing import FaultyStore
from celery_statemanager.testing.kit import smoke

FINISHED = int(Status.FINISHED)
STORES = pytest.mark.parametrize("store_kind", ["memory", "sqlite", "redis", "firestore"])
EVENTS = "/api/jobs/etl/events"


@pytest.fixture
def job(submit):
    return submit("etl", 3, ("scan",))


def write(job, row, status, tag="scan"):
    manager = Manager(job._tracker.store, job._record, row)
    if status not in (FINISHED, -1) or job.get_state(tag, row).status == 0:
        manager.begin(tag)
    else:
        manager._attempts[tag] = job.get_state(tag, row).attempt
    manager.set_state(tag, status)


def finish(job):
    for row in range(job.num_tasks):
        if not job.get_state("scan", row).terminal:
            write(job, row, FINISHED)


def until(stream, name):
    """Return the events up to the first one with a name."""
    found = []
    for event in stream:
        found.append(event)
        if event.name == name:
            return found
    raise AssertionError(f"the stream ended without {name}: {found}")


@STORES
def test_cells_are_sent_as_they_change_and_the_stream_ends_with_the_job(client, job):
    write(job, 0, 40)
    with events(client, EVENTS, view="cells") as stream:
        first = next(stream)
        assert (first.name, first.data["taskIndex"], first.data["statusName"]) == ("state", 0, "40")
        assert (first.data["percent"], first.data["terminal"]) == (40.0, False)
        finish(job)
        rest = list(stream)
    assert [each.name for each in rest].count("settled") == 1
    assert rest[-1].data == {"generation": 1, "phase": "finished"}
    newest = {each.data["taskIndex"]: each.data["status"] for each in rest[:-1]}
    assert newest == dict.fromkeys(range(3), FINISHED)


@smoke
@STORES
def test_another_server_continues_at_the_id_of_an_event(client, states, store_url, store_kind, job):
    for row in range(3):
        write(job, row, 40)
    with events(client, EVENTS, view="cells") as stream:
        seen = [next(stream) for _ in range(3)]
    write(job, 1, FINISHED)
    other = states if store_kind == "memory" else new_states(store_url)
    with serving(other.web(everyone)) as second:
        with events(second, EVENTS, view="cells", last_event_id=seen[-1].id) as stream:
            event = next(stream)
            assert (event.name, event.data["taskIndex"], event.data["status"]) == ("state", 1, FINISHED)
            write(job, 2, FINISHED)
            event = next(stream)
            assert (event.data["taskIndex"], event.data["status"]) == (2, FINISHED)
        with events(second, EVENTS, view="cells", since=seen[-1].id) as stream:
            assert {next(stream).data["taskIndex"] for _ in range(2)} == {1, 2}
    other.store.close()


def test_the_header_takes_precedence_because_browsers_reconnect_with_the_same_url(client, job):
    write(job, 0, 40)
    with events(client, EVENTS, view="cells") as stream:
        old = next(stream).id
    write(job, 1, 40)
    with events(client, EVENTS, view="cells", since=old) as stream:
        new = next(stream).id
    write(job, 2, 40)
    with events(client, EVENTS, view="cells", since=old, last_event_id=new) as stream:
        assert next(stream).data["taskIndex"] == 2


@STORES
def test_a_cursor_of_another_incarnation_resets_and_replays(client, job, submit):
    write(job, 0, 40)
    with events(client, EVENTS, view="cells") as stream:
        old = next(stream).id
    job.delete()
    again = submit("etl", 2, ("scan",))
    write(again, 1, 60)
    with events(client, EVENTS, view="cells", last_event_id=old) as stream:
        reset, state = next(stream), next(stream)
    assert (reset.name, reset.data) == ("reset", {})
    assert (state.name, state.data["taskIndex"], state.data["status"]) == ("state", 1, 60)


@STORES
@pytest.mark.parametrize("view", ["cells", "summary"])
def test_a_reconnect_at_the_end_is_answered_204_until_a_rerun(client, job, view):
    write(job, 0, FINISHED)
    write(job, 1, FINISHED)
    job.cancel()
    with events(client, EVENTS, view=view) as stream:
        end = until(stream, "settled")[-1]
    assert end.id.startswith("settled.1/")
    ended = client.get(EVENTS, params={"view": view}, headers={"Last-Event-ID": end.id})
    assert (ended.status_code, ended.content) == (204, b"")
    job.rerun("2")
    with events(client, EVENTS, view=view, last_event_id=end.id) as stream:
        if view == "summary":
            assert next(stream).data["generation"] == 2
        write(job, 2, FINISHED)
        found = until(stream, "settled")
    assert found[-1].data == {"generation": 2, "phase": "finished"}
    if view == "cells":
        assert {each.data["taskIndex"] for each in found[:-1]} == {2}
    with events(client, EVENTS, view=view) as stream:
        assert until(stream, "settled")[-1].data["generation"] == 2


def test_a_job_that_settled_without_a_cell_continues_with_a_reset_after_a_rerun(client, job):
    job.cancel()
    with events(client, EVENTS, view="cells") as stream:
        [end] = list(stream)
    assert client.get(EVENTS, headers={"Last-Event-ID": end.id}, params={"view": "cells"}).status_code == 204
    job.rerun("0")
    with events(client, EVENTS, view="cells", last_event_id=end.id) as stream:
        assert next(stream).name == "reset"


@STORES
def test_summaries_are_sent_at_once_and_at_most_twice_a_second(client, job):
    with events(client, EVENTS) as stream:
        first = next(stream)
        assert (first.name, first.data["phase"], first.data["notStarted"]) == ("summary", "waiting", 3)
        assert [*first.data["tags"]] == ["scan"]
        began = time.monotonic()
        writer = threading.Thread(target=lambda: [write(job, 0, 2 + number % 90) for number in range(100)])
        writer.start()
        count = 0
        while next(stream).data["running"] != 1 or writer.is_alive():
            count += 1
        finish(job)
        found = until(stream, "settled")
        took = time.monotonic() - began
    writer.join()
    assert count + len(found) - 1 <= took / 0.5 + 2
    assert found[-2].data["finished"] == 3
    assert found[-1].data == {"generation": 1, "phase": "finished"}


@STORES
@pytest.mark.parametrize("view", ["cells", "summary"])
def test_the_deletion_of_a_job_ends_its_streams(client, job, view):
    write(job, 0, 40)
    with events(client, EVENTS, view=view) as stream:
        next(stream)
        job.delete()
        assert [each.name for each in stream][-1] == "deleted"
    assert client.get(EVENTS).status_code == 404


@pytest.fixture
def faulty(states):
    states.store = FaultyStore(states.store)
    return states.store


@pytest.mark.parametrize("view", ["cells", "summary"])
def test_an_unavailable_store_is_reported_by_an_event(states, faulty, job, view):
    with serving(states.web(everyone)) as client, faulty.away():
        with client.stream("GET", EVENTS, params={"view": view}) as response:
            text = response.read().decode()
    assert text.count("event: ") == 1
    assert "event: unavailable" in text
    assert 5_000 <= int(text.rpartition("retry: ")[2].partition("\n")[0]) <= 15_000


@pytest.mark.parametrize("view", ["cells", "summary"])
def test_an_outage_of_the_store_ends_the_stream_and_a_reconnect_continues(states, faulty, job, view, monkeypatch):
    monkeypatch.setattr("celery_statemanager.web.streams.HEARTBEAT", 0.5)
    write(job, 0, 40)
    with serving(states.web(everyone)) as client:
        with events(client, EVENTS, view=view) as stream:
            seen = next(stream)
            with faulty.away():
                Manager(faulty.inner, job._record, 1).set_state("scan", 50)  # ends the read of the watch
                end = [*stream][-1]
                assert end.name == "unavailable"
                assert end.data == {"message": "the store cannot be reached; the log of the server has the reason"}
        Manager(faulty.inner, job._record, 1).set_state("scan", 60)
        with events(client, EVENTS, view=view, last_event_id=seen.id) as stream:
            event = next(stream)
            if view == "cells":
                assert (event.data["taskIndex"], event.data["status"]) == (1, 60)
            else:
                assert event.data["running"] == 2


@pytest.mark.parametrize("view", ["cells", "summary"])
def test_an_event_is_one_line_for_every_client(client, submit, view):
    text = "a\u2028b\u2029c\u0085d\r\ne\x0bf\x0cg\x1ch"
    job = submit("etl", 1, ("scan",), metadata={"title": text})
    Manager(job._tracker.store, job._record, 0).set_state("scan", 2, text)
    with events(client, EVENTS, view=view) as stream:
        data = next(stream).data
    assert (data["message"] if view == "cells" else data["metadata"]["title"]) == text


def test_heartbeats_keep_the_stream_alive(client, job, monkeypatch):
    monkeypatch.setattr("celery_statemanager.web.streams.HEARTBEAT", 0.05)
    with client.stream("GET", EVENTS, params={"view": "cells"}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("retry: ")
        assert [line for line, _ in zip((each for each in lines if each), range(3))] == [":", ":", ":"]


def test_a_stream_of_a_token_ends_when_the_token_expires(states, job):
    with serving(states.web(lambda request, action, job: False)) as client:
        token = states.web_token("etl", expires=1)
        with events(client, EVENTS, token=token) as stream:
            assert [each.name for each in stream] == ["summary"]
        assert client.get(EVENTS, params={"token": token}).status_code == 403


def test_a_head_request_has_no_events(client, job):
    for view in ("cells", "summary"):
        response = client.head(EVENTS, params={"view": view})
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"].startswith("text/event-stream")


def test_a_server_that_is_stopped_in_the_middle_loses_no_cell(states, submit):
    """Kill the server again and again; the states that the client has last seen are those of the store."""
    job = submit("many", 60, ("scan", "hash"))
    known, last = {}, None

    def work():
        for row in range(job.num_tasks):
            for tag in ("scan", "hash"):
                write(job, row, 50, tag)
                write(job, row, FINISHED, tag)

    writer = threading.Thread(target=work)
    writer.start()
    ended, deadline = False, time.monotonic() + PATIENCE
    while not ended:
        assert time.monotonic() < deadline
        with serving(states.web(everyone)) as client:
            with events(client, "/api/jobs/many/events", view="cells", last_event_id=last) as stream:
                for count, event in enumerate(stream):
                    last = event.id
                    ended = event.name == "settled"
                    if event.name == "state":
                        cell = event.data["tag"], event.data["taskIndex"]
                        assert event.data["version"] >= known.get(cell, (0,))[0]
                        known[cell] = event.data["version"], event.data["status"]
                    if count == 15:
                        break
    writer.join()
    assert known == {(each.tag, each.task_index): (each.version, each.status) for each in job.list_states()}


@pytest.mark.parametrize("view", ["cells", "summary"])
def test_a_disconnected_client_uses_no_resources(states, job, view):
    from celery_statemanager.hub import hubs
    from celery_statemanager.web.summaries import feeds

    server = Server(states.web(everyone))
    try:
        import httpx

        with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client:
            write(job, 0, 40)
            with events(client, EVENTS, view=view) as stream:
                next(stream)
                assert hubs._sources.get(states.store) or feeds._sources.get(states.store)
        deadline = time.monotonic() + 20
        while hubs._sources.get(states.store) or feeds._sources.get(states.store):
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
    finally:
        server.stop()
