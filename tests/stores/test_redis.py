"""What only the Redis store guarantees: the cost of a call, what it stores, what it deletes."""

from __future__ import annotations

import os
import random
import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest
import redis as redis_py
import redis.crc
from hypothesis import given
from hypothesis import strategies as st

from celery_statemanager import ConfigurationError, JobNotFound, Manager, Status, StoreContended, open_store
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import CALLBACK_ROW, JobKey, JobRef, Write, new_event_id, new_job
from celery_statemanager.stores.redis import RedisStore, cells
from celery_statemanager.stores.redis.keys import JobKeys, entry_of, ref_of
from celery_statemanager.stores.redis.layout import Ranks
from celery_statemanager.stores.redis.packing import unpack
from celery_statemanager.stores.redis.tuning import Tuning
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import PATIENCE, newest_jobs, purge

MESSAGE = "page 4 of 10"


@pytest.fixture
def prefix(client):
    prefix = f"own-{new_event_id()}"
    yield prefix
    for key in client.scan_iter(f"{prefix}:*"):
        client.unlink(key)


@pytest.fixture
def store(redis_store):
    return redis_store


@pytest.fixture
def tuned(redis_server, prefix):
    """Return a function that opens another store on the same keys, with other periods."""
    with ExitStack() as stores:
        yield lambda **periods: stores.enter_context(
            open_store(redis_server.url, prefix=prefix, tuning=Tuning(**periods))
        )


def calls(client) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in client.info("commandstats").items()}


class TestCosts:
    def test_a_write_a_begin_and_a_read_are_one_command_each(self, store, client):
        grid = Grid.create(store, 9, ("a", "b"))
        grid.write("a", 0, 5)
        uses = [
            lambda: grid.write("a", 0, random.randrange(2, 10**6), message=MESSAGE),
            lambda: grid.begin("b", 0, takes_over=True, owner="w"),
            lambda: grid.lowest(),
            lambda: grid.lowest("a", 1),
            lambda: grid.lowest(None, 1),
            lambda: grid.cell("a", 0),
            lambda: store.column_summaries(grid.ref),
            lambda: store.column_summaries(grid.ref, indexes=True),
        ]
        for use in uses:
            use()
        for use in uses:
            client.config_resetstat()
            for _ in range(5):
                use()
            counted = calls(client)
            assert counted["evalsha"] == 5
            assert not counted.keys() & {"eval", "script|load", "multi", "exec", "client|setinfo"}

    def test_the_tags_of_an_unplanned_job_are_read_once(self, store, client):
        grid = Grid.create(store, 3)
        for tag in ("b", "a"):
            grid.write(tag, 0, 5)
        for row in (None, 0):
            assert grid.lowest(None, row).tag == "a"
            client.config_resetstat()
            assert grid.lowest(None, row).status == (0 if row is None else 5)
            assert calls(client)["evalsha"] == 1
        for tag, row in (("c", None), ("d", 0)):
            grid.write(tag, 0, -ord(tag))
            assert grid.lowest(None, row).tag == tag

    @pytest.mark.parametrize(("status", "limit"), [(40, 400), (int(Status.FINISHED), 250)])
    def test_a_state_takes_few_bytes(self, store, client, prefix, status, limit):
        rows = 10_000
        grid = Grid.create(store, rows, ("a",))
        for row in range(rows):
            grid.write("a", row, status, message=MESSAGE)
        keys = list(client.scan_iter(f"{prefix}:*"))
        assert len(keys) < 12
        assert sum(client.memory_usage(key, samples=0) for key in keys) / rows <= limit

    def test_the_activity_of_a_job_is_stored_once_a_minute(self, store, client, tuned):
        grid = Grid.create(store, 1, ("a",))
        grid.write("a", 0, 5)
        client.config_resetstat()
        grid.write("a", 0, 6)
        assert calls(client)["evalsha"] == 1
        eager = grid.seen_by(tuned(touch_interval=0.0))
        eager.write("a", 0, 7)
        client.config_resetstat()
        eager.write("a", 0, 8)
        assert calls(client)["evalsha"] == 2


class TestBatches:
    def test_open_attempts_of_one_job_are_read_in_batches(self, store, client):
        grid = Grid.create(store, 1_300, ("a",))
        for row in range(1_300):
            grid.begin("a", row, owner="w")
        client.config_resetstat()
        assert {each.task_index for each in store.list_open_attempts()} == set(range(1_300))
        made = calls(client)
        assert made["sscan"] >= 3
        assert "smembers" not in made

    def test_worker_records_are_read_in_batches(self, store, client):
        for number in range(300):
            store.put_worker(f"w{number}", "x" * 100, 30)
        client.config_resetstat()
        assert sorted(each.worker_id for each in store.list_workers()) == sorted(f"w{number}" for number in range(300))
        made = calls(client)
        assert made["hscan"] >= 5
        assert "hgetall" not in made

    def test_the_newest_jobs_cost_the_same_among_few_and_many(self, store, client):
        made = []
        for number in range(600):
            Grid.create(store, 1, job_id=f"job {number:03}")
            if number in (59, 599):
                client.config_resetstat()
                page = store.newest_jobs(limit=20)
                page += store.newest_jobs(page[-1].cursor, 20)
                assert [each.job.job_id for each in page] == [f"job {number - at:03}" for at in range(40)]
                made.append({name: calls(client)[name] for name in ("zrevrangebyscore", "hmget")})
        assert made == [{"zrevrangebyscore": 2, "hmget": 40}] * 2


class TestContention:
    def test_an_adoption_pauses_and_ends_when_the_job_gains_a_tag_each_time(self, store, redis_server, prefix):
        grid = Grid.create(store)
        tries = []
        with open_store(redis_server.url, prefix=prefix, timeout=0.5) as adopting:
            run = adopting._server.run

            def gain_a_tag_before(script, keys, args):
                if script is adopting._scripts.adopt:
                    tries.append(grid.write(f"tag {len(tries)}", 0, 5))
                return run(script, keys, args)

            adopting._server.run = gain_a_tag_before
            with pytest.raises(StoreContended, match=r"job 'job' gained a tag .*gave up after 0\.5 s"):
                adopting.adopt_job(grid.ref, "new")
        assert 1 < len(tries) <= 12
        assert grid.job.incarnation == grid.ref.incarnation


class TestKeys:
    def test_deletion_and_purge_leave_no_key(self, store, client, prefix):
        grid = Grid.create(store, 50, ("a", "b"), success="call")
        grid.run("a", 0, -1)
        grid.begin("b", 1, owner="w", kept="{}")
        grid.write("x: y", 2, 7, payload='{"progress":{"done":1,"total":2}}')
        grid.begin("success", CALLBACK_ROW, owner="w")
        store.put_worker("w", "{}", 1.0)
        store.drop_worker("w")
        assert store.delete_job(grid.job)
        assert client.exists(JobKeys(prefix, grid.ref).head) == 0
        assert purge(store) > 0
        assert list(client.scan_iter(f"{prefix}:*")) == []

    def test_all_keys_of_a_job_share_a_slot_and_the_registry_has_its_own(self, client):
        for job_id, token in (("etl", None), ("{a}{b}", "c:d"), ("*", None), ("ß %7D", "x y")):
            keys = JobKeys("p", JobRef(JobKey(job_id, token), "0f"))
            names = [keys.head, *keys.every(["t{u}"])]
            assert len({redis_py.crc.key_slot(name.encode()) for name in names}) == 1
            tag = keys.head.removeprefix("p:")
            assert tag.count("{") == tag.count("}") == 1
            assert all(name.startswith(keys.head) for name in names)
            assert tag != "{*}"

    @given(st.tuples(st.text(min_size=1), st.none() | st.text(min_size=1)))
    def test_registry_entries_decode_to_the_names(self, names):
        try:
            "".join(name or "" for name in names).encode()
        except UnicodeEncodeError:
            return
        ref = JobRef(JobKey(*names), "0f1e")
        assert ref_of(entry_of(ref).encode()) == ref

    def test_stores_with_different_prefixes_are_separate(self, redis_server, store, prefix):
        Grid.create(store).write("a", 0, 5)
        with open_store(f"{redis_server.url}?prefix={prefix}-2") as other:
            with pytest.raises(JobNotFound):
                other.get_job(JobKey("job"))
            assert other.list_jobs().jobs == []


class TestActivity:
    def test_an_idle_job_is_deleted_only_if_unchanged_since_it_was_read(self, store):
        grid = Grid.create(store)
        for move in (lambda: grid.write("a", 0, 5), grid.tombstone):
            old = grid.job
            move()
            assert store.delete_job(old, if_idle=True) is False
        assert grid.cell("a", 0).status == 5
        assert store.delete_job(grid.job, if_idle=True) is True

    def test_a_write_or_begin_ends_idleness_but_a_tombstone_does_not(self, store):
        grids = {name: Grid.create(store, job_id=name) for name in ("written", "begun", "marked", "idle")}
        before = store.now()
        grids["written"].write("a", 0, 5)
        grids["begun"].begin("a", 0)
        grids["marked"].tombstone()
        idle = store.list_jobs(idle_before=before).jobs
        assert {job.job_id for job in idle} == {"marked", "idle"}
        assert grids["written"].job.last_activity >= before


class TestRegistry:
    def test_a_quiet_job_is_not_scanned_until_its_next_write(self, store, client, prefix, tuned):
        live = f"{prefix}:{{*}}:live"
        quiet, busy, due = (Grid.create(store, 1, ("a",), job_id=name, success="call") for name in ("q", "b", "d"))
        busy.begin("a", 0, owner="w")
        due.run("a", 0)
        list(store.list_open_attempts())
        assert client.zcard(live) == 3
        impatient = tuned(quiet_after=0.0)
        assert [each.ref for each in impatient.list_open_attempts()] == [busy.ref]
        assert {ref_of(entry) for entry in client.zrange(live, 0, -1)} == {busy.ref, due.ref}
        quiet.seen_by(impatient).begin("a", 0, owner="w2")
        assert {each.ref for each in store.list_open_attempts()} == {busy.ref, quiet.ref}

    def test_a_recently_active_job_stays_in_the_live_set(self, store, client, prefix):
        grid = Grid.create(store)
        store._registry.mark_quiet(entry_of(grid.ref).encode())
        assert client.zcard(f"{prefix}:{{*}}:live") == 1

    def test_an_interrupted_create_or_delete_is_cleaned_up(self, store, client, prefix, tuned, monkeypatch):
        store._registry.register(JobRef(JobKey("never created"), "0f"))
        grid = Grid.create(store)
        grid.write("a", 0, 5)
        monkeypatch.setattr(store._registry, "queue_purge", lambda ref: None)
        store.delete_job(grid.job)
        assert store.list_jobs().jobs == []
        assert purge(store) == 0
        assert tuned(orphaned_after=0.0).list_jobs().jobs == []
        assert purge(store) > 0
        assert list(client.scan_iter(f"{prefix}:*")) == []

    def test_listing_open_attempts_cleans_up_an_interrupted_create(self, store, client, prefix, tuned):
        store._registry.register(JobRef(JobKey("never created"), "0f"))
        assert list(tuned(orphaned_after=0.0).list_open_attempts()) == []
        assert client.zcard(f"{prefix}:{{*}}:jobs") == 0

    def test_a_late_touch_does_not_restore_a_deleted_job(self, store, client, prefix):
        grid = Grid.create(store)
        layout = store._reader.layout(grid.ref)
        grid.delete()
        store._registry.touch(layout)
        assert list(client.scan_iter(f"{prefix}:*")) == []

    def test_a_lost_registry_is_rebuilt_from_active_jobs(self, store, client, prefix):
        grid = Grid.create(store)
        client.delete(*(f"{prefix}:{{*}}:{name}" for name in ("jobs", "active", "live")))
        assert store.list_jobs().jobs == []
        grid.begin("a", 0, owner="w")
        assert [job.job_id for job in store.list_jobs().jobs] == ["job"]
        assert [each.ref for each in store.list_open_attempts()] == [grid.ref]

    def test_pages_continue_among_jobs_with_equal_scores(self, store, client, prefix):
        grids = [Grid.create(store, job_id=f"job {number}") for number in range(9)]
        for grid in grids:
            client.zadd(f"{prefix}:{{*}}:jobs", {entry_of(grid.ref): 1_700_000_000_000_000})
        met, cursor = [], None
        while True:
            page = store.list_jobs(cursor, 2)
            met += [job.job_id for job in page.jobs]
            cursor = page.cursor
            if cursor is None:
                break
        assert sorted(met) == [f"job {number}" for number in range(9)]

    def test_newest_jobs_with_equal_scores_are_listed_once(self, store, client, prefix):
        for number in range(9):
            ref = Grid.create(store, job_id=f"job {number}").ref
            client.zadd(f"{prefix}:{{*}}:jobs", {entry_of(ref): 1_700_000_000_000_000})
        assert [job.job_id for job in newest_jobs(store, 2)] == [f"job {number}" for number in reversed(range(9))]

    def test_registered_jobs_without_a_record_are_no_newest_jobs(self, store, client, prefix, tuned):
        Grid.create(store, job_id="old")
        for number in range(5):
            store._registry.register(JobRef(JobKey(f"never created {number}"), "0f"))
        Grid.create(store, job_id="new")
        for limit in (1, 2, 7):
            assert [job.job_id for job in newest_jobs(store, limit)] == ["new", "old"]
        assert client.zcard(f"{prefix}:{{*}}:jobs") == 7, "a creation may be in progress"
        assert len(tuned(orphaned_after=0.0).newest_jobs()) == 2
        assert client.zcard(f"{prefix}:{{*}}:jobs") == 2

    def test_creating_again_after_a_lost_response_returns_the_same_job(self, store):
        job = new_job("job", 3, ("a",))
        assert store.create_job(job) == store.create_job(job) == store.get_job(job.key)


class TestScripts:
    def test_flushed_scripts_are_loaded_again(self, store, client):
        grid = Grid.create(store)
        client.script_flush()
        assert grid.write("a", 0, 5).cell.version == 1
        client.script_flush()
        assert grid.lowest("a").status == 0
        client.script_flush()
        assert grid.begin("a", 0).cell.version == 2

    def test_numbers_are_stored_exactly(self, store):
        grid = Grid.create(store, 10_000_000, ("a",))
        for status in (-(2**31), 2**31 - 2, 2**31 - 1, 0, 100):
            cell = grid.write("a", 9_999_999, status, attempt=None).cell
            assert cell == grid.cell("a", 9_999_999)
            assert (cell.status, grid.state("a", 9_999_999).status) == (status, status)
            assert abs(cell.timestamp - store.now()) < 60_000_000

    def test_timestamps_never_decrease_within_a_job(self, store, client, prefix):
        grid = Grid.create(store, 2, ("a",), failure="call")
        future = store.now() + 3_600_000_000
        client.hset(JobKeys(prefix, grid.ref).head, "active_at", future)
        assert grid.write("a", 0, 5).cell.timestamp == future
        grid.run("a", 0, -1)
        assert grid.job.latches["failure"].decided_at == future
        grid.cancel()
        assert grid.write("a", 0, -2).cell.timestamp == future

    def test_values_packed_by_the_server_are_unpacked_exactly(self, client):
        values = [
            0,
            1,
            127,
            128,
            255,
            256,
            65_536,
            2**32,
            2**53,
            -1,
            -32,
            -33,
            -128,
            -129,
            -40_000,
            -(2**40),
            0.5,
            -1e300,
        ]
        texts = ["", "ß" * 10, "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 70_000, 'quo"te\\ \x00 \U0001f600']
        numbers = "return cmsgpack.pack({" + ",".join(map(repr, values)) + ",true,false})"
        assert unpack(client.eval(numbers, 0)) == [*values, True, False]
        assert unpack(client.eval("return cmsgpack.pack(ARGV)", 0, *texts)) == texts

    def test_the_lowest_missing_row_is_found_in_any_order_of_writes(self, store):
        rows = list(range(40))
        random.Random(7).shuffle(rows)
        grid = Grid.create(store, 60, {"a": range(10, 50), "b": range(60)})
        written = set()
        for row in rows:
            grid.write("a", row + 10, Status.FINISHED)
            written.add(row + 10)
            left = sorted(set(range(10, 50)) - written)
            state = grid.lowest("a")
            assert (state.task_index, state.version) == ((left[0], 0) if left else (10, 1))

    def test_a_repeated_call_writes_once_even_in_a_new_process(self, redis_server, store, prefix):
        grid = Grid.create(store, 1, ("a",))
        call = Write(tag="a", task_index=0, status=5, event_id="e", begin=grid.request("a", 0), ends_attempt=True)
        first = store.write(grid.ref, call)
        with open_store(redis_server.url, prefix=prefix) as other:
            again = other.write(grid.ref, call)
        assert (first.changed, again.changed, again.cell) == (True, False, first.cell)
        assert again.cell.attempt == 1


class TestParts:
    json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)
    progress = st.fixed_dictionaries({}, optional={"done": json_values, "total": st.integers(-1, 5), "x": json_values})

    @given(st.none() | st.dictionaries(st.text(max_size=9), json_values), st.none() | progress | json_values)
    def test_a_payload_split_from_its_progress_is_joined_again(self, payload, progress):
        if payload is not None and progress is not None:
            payload = {**payload, "progress": progress}
        text = None if payload is None else cells.compact(payload)
        parts = cells.split(text)
        joined = cells.payload_of(parts.rest, parts.progress, done=False)
        assert (joined and cells.json.loads(joined)) == payload

    @given(st.sets(st.integers(0, 70), min_size=1), st.data())
    def test_ranks_number_the_expected_rows(self, rows, data):
        ranks = Ranks(IndexSet(rows))
        ordered = sorted(rows)
        assert [ranks.rank(row) for row in ordered] == list(range(len(ranks)))
        assert [ranks.row(rank) for rank in range(len(ranks))] == ordered
        assert {ranks.rank(row) for row in set(range(80)) - rows} == {-1}
        done = data.draw(st.sets(st.sampled_from(range(len(ranks)))))
        bits = bytearray(max(done) // 8 + 1 if done else 0)
        for rank in done:
            bits[rank // 8] |= 0x80 >> rank % 8
        assert ranks.unset(bytes(bits)) == IndexSet(row for row in ordered if ranks.rank(row) not in done)


class TestClients:
    def test_a_given_client_is_used_and_left_open(self, client, prefix):
        with RedisStore(client, prefix=prefix) as store:
            assert Manager.create(store, "job", num_tasks=1, task_index=0).set_state("a", 5).version == 1
        assert client.ping()
        assert store.get_job(JobKey("job")).num_tasks == 1

    def test_a_client_that_decodes_responses_is_rejected(self, redis_server):
        with redis_server.client(decode_responses=True) as client, pytest.raises(ConfigurationError, match="bytes"):
            RedisStore(client)

    def test_a_closed_store_connects_again(self, store):
        grid = Grid.create(store)
        store.close()
        assert grid.write("a", 0, 5).cell.version == 1

    def test_client_options_are_passed_to_the_client(self, redis_server, client, prefix):
        url = f"{redis_server.url}?prefix={prefix}&client_name=tracker&health_check_interval=7&socket_timeout=2.5"
        with open_store(url, timeout=9.0) as store:
            Grid.create(store).write("a", 0, 5)
            options = store._server.client.connection_pool.connection_kwargs
            assert (options["health_check_interval"], options["socket_timeout"]) == (7, 2.5)
            assert options["socket_connect_timeout"] == 9.0
            assert "tracker" in [each["name"] for each in client.client_list()]

    def test_threads_share_a_single_connection(self, redis_server, prefix):
        with open_store(redis_server.url, prefix=prefix, max_connections=1) as store:
            grid = Grid.create(store, 8, ("a",))
            threads = [
                threading.Thread(target=lambda row=row: [grid.write("a", row, n) for n in range(2, 30)])
                for row in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert {state.version for state in grid.states()} == {28}

    def test_protocols_2_and_3_read_the_same_values(self, redis_server, prefix):
        read = []
        for protocol in (2, 3):
            with open_store(redis_server.url, prefix=f"{prefix}:{protocol}", protocol=protocol) as store:
                grid = Grid.create(store, 3, ("a",))
                with grid.manager().subscribe() as events:
                    grid.begin("a", 1, owner="w")
                    seen = events.get(PATIENCE)
                store.put_worker("w", "{}", 1.0)
                found = [store.list_jobs().jobs, list(store.list_open_attempts()), list(store.list_workers())]
                found.append(grid.states())
                read.append(
                    [len(each) for each in found] + [seen.state.status, str(grid.manager().summary().missing_indexes)]
                )
        assert read[0] == read[1] == [1, 1, 1, 1, 1, "0,2"]

    def test_a_store_created_before_a_fork_works_in_parent_and_child(self, store):
        grid = Grid.create(store, 2, ("a",))
        grid.write("a", 0, 5)
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if grid.write("a", 1, 6).cell.version == 1 else 1)
            finally:
                os._exit(2)
        assert grid.write("a", 0, 7).cell.version == 2
        assert os.waitpid(child, 0)[1] == 0
        assert [state.status for state in sorted(grid.states(), key=lambda state: state.task_index)] == [7, 6]


def test_updating_a_job_that_another_process_deleted_raises_job_not_found(store):
    grid = Grid.create(store)
    job = grid.job
    store.delete_job(job)
    with pytest.raises(JobNotFound):
        store.update_job(replace(job, tombstoned_at=1))


def test_the_client_library_is_redis_py_5_or_newer():
    assert int(redis_py.__version__.partition(".")[0]) >= 5
