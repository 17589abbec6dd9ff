"""PostgreSQL: each cost compared with what a program does that uses the same client and the same server without us."""

# ruff: noqa: S608 - only names of our own columns are interpolated

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.connection import Connection

import psycopg

from benchmarks.harness import Figure, Scale, alternate, in_turns, medians
from benchmarks.sizes import READS
from benchmarks.streams import TIMEOUT, _count_replayed, _follow, _microseconds, _milliseconds, _Reader, _timed
from benchmarks.writes import MESSAGE, state_writer
from celery_statemanager import Manager, open_store
from celery_statemanager.records import Write
from celery_statemanager.stores.postgres import PostgresStore
from celery_statemanager.stores.postgres.cells import TALLY
from tests.postgres_kit import PostgresServer, running_postgres

SMALL = 100
WRITERS = 16
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_BARE = """
CREATE TABLE bare (id bigint PRIMARY KEY, status integer, message text, changed bigint, version integer, event bytea)
WITH (fillfactor = 85)
"""
_UPDATE = """
UPDATE bare SET status = %s, message = %s, changed = %s, version = version + 1, event = %s WHERE id = %s
RETURNING version
"""
_FILL = f"""
INSERT INTO statemanager_cell (job, tag, task_index, xid, "timestamp", began_at, status, version, attempt,
  schema_version, open, event_id)
SELECT job, tag, row, xid, "timestamp" + row, began_at, CASE row %% 10 WHEN 0 THEN 2 + row %% 98 ELSE 2147483647 END,
  version, attempt, schema_version, open, decode(md5(row::text), 'hex')
FROM statemanager_cell, generate_series(1, %(last)s) row WHERE job = %(job)s AND task_index = 0;
DELETE FROM statemanager_gap WHERE job = %(job)s;
DELETE FROM statemanager_tally WHERE job = %(job)s;
INSERT INTO statemanager_tally (job, tag, shard, {", ".join(TALLY)})
SELECT job, tag, task_index %% 16, count(*) FILTER (WHERE status < 101), count(*) FILTER (WHERE status > 101), 0, 0,
  count(*) FILTER (WHERE status > 101), count(*) FILTER (WHERE status > 101), 0, count(*) FILTER (WHERE status < 101),
  count(*) FILTER (WHERE status > 101), 0, 0, 0
FROM statemanager_cell WHERE job = %(job)s GROUP BY 1, 2, 3
"""


def measure(scale: Scale) -> Iterator[Figure]:
    """Yield all figures, from servers that write durably."""
    with running_postgres(**DURABLE) as server:
        yield writing(server, scale(10, 1_000, 5_000))
        yield writing_one_job(server, scale(5, 60, 300), scale(1, 3, 5))
    with running_postgres() as server:  # a NOTIFY alone writes nothing to the disk
        yield from following(server, scale(3, 200, 1_000))
    with running_postgres(maintenance_work_mem="256MB") as server:
        yield from reading(server, [SMALL, scale(300, 10_000, 1_000_000)], scale(5, 200, 1_000))
        yield from ending(server, [SMALL, scale(300, 10_000, 100_000)], scale(5, 200, 1_000))
        yield replaying(server, scale(500, 20_000, 100_000), scale(1, 3, 7))
    with running_postgres() as server:
        yield Figure(
            "PostgreSQL per finished state",
            "-",
            bytes_per_state(server, scale(500, 5_000, 50_000)),
            None,
            "B",
            250,
            "alone",
        )
        yield from growing(server, *scale((20, 200), (200, 10_000), (1_000, 1_000_000)))


def writing(server: PostgresServer, rounds: int) -> Figure:
    """Compare a state with an UPDATE … RETURNING by primary key."""
    with opened(server) as store, server.connect() as bare:
        medians = alternate({"peer": _updater(bare), "ours": state_writer(store, "alone")}, rounds)
    against = "UPDATE … RETURNING"
    return Figure("PostgreSQL set_state", against, medians["ours"] * 1e6, medians["peer"] * 1e6, "µs", 1.5)


def writing_one_job(server: PostgresServer, writes: int, rounds: int) -> Figure:
    """Compare the rate of 16 writers on one job with that of 16 writers on as many jobs."""
    with opened(server) as store:
        one = [Manager.create(store, "one", num_tasks=WRITERS, task_index=0, tags=("work",))]
        one += [Manager.open(store, "one", task_index=row) for row in range(1, WRITERS)]
        many = [
            Manager.create(store, f"many-{n}", num_tasks=WRITERS, task_index=0, tags=("work",)) for n in range(WRITERS)
        ]
        rates = in_turns({"ours": lambda: _rate(one, writes), "peer": lambda: _rate(many, writes)}, rounds)
    found = medians(rates)
    what = f"PostgreSQL {WRITERS} writers on one job"
    return Figure(what, f"on {WRITERS} jobs", found["ours"], found["peer"], "/s", 0.7, at_least=True)


def reading(server: PostgresServer, sizes: list[int], rounds: int) -> Iterator[Figure]:
    """Compare reads of a large job with those of a small one."""
    with opened(server) as store:
        managers = {size: filled(store, server, size) for size in sizes}
        for what, read in READS.items():
            calls = {str(size): lambda manager=manager, read=read: read(manager) for size, manager in managers.items()}
            found = alternate(calls, rounds)
            ours, peer = found[str(sizes[-1])] * 1e6, found[str(SMALL)] * 1e6
            yield Figure(f"PostgreSQL {what}, {sizes[-1]:,} tasks", f"itself at {SMALL}", ours, peer, "µs", 2.0)


def ending(server: PostgresServer, sizes: list[int], rounds: int) -> Iterator[Figure]:
    """Compare the last write of a task in a large job with that in a small one."""
    with opened(server) as store:
        jobs = {size: filled(store, server, size, "ends").ref for size in sizes}
        times: dict[str, list[float]] = {str(size): [] for size in sizes}
        for number in range(rounds):
            for size, ref in jobs.items():
                row = number * 10 % (size - 10)
                begin = Write.state("work", row, 50)
                store.write(ref, begin)
                end = Write.state("work", row, 2_147_483_647)
                start = time.perf_counter()
                store.write(ref, end)
                times[str(size)].append(time.perf_counter() - start)
        found = medians(times)
    ours, peer = found[str(sizes[-1])] * 1e6, found[str(SMALL)] * 1e6
    yield Figure(f"PostgreSQL end of a task, {sizes[-1]:,} tasks", f"itself at {SMALL}", ours, peer, "µs", 1.2)


def following(server: PostgresServer, rounds: int) -> Iterator[Figure]:
    """Compare the way from a write to a subscriber with that from a NOTIFY to a client that waits."""
    with opened(server) as store, server.connect() as bare:
        write = state_writer(store)
        with _Reader(_follow, server.url) as ours, _Reader(_listen, server.url) as peer:
            latencies = {
                "peer": lambda: peer.latency_of(lambda: bare.execute("SELECT pg_notify('bare', '1')")),
                "ours": lambda: ours.latency_of(write),
            }
            results = medians(in_turns(latencies, rounds))
    yield Figure("PostgreSQL write -> subscriber", "NOTIFY -> notifies", *_microseconds(results), "µs", 2.0)


def replaying(server: PostgresServer, states: int, rounds: int) -> Figure:
    """Compare a replay with a server-side cursor over the same rows in the same order."""
    with opened(server) as store, server.connect() as bare:
        manager = filled(store, server, states, "replay")
        number = store._jobs.peek(manager.ref).id  # type: ignore[union-attr]
        select = (
            "SELECT c.*, t.name FROM statemanager_cell c JOIN statemanager_tag t ON t.job = c.job AND t.id = c.tag "
            'WHERE c.job = %s ORDER BY c."timestamp"'
        )

        def read() -> int:
            with bare.transaction(), bare.cursor("bare") as cursor:
                cursor.itersize = 2_000
                return sum(1 for _ in cursor.execute(select, (number,)))

        timed = {"peer": _timed(read, states), "ours": _timed(lambda: _count_replayed(manager, states), states)}
        results = medians(in_turns(timed, rounds))
    return Figure(f"PostgreSQL replay of {states:,}", "server-side cursor", *_milliseconds(results), "ms", 2.0)


def bytes_per_state(server: PostgresServer, states: int) -> float:
    """Return the bytes of tables and indexes for each state that was begun, moved and finished."""
    with opened(server) as store:
        store.now()
        empty = _size(server)
        ref = Manager.create(store, "space", num_tasks=states, tags=("work",)).ref
        for row in range(states):
            for status in (1, 2_147_483_647):
                store.write(ref, Write.state("work", row, status))
        server.execute("VACUUM FULL")
        return (_size(server) - empty) / states


def growing(server: PostgresServer, cells: int, writes: int) -> Iterator[Figure]:
    """Measure how far the tables grow by many writes to few cells, while autovacuum works."""
    with opened(server) as store:
        ref = Manager.create(store, "bloat", num_tasks=cells, tags=("work",)).ref
        for number in range(writes):
            store.write(ref, Write.progress("work", number % cells, 1, f'{{"done":{number},"total":{writes}}}'))
        before = _size(server)
        server.execute("VACUUM FULL")
        yield Figure(
            f"PostgreSQL after {writes:,} writes",
            "itself compacted",
            before / 2**20,
            _size(server) / 2**20,
            "MiB",
            20.0,
        )
        hot = "SELECT n_tup_hot_upd::float / greatest(n_tup_upd, 1) FROM pg_stat_user_tables WHERE relname = %s"
        share = server.execute(hot, "statemanager_tally")[0][0]
        yield Figure("PostgreSQL HOT updates of tallies", "-", share, None, "of 1", 0.5, "alone", at_least=True)


def opened(server: PostgresServer) -> PostgresStore:
    """Open the store of a server, with room for the writers."""
    store = open_store(server.url, timeout=60.0)
    assert isinstance(store, PostgresStore)
    return store


def filled(store: PostgresStore, server: PostgresServer, size: int, job_id: str = "filled") -> Manager:
    """Create a job with every cell written, one in ten of them still running."""
    manager = Manager.create(store, f"{job_id}-{size}", num_tasks=size, tags=("work",))
    store.write(manager.ref, Write.state("work", 0, 2))
    number = store._jobs.peek(manager.ref).id  # type: ignore[union-attr]
    with server.connect() as db:
        psycopg.ClientCursor(db).execute(_FILL, {"last": size - 1, "job": number})
        db.execute("VACUUM ANALYZE")
    return manager


def _rate(managers: list[Manager], writes: int) -> float:
    """Return the writes per second of one thread for each Manager."""
    ready = threading.Barrier(len(managers) + 1)

    def write(manager: Manager) -> None:
        ready.wait()
        for number in range(writes):
            manager.set_state("work", 2 + number % 90, MESSAGE)

    threads = [threading.Thread(target=write, args=(manager,)) for manager in managers]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return len(managers) * writes / (time.perf_counter() - start)


def _updater(connection: psycopg.Connection) -> Callable[[], object]:
    connection.execute(_BARE)
    connection.execute("INSERT INTO bare VALUES (1, 0, '', 0, 0, '')")
    numbers = count()

    def update() -> object:
        number = next(numbers)
        event = number.to_bytes(16, "big")
        values = (2 + number % 90, MESSAGE, 1_700_000_000_000_000 + number, event, 1)
        return connection.execute(_UPDATE, values).fetchone()

    return update


def _listen(pipe: Connection, url: str | int) -> None:
    with psycopg.connect(str(url), autocommit=True) as connection:
        connection.execute("LISTEN bare")
        pipe.send("ready")
        while True:
            for _ in connection.notifies(timeout=TIMEOUT, stop_after=1):
                pipe.send(time.perf_counter())


def _size(server: PostgresServer) -> float:
    """Return the bytes of all tables and indexes of the store."""
    text = (
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND starts_with(relname, 'statem')"
    )
    return float(server.execute(text)[0][0])
