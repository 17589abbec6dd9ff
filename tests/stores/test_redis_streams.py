"""Watches and subscriptions over Redis lose nothing in trimmed streams, broken connections and restarts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import running_redis, wait_for

from celery_statemanager import JobNotFound, StoreUnavailable, open_store
from celery_statemanager.models import Scope
from celery_statemanager.stores.redis.keys import JobKeys
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import FINISHED, PATIENCE, read_until, statuses


@pytest.fixture
def store(redis_server, prefix):
    with open_store(redis_server.url, prefix=prefix, stream_length=100, client_name=prefix) as store:
        yield store


def open_connections(client, name: str) -> int:
    """Return the number of connections of the store under test; other tests share the server."""
    return sum(each["name"] == name for each in client.client_list())


def wait_until_closed(client, name: str, before: int) -> None:
    """Wait until the server lists no more connections than before; it removes closed ones with a delay."""
    wait_for(lambda: open_connections(client, name) <= before, "the end of a connection")


def test_a_trimmed_stream_causes_a_resync(store):
    grid = Grid.create(store, 2, ("a",))
    watch = store.watch(grid.ref, Scope())
    for status in range(2, 1_000):
        grid.write("a", 0, status)
    batch = watch.read(PATIENCE)
    assert batch.resync
    assert statuses(batch.states) == {("a", 0): 999}
    grid.write("a", 1, 5)
    batch = read_until(watch, lambda batch: ("a", 1) in statuses(batch.states))
    assert not batch.resync
    watch.close()


def test_readers_end_when_the_settling_event_was_trimmed(store):
    grid = Grid.create(store, 1, ("a",))
    events = grid.manager().subscribe("a", until_settled=True)
    assert events.get(0.0) is None
    grid.write("a", 0, FINISHED)
    for status in range(2, 1_000):
        grid.write("unplanned", 0, status)
    got = []
    reader = threading.Thread(target=lambda: got.extend(events), daemon=True)
    reader.start()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert [event.state.status for event in got] == [FINISHED]


def test_a_reader_far_behind_gets_every_last_version_once(redis_server, prefix):
    with open_store(redis_server.url, prefix=prefix) as store:
        grid = Grid.create(store, 20, ("a",))
        with grid.manager().subscribe() as events:
            for status in range(2, 552):
                for row in range(20):
                    grid.write("a", row, status)
            got = {}
            while len(got) < 20 or set(got.values()) != {551}:
                event = events.get(PATIENCE)
                assert event is not None
                assert event.state.status > got.get(event.state.task_index, 0)
                got[event.state.task_index] = event.state.status
            assert events.get(0.1) is None


def test_a_deleted_stream_causes_a_resync(store, client, prefix):
    grid = Grid.create(store)
    watch = store.watch(grid.ref, Scope())
    client.delete(JobKeys(prefix, grid.ref).stream)
    grid.write("a", 0, 5)
    grid.write("a", 0, 6)
    assert read_until(watch, lambda batch: bool(batch.states)).states[0].status == 6
    grid.write("a", 0, 7)
    client.delete(JobKeys(prefix, grid.ref).stream)
    batch = read_until(watch, lambda batch: batch.resync)
    assert batch.job_changed
    grid.write("a", 0, 8)
    batch = read_until(watch, lambda batch: bool(batch.states))
    assert (batch.resync, batch.states[0].status) == (False, 8)
    watch.close()


def test_a_job_deleted_between_two_reads_raises_job_not_found(store):
    grid = Grid.create(store)
    watch = store.watch(grid.ref, Scope())
    grid.delete()
    with pytest.raises(JobNotFound):
        watch.read(PATIENCE)
    watch.close()


def test_a_watch_uses_one_connection_and_closes_it(store, client, prefix):
    grid = Grid.create(store)
    before = open_connections(client, prefix)
    watch = store.watch(grid.ref, Scope())
    assert open_connections(client, prefix) == before + 1
    watch.close()
    watch.close()
    wait_until_closed(client, prefix, before)
    assert watch.read(PATIENCE).states == []


def test_a_watch_of_a_deleted_job_leaves_no_connection(store, client, prefix):
    grid = Grid.create(store)
    store._reader.layout(grid.ref)
    store.delete_job(grid.job)
    before = open_connections(client, prefix)
    with pytest.raises(JobNotFound):
        store.watch(grid.ref, Scope())
    wait_until_closed(client, prefix, before)


def test_closing_a_watch_ends_a_running_read_at_once(store, client, prefix):
    grid = Grid.create(store)
    before = open_connections(client, prefix)
    watch = store.watch(grid.ref, Scope())
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(watch.read, 60.0)
        _wait_until_blocked(client)
        start = time.monotonic()
        watch.close()
        assert reading.result(PATIENCE).states == []
        assert time.monotonic() - start < 5
    wait_until_closed(client, prefix, before)


def test_an_idle_watch_blocks_and_does_not_poll(store, client):
    grid = Grid.create(store)
    watch = store.watch(grid.ref, Scope())
    client.config_resetstat()
    assert watch.read(2.5).states == []
    stats = client.info("commandstats")
    assert stats["cmdstat_xread"]["calls"] <= 4
    watch.close()


def test_changes_of_other_rows_do_not_end_a_read(store):
    grid = Grid.create(store)
    watch = store.watch(grid.ref, Scope("a", 1))
    grid.write("a", 0, 5)
    grid.write("b", 1, 5)
    assert watch.read(0.05).states == []
    grid.write("a", 1, 6)
    assert statuses(watch.read(PATIENCE).states) == {("a", 1): 6}
    watch.close()


def test_a_killed_connection_breaks_a_watch_but_not_a_subscription(store, client):
    grid = Grid.create(store, 1, ("a",))
    watch = store.watch(grid.ref, Scope())
    with grid.manager().subscribe() as events, ThreadPoolExecutor() as pool:
        reading = pool.submit(watch.read, 60.0)
        _wait_until_blocked(client)
        client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(StoreUnavailable):
            reading.result(PATIENCE)
        grid.write("a", 0, 5)
        assert events.get(PATIENCE).state.status == 5
    watch.close()


@pytest.mark.parametrize(
    "options", [{}, {"appendonly": "yes", "appendfsync": "always"}], ids=["empty", "with its data"]
)
def test_a_subscription_survives_a_server_restart_unless_the_data_are_lost(options):
    with running_redis(**options) as server, open_store(server.url) as store:
        grid = Grid.create(store, 2, ("a",))
        grid.write("a", 0, 5)
        with grid.manager().subscribe() as events:
            assert events.get(PATIENCE).state.status == 5
            server.stop(kill=True)
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                grid.write("a", 1, 6)
            assert events.get(0.1) is None
            assert not events.closed
            server.start()
            if options:
                assert grid.write("a", 1, 7).cell.version == 1
                event = events.get(PATIENCE)
                assert (event.state.task_index, event.state.status, event.replay) == (1, 7, False)
                assert events.get(1.5) is None
            else:
                with pytest.raises(JobNotFound):
                    grid.write("a", 1, 7)
                assert events.get(PATIENCE) is None
                assert events.closed


def test_a_reader_neither_loses_nor_repeats_events_of_concurrent_writers(store):
    grid = Grid.create(store, 4, ("a",))
    with grid.manager().subscribe() as events:
        writers = [
            threading.Thread(target=lambda row=row: [grid.write("a", row, n) for n in range(2, 200)])
            for row in range(4)
        ]
        for writer in writers:
            writer.start()
        seen: dict[int, int] = {}
        while any(seen.get(row) != 198 for row in range(4)):
            event = events.get(PATIENCE)
            assert event is not None
            assert event.state.version > seen.get(event.state.task_index, 0)
            seen[event.state.task_index] = event.state.version
        for writer in writers:
            writer.join()


def _wait_until_blocked(client) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any("b" in each["flags"] for each in client.client_list()):
        assert time.monotonic() < deadline


def test_a_cursor_whose_change_was_trimmed_causes_a_resync(store):
    grid = Grid.create(store, 2, ("a",))
    grid.write("a", 1, 5)
    with grid.manager().subscribe() as events:
        cursor = events.get(PATIENCE).cursor
    for status in range(2, 1_000):
        grid.write("a", 0, status)
    with grid.manager().subscribe(since=cursor) as events:
        got = [events.get(PATIENCE) for _ in range(3)]
        assert events.get(0.0) is None
    assert [event.resync for event in got] == [True, False, False]
    assert {event.state.task_index: event.state.version for event in got[1:]} == {1: 1, 0: 998}


def test_a_subscription_that_continues_needs_no_list_after_a_lost_connection(store, client):
    grid = Grid.create(store, 2, ("a",))
    grid.write("a", 0, 5)
    with grid.manager().subscribe() as events:
        cursor = events.get(PATIENCE).cursor
    with grid.manager().subscribe(since=cursor) as events:
        assert events.get(0.0) is None
        client.client_kill_filter(_type="normal", skipme=True)
        grid.write("a", 1, 5)
        event = events.get(PATIENCE)
        assert (event.state.task_index, event.resync) == (1, False)
        assert events.get(0.0) is None
