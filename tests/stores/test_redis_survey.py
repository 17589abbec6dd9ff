"""The rows of each class, read in batches, are those of one moment although others write in between."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest

from celery_statemanager import IndexSet, JobNotFound, Status, open_store
from celery_statemanager.models import FINISHED
from celery_statemanager.records import Write
from celery_statemanager.stores.redis.tuning import Tuning
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import PATIENCE

ROWS = 400
SMALL = Tuning(set_members=1, set_chunk=20, bitmap_chunk=7)
"""With these sizes every set is too large for one reply, and is read in small batches."""
STATUSES = (int(Status.STARTED), 40, -42, FINISHED, 0)

redis_py = pytest.importorskip("redis")


@pytest.fixture
def store(redis_server, prefix):
    with open_store(redis_server.url, prefix=prefix, tuning=SMALL) as store:
        yield store


@pytest.fixture(params=["protocol 2", "protocol 3", "redis-cluster"])
def each_store(request, prefix):
    """Yield a store on each kind of connection."""
    if request.param == "redis-cluster":
        url, options = request.getfixturevalue("redis_nodes")[0].url, {"cluster": True}
    else:
        url, options = request.getfixturevalue("redis_server").url, {"protocol": int(request.param[-1])}
    with open_store(url, prefix=prefix, tuning=SMALL, **options) as store:
        yield store


@pytest.fixture
def batches(store, monkeypatch):
    """Record what is sent in batches; the functions in ``between`` are called before each."""
    sent: list[list[tuple[object, ...]]] = []
    call_all = store._server.call_all

    def record(commands: Iterable[tuple[object, ...]]):
        batch = list(commands)
        sent.append(batch)
        for act in record.between:
            act(len(sent))
        return call_all(batch)

    record.between = []
    monkeypatch.setattr(store._server, "call_all", record)
    record.sent = sent
    return record


def filled(store, rows=ROWS, tags=("a", "b"), **options):
    grid = Grid.create(store, rows, tags, **options)
    for row in range(0, rows, 2):
        grid.write("a", row, STATUSES[row // 2 % len(STATUSES)], block_later_stages=True)
    return grid


def expected(grid, tag):
    statuses = dict.fromkeys(grid.job.plan.columns[tag] if grid.job.plan else range(grid.job.num_tasks), 0)
    statuses.update({each.task_index: each.status for each in grid.states(tag) if each.task_index in statuses})
    blocked = {row for row, status in statuses.items() if status < 0 and grid.cell(tag, row).blocked_by}
    return (
        IndexSet(row for row, status in statuses.items() if status < 0 and row not in blocked),
        IndexSet(row for row, status in statuses.items() if 0 < status < FINISHED),
        IndexSet(row for row, status in statuses.items() if status == 0),
        IndexSet(blocked),
    )


def surveyed(grid, tag=None):
    _, columns = grid.store.column_summaries(grid.ref, tag, indexes=True)
    for each in columns:
        assert (len(each.failed), len(each.running)) == (each.tally.failed, each.tally.running)
        assert (len(each.not_run), len(each.missing)) == (each.tally.not_run, each.expected - each.tally.started)
    return {each.tag: (each.failed, each.running, each.missing, each.not_run) for each in columns}


class TestBatches:
    @pytest.mark.parametrize("tags", [("a", "b"), None, {"a": range(ROWS), "b": range(3, 390, 3)}])
    def test_batches_add_up_to_the_stored_rows(self, each_store, tags):
        grid = filled(each_store, tags=tags)
        for row in range(0, ROWS, 5):
            grid.write("b", row, STATUSES[row % 3])
        grid.write("unplanned", 0, 5)
        found = surveyed(grid)
        assert {tag: found[tag] for tag in "ab"} == {tag: expected(grid, tag) for tag in "ab"}
        assert bool(found["b"][3]) == (tags is not None)
        assert surveyed(grid, "b") == {"b": expected(grid, "b")}

    def test_stalled_rows_are_found_apart_from_the_batches(self, each_store):
        grid = filled(each_store)
        for row in (1, 3, 5, 399):
            began = grid.begin("a", row, owner="w", stall_after=1).cell
            if row != 5:
                mark = Write.stalled("a", row, attempt=1, if_version=1, since=began.timestamp)
                each_store.write(grid.ref, mark)
        _, columns = each_store.column_summaries(grid.ref, indexes=True)
        assert [(each.tally.stalled, str(each.stalled)) for each in columns] == [(3, "1,3,399"), (0, "")]

    def test_the_size_of_a_reply_is_bounded(self, store, batches):
        grid = filled(store)
        sizes = []
        run = store._server.run
        store._server.run = lambda *args: (reply := run(*args), sizes.append(_size(reply)))[0]
        surveyed(grid)
        assert max(sizes) < 60
        assert len(batches.sent) > 12

    @pytest.mark.parametrize("every", [1, 3])
    def test_changes_between_two_batches_are_included(self, store, batches, every):
        grid = filled(store)
        written = iter(range(10**6))

        def write(number):
            if number % every == 0 and number < 60:
                for _ in range(7):
                    turn = next(written)
                    tag, row, status = "ab"[turn % 2], turn * 53 % ROWS, STATUSES[turn % 5]
                    grid.write(tag, row, status, event_id=f"{turn}", block_later_stages=True)

        batches.between.append(write)
        found = surveyed(grid)
        assert next(written) > 60
        assert found == {tag: expected(grid, tag) for tag in "ab"}

    def test_all_rows_may_change_between_two_batches(self, store, batches):
        grid = filled(store)
        batches.between.append(lambda number: number == 3 and [grid.write("a", row, 7) for row in range(ROWS)])
        assert surveyed(grid) == {tag: expected(grid, tag) for tag in "ab"}

    def test_sets_and_counts_are_consistent_during_writes(self, store):
        grid = filled(store)
        stop = threading.Event()

        def write_repeatedly(number):
            turn = number
            while not stop.is_set():
                grid.write("ab"[turn % 2], turn * 53 % ROWS, STATUSES[turn % 5], block_later_stages=True)
                turn += 3

        threads = [threading.Thread(target=write_repeatedly, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(30):
                surveyed(grid)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert surveyed(grid) == {tag: expected(grid, tag) for tag in "ab"}

    def test_sets_are_read_whole_when_the_stream_is_too_short(self, redis_server, prefix, monkeypatch):
        with open_store(redis_server.url, prefix=prefix, stream_length=1, tuning=SMALL) as store:
            grid = filled(store)
            call_all, calls = store._server.call_all, []

            def flooded(commands):
                calls.append([grid.write("a", row, 7 + len(calls)) for row in range(250)])
                return call_all(commands)

            monkeypatch.setattr(store._server, "call_all", flooded)
            assert surveyed(grid) == {tag: expected(grid, tag) for tag in "ab"}
            assert 3 <= len(calls) < 20

    def test_sets_are_read_whole_when_the_stream_is_gone(self, store, batches, redis_server):
        grid = filled(store)
        stream = store._reader.layout(grid.ref).keys.stream

        def lose(number):
            grid.write("a", number, 7)
            with redis_server.client() as client:
                client.delete(stream)

        batches.between.append(lose)
        assert surveyed(grid) == {tag: expected(grid, tag) for tag in "ab"}

    def test_a_tag_added_between_two_batches_is_included(self, store, batches):
        grid = filled(store, tags=None)
        batches.between.append(lambda number: number == 3 and grid.write("new", 5, 7))
        assert surveyed(grid)["new"][1] == IndexSet([5])

    def test_a_job_deleted_between_two_batches_raises_job_not_found(self, store, batches):
        grid = filled(store)
        batches.between.append(lambda number: number == 3 and grid.delete())
        with pytest.raises(JobNotFound):
            surveyed(grid)


def _size(reply):
    return len(reply) + sum(map(_size, reply)) if isinstance(reply, list) else 0
