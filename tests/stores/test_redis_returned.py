"""What only the Redis store guarantees of returned rows, next stages and values: costs, sizes, lost keys."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from redis_kit import check_refused_when_full
from servers import running_redis

from celery_statemanager import StoreError, open_store
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import (
    CALLBACK_ROW,
    Claimed,
    ClaimRequest,
    Delivery,
    Flow,
    JobRef,
    OutboxState,
    Reset,
    Returned,
    Verdict,
    Write,
)
from celery_statemanager.stores.redis.keys import JobKeys
from celery_statemanager.testing import Grid
from celery_statemanager.testing.contract_outbox import claim, create, rows, state
from celery_statemanager.testing.contract_rerun import rerun, reset
from celery_statemanager.testing.contract_returned import give_back, pause, published, send_back
from celery_statemanager.testing.kit import FAILED, FINISHED, purge

STAGES = ("a", "b")


@pytest.fixture
def store(redis_store):
    return redis_store


class TestCosts:
    @pytest.fixture
    def count(self, client):
        """Return a function that counts the commands of a use, also those inside scripts."""

        def count(use) -> Counter[str]:
            client.config_resetstat()
            use()
            stats = client.info("commandstats")
            made = Counter({name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()})
            for name in ("info", "config|resetstat"):
                made.pop(name, None)
            return made

        return count

    def ends(self, grid: Grid, count, row: int, **fields) -> Counter[str]:
        grid.begin("a", row)
        return count(lambda: grid.write("a", row, FINISHED, attempt=1, ends_attempt=True, **fields))

    def test_an_end_runs_further_commands_only_for_what_it_uses(self, store, count):
        plain, windowed = published(store, 9, STAGES), create(store, 9, STAGES, max_in_flight=9, job_id="windowed")
        claim(windowed)
        for grid in (plain, windowed):
            grid.run("a", 8)
            usual = self.ends(grid, count, 0)
            assert usual["evalsha"] == 1
            assert self.ends(grid, count, 1, publisher="w") - usual == (
                {"hmget": 1} if grid is plain else {"hmget": 1, "hdel": 1}
            )
            assert self.ends(grid, count, 2, publisher="w", next_is_due=True) - usual == {"hmget": 1, "hset": 1}
            grid.write("a", 8, FINISHED, value="1")
            chained = self.ends(grid, count, 3, publisher="w", next_is_due=True, value="1")
            assert chained - usual == {"hmget": 1, "hset": 3, "hlen": 1, "hget": 1}

    def test_an_end_in_a_window_claims_with_two_commands(self, store, count):
        grid = create(store, 9, max_in_flight=5)
        claim(grid)
        grid.run("a", 8)
        usual = self.ends(grid, count, 0)
        assert self.ends(grid, count, 1, publisher="w") - usual == {"hmget": 1, "hset": 1}
        assert state(grid).claims["w"].rows == rows("5-7")

    def test_a_begin_that_may_wait_costs_nothing_if_it_need_not(self, store, count):
        grid = published(store, 9)
        grid.run("a", 8)
        usual, cautious = (count(lambda row=row: grid.begin("a", row, may_wait=row == 1)) for row in range(2))
        assert usual == cautious

    def test_each_step_is_one_round_trip(self, store, count):
        grid = published(store, 9)
        pause(grid)
        grid.run("a", 8, value="1")
        uses = [
            lambda: store.write(grid.ref, Write.sent_back("a", 0, "why", attempt=0)),
            lambda: grid.begin("a", 1, may_wait=True),
            lambda: give_back(grid, "submitter", Returned(waiting=rows("2-3"))),
            lambda: state(grid),
            lambda: store.get_value(grid.ref, 8),
            lambda: store.get_value(grid.ref, 7),
        ]
        assert [count(use)["evalsha"] for use in uses] == [1] * len(uses)
        assert state(grid).returned == Returned(waiting=rows("0-3"))

    def test_a_reset_costs_the_same_in_a_job_of_any_size(self, store, count):
        made = []
        for num_tasks in (9, 9_000):
            grid = create(store, num_tasks, STAGES, job_id=f"{num_tasks} rows")
            claim(grid)
            for row in (0, 1):
                grid.run("a", row, FAILED)
            rerun(grid, "0-1")
            reset(grid, "a", 0)
            made.append(count(lambda grid=grid: reset(grid, "a", 1)))
        assert made[0] == made[1]
        assert made[0]["evalsha"] == 1


class TestSizes:
    @pytest.mark.parametrize("num_tasks", [1, 7, 8, 9, 64])
    def test_the_last_row_is_returned(self, store, num_tasks):
        grid, last = published(store, num_tasks), num_tasks - 1
        send_back(grid, "a", last)
        assert state(grid).returned == Returned(waiting=IndexSet([last]))
        assert claim(grid, "p").rows == IndexSet([last])
        grid.begin("a", last, owner="w", delivery=Delivery(1))
        send_back(grid, "a", last, is_open=True)
        assert state(grid).returned == Returned(begun=IndexSet([last]))
        assert claim(grid, "q").rows == IndexSet([last])

    def test_thousands_of_ranges_are_returned_and_claimed(self, store, client, prefix):
        grid = create(store, 40_000)
        claim(grid, "p")
        claim(grid, "p", 40_000)
        odd = IndexSet(range(101, 40_000, 2))
        give_back(grid, "p", Returned(waiting=odd))
        assert state(grid) == OutboxState(40_000, {}, Returned(waiting=odd))
        assert client.memory_usage(JobKeys(prefix, grid.ref).returned) < 13_000
        assert claim(grid, "q", 15_000).rows == odd.head(15_000)
        assert claim(grid, "r", 40_000, dead=("q",)).again == odd
        assert state(grid).claims["r"].rows == odd
        assert client.exists(JobKeys(prefix, grid.ref).returned) == 0

    def test_an_end_that_claimed_several_ranges_is_found_again(self, store):
        grid = published(store, 9, max_in_flight=5)
        grid.begin("a", 0)
        send_back(grid, "a", 1)
        send_back(grid, "a", 3)
        first = grid.end("a", 0, publisher="w", event_id="0" * 32)
        again = grid.write("a", 0, FINISHED, attempt=1, ends_attempt=True, publisher="v", event_id="0" * 32)
        assert (first.claimed, again.changed, again.claimed) == (rows("1,3,5"), False, rows("1,3,5"))

    @pytest.mark.parametrize("size", [10, 100])
    def test_a_small_value_takes_few_bytes_more_than_its_text(self, store, client, prefix, size):
        grid, count = published(store, 4_000), 4_000
        for row in range(count):
            grid.write("a", row, FINISHED, value=f"{row:0{size}}")
        taken = client.memory_usage(JobKeys(prefix, grid.ref).values, samples=0)
        assert taken - size * count < 32 * count


class TestKeys:
    def test_a_deleted_job_leaves_no_key(self, store, client, prefix):
        grid = published(store, 9, STAGES)
        grid.run("a", 0, value="1")
        send_back(grid, "a", 1)
        send_back(grid, "b", 2)
        keys = JobKeys(prefix, grid.ref)
        assert client.exists(keys.values, keys.returned) == 2
        grid.delete()
        assert list(client.scan_iter(f"{prefix}:*")) == []

    def test_no_key_is_left_when_nothing_is_returned_or_kept(self, store, client, prefix):
        grid = published(store, 9, max_in_flight=9)
        keys = JobKeys(prefix, grid.ref)
        grid.write("a", 0, FINISHED, value="1")
        grid.write("a", 0, FINISHED, value="")
        grid.write("a", 0, FINISHED, value="")
        send_back(grid, "a", 1)
        grid.begin("a", 1, delivery=Delivery(1))
        grid.end("a", 1, FAILED, publisher="w")
        assert client.exists(keys.values, keys.returned) == 0
        assert client.hmget(keys.head, "values", "returned") == [b"0", b"0"]

    def test_returned_rows_and_values_survive_a_new_incarnation(self, store):
        grid = published(store, 9)
        grid.write("a", 0, FINISHED, value="1")
        send_back(grid, "a", 1)
        store.adopt_job(grid.ref, "new")
        adopted = Grid(store, JobRef(grid.ref.key, "new"))
        assert state(adopted).returned == Returned(waiting=rows("1"))
        assert store.get_value(adopted.ref, 0) == "1"
        assert claim(adopted).rows == rows("1")

    def test_lost_values_are_reported(self, store, client, prefix):
        grid = published(store, 9)
        grid.write("a", 0, FINISHED, value="1")
        client.delete(JobKeys(prefix, grid.ref).values)
        uses = [
            lambda: store.get_value(grid.ref, 0),
            lambda: grid.write("a", 1, FINISHED, value="2"),
            lambda: grid.write("a", 0, FINISHED, value=""),
        ]
        for use in uses:
            with pytest.raises(StoreError, match=r"evicted .*noeviction.*:values"):
                use()
        assert grid.write("a", 0, 6).cell.version == 2

    def test_lost_returned_rows_are_reported(self, store, client, prefix):
        grid = published(store, 9)
        for row in (0, 1):
            grid.begin("a", row)
        send_back(grid, "a", 2)
        pause(grid)
        rerun(grid, "5")
        client.delete(JobKeys(prefix, grid.ref).returned)
        uses = [
            lambda: state(grid),
            lambda: claim(grid),
            lambda: send_back(grid, "a", 3),
            lambda: grid.begin("a", 4, may_wait=True),
            lambda: grid.end("a", 0, publisher="w"),
            lambda: store.reset_row(grid.ref, Reset(tag="a", task_index=5, generation=2)),
        ]
        for use in uses:
            with pytest.raises(StoreError, match=r"evicted .*noeviction.*:returned"):
                use()
        assert (grid.cell("a", 4).version, grid.cell("a", 5).version) == (0, 0)
        assert grid.end("a", 1).cell.status == FINISHED

    def test_a_value_of_a_lost_job_is_reported(self, store, client, prefix):
        grid = published(store, 9)
        grid.write("a", 0, FINISHED, value="1")
        client.delete(JobKeys(prefix, grid.ref).head)
        with pytest.raises(StoreError, match="noeviction"):
            store.get_value(grid.ref, 0)


def test_a_row_that_was_returned_without_a_claim_counts_as_claimed_before(store):
    """A server that was restored from a snapshot may have lost the claim."""
    grid = create(store, 9, max_in_flight=4)
    send_back(grid, "a", 1)
    assert claim(grid, "p", 3) == Claimed(rows("0-1"), rows("1"), 7)
    send_back(grid, "a", 8)
    grid.begin("a", 0)
    ended = grid.end("a", 0, publisher="p")
    assert (ended.claimed, ended.again) == (rows("2-4,8"), rows("8"))


def test_a_callback_is_not_returned(store):
    grid = published(store, 1)
    grid.begin("success", CALLBACK_ROW, owner="w")
    back = Write.sent_back("success", CALLBACK_ROW, "again", attempt=1, is_open=True)
    assert store.write(grid.ref, back).cell.delivery == Delivery(1)
    assert state(grid).returned == Returned()


def test_a_job_that_is_created_paused_claims_nothing(store):
    grid = Grid.submitted(store, 3, flow=Flow(2, paused=True))
    assert state(grid).claimed == 0
    assert grid.begin("a", 0, may_wait=True).verdict is Verdict.PAUSED
    pause(grid, paused=False)
    assert claim(grid).rows == rows("0-1")


def test_a_full_server_rejects_a_step_completely():
    with running_redis() as server, open_store(server.url) as store, server.client() as client:
        grid = published(store, 9, STAGES, max_in_flight=8)
        for row in (0, 1):
            grid.begin("a", row, owner="w")
        for row in (3, 4):  # the dump of a hash with five cells may change at each read
            send_back(grid, "a", row)
        claim(grid, "p", 1)
        pause(grid)
        returns = ClaimRequest(publisher="submitter", limit=0, returned=Returned(waiting=rows("5")))
        steps = [
            lambda: send_back(grid, "a", 0, is_open=True),
            lambda: grid.begin("a", 5, may_wait=True),
            lambda: store.claim(grid.ref, returns),
            lambda: claim(grid, dead=("submitter",)),
            lambda: grid.end("a", 1, publisher="w", next_is_due=True, value="1"),
            lambda: grid.update(lambda job: replace(job, flow=Flow())),
        ]
        check_refused_when_full(client, steps)
        client.config_set("maxmemory", 0)
        pause(grid, paused=False)
        client.config_set("maxmemory", 1)
        check_refused_when_full(client, [lambda: claim(grid, "q")])
        assert store.delete_job(grid.job)
        purge(store)
        assert list(client.scan_iter()) == []


def test_a_full_server_rejects_the_steps_of_a_rerun_completely():
    with running_redis() as server, open_store(server.url) as store, server.client() as client:
        grid = published(store, 9, STAGES, max_in_flight=8)
        grid.run("a", 0, FAILED)
        request = Reset(tag="a", task_index=0, generation=2)
        check_refused_when_full(client, [lambda: rerun(grid, "0")])
        client.config_set("maxmemory", 0)
        rerun(grid, "0")
        check_refused_when_full(client, [lambda: store.reset_row(grid.ref, request)])
        client.config_set("maxmemory", 0)
        grid.cancel()
        dropping = ClaimRequest(publisher="submitter", limit=0, drop_unclaimed=True)
        check_refused_when_full(client, [lambda: store.claim(grid.ref, dropping)])
