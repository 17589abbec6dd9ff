"""A Redis that evicts keys causes errors that say so, and never wrong states, counts or callbacks."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from servers import running_redis

from celery_statemanager import StoreError, StoreUnavailable, SubscriptionLost, open_store
from celery_statemanager.models import Scope
from celery_statemanager.records import (
    CALLBACK_ROW,
    Claimed,
    ClaimRequest,
    Delivery,
    Flow,
    Latch,
    Reset,
    Write,
    new_job,
)
from celery_statemanager.stores.redis.keys import JobKeys
from celery_statemanager.testing import Grid
from celery_statemanager.testing.kit import PATIENCE

TAGS = ("a", "b")
ROWS = 4
_numbers = itertools.count()


@pytest.fixture(params=["redis_server", "redis_nodes"])
def store(request):
    server = request.getfixturevalue(request.param)
    url = server.url if request.param == "redis_server" else f"{server[0].url}?cluster=true"
    with open_store(url, prefix="evicting") as store:
        yield store


def worked(store, *, planned: bool = True) -> Grid:
    """Create a job whose cells are in every condition."""
    job = new_job(f"job {next(_numbers)}", ROWS, TAGS if planned else None).with_latches(success=Latch("s"))
    store.add_block(job.ref, 0, b"messages", 60)
    grid = Grid(store, store.create_job(replace(job, flow=Flow(2))).ref)
    claim(grid, "submitter")
    grid.run("a", 0, publisher="w", value='"kept"', next_is_due=True)
    grid.run("b", 0, publisher="w")
    grid.run("a", 1, -5)
    grid.begin("a", 2, owner="w")
    grid.write("a", 2, 40, attempt=1)
    grid.begin(name := "failure", CALLBACK_ROW, owner="w")
    grid.end(name, CALLBACK_ROW)
    store.write(grid.ref, Write.sent_back("a", 3, "again", attempt=0))
    return grid


def claim(grid: Grid, publisher: str) -> Claimed:
    return grid.store.claim(grid.ref, ClaimRequest(publisher=publisher, limit=2))


def keys_of(grid: Grid) -> list[str]:
    return [*JobKeys("evicting", grid.ref).every(TAGS)]


def without_identity(value: object) -> object:
    """Return what two jobs have in common that went through the same steps."""
    if hasattr(value, "cell"):
        claimed = str(getattr(value, "claimed", None))
        return value.cell.status, value.cell.version, value.cell.attempt, value.decided, claimed
    if hasattr(value, "version"):
        return value.status, value.version, value.attempt
    if isinstance(value, (list, tuple)):
        return [without_identity(each) for each in value]
    return value


def summary(grid: Grid, **options: bool) -> object:
    found = grid.manager().summary(**options)
    counts = found.not_started, found.running, found.finished, found.failed, found.not_run, found.fraction
    return *counts, str(found.failed_indexes), str(found.running_indexes), str(found.missing_indexes)


READS: dict[str, Callable[[Grid], object]] = {
    "lowest": lambda grid: grid.lowest(),
    "lowest of a tag": lambda grid: grid.lowest("b"),
    "lowest of a row": lambda grid: [grid.lowest(None, row) for row in range(ROWS)],
    "state": lambda grid: [grid.lowest(tag, row) for tag in TAGS for row in range(ROWS)],
    "cell": lambda grid: [grid.cell(tag, row) for tag in TAGS for row in range(ROWS)],
    "states": lambda grid: sorted((each.tag, each.task_index, each.status) for each in grid.states()),
    "states of a row": lambda grid: grid.states(None, 1),
    "states of a tag": lambda grid: sorted((each.task_index, each.status) for each in grid.states("a")),
    "summary": summary,
    "counts": lambda grid: summary(grid, indexes=False),
    "latches": lambda grid: sorted(grid.decided),
    "claims": lambda grid: {name: str(each.rows) for name, each in grid.store.get_outbox(grid.ref).claims.items()},
    "returned": lambda grid: str(grid.store.get_outbox(grid.ref).returned.waiting),
}
WRITES: list[Callable[[Grid], object]] = [
    lambda grid: grid.begin("a", 0),
    lambda grid: grid.begin("a", 3, owner="w", delivery=Delivery(1)),
    lambda grid: grid.write("a", 2, 50, attempt=1),
    lambda grid: grid.write("a", 2, 2**31 - 1, attempt=1, ends_attempt=True, publisher="w", value="1"),
    lambda grid: grid.store.write(grid.ref, Write.sent_back("a", 3, "again", attempt=1, is_open=True)),
    lambda grid: grid.begin("a", 1),
    lambda grid: grid.write("a", 1, -6, attempt=2, ends_attempt=True, block_later_stages=True),
    lambda grid: grid.store.reset_row(grid.ref, Reset(tag="a", task_index=1, generation=2)),
    lambda grid: grid.write("b", 1, 7),
    lambda grid: grid.write("b", 3, 2**31 - 1),
    lambda grid: grid.begin("failure", CALLBACK_ROW).verdict,
    lambda grid: claim(grid, "sweeper"),
]


def outcome(action: Callable[[Grid], object], grid: Grid) -> object:
    try:
        return without_identity(action(grid))
    except StoreError as error:
        return StoreError if "noeviction" in str(error) and not isinstance(error, StoreUnavailable) else error


def assert_right_or_refused(grid: Grid, twin: Grid) -> None:
    blobs = {
        "block": lambda grid: grid.store.get_block(grid.ref, 1),
        "values": lambda grid: [grid.store.get_value(grid.ref, row) for row in range(ROWS)],
    }
    for name, read in {**READS, **blobs}.items():
        found = outcome(read, grid)
        assert found in (StoreError, outcome(read, twin)), name


def evict(grid: Grid, keys: list[str]) -> None:
    for key in keys:
        grid.store._server.client.delete(key)


KEYS = range(14)
SETS = [[number] for number in KEYS] + [random.Random(seed).sample(KEYS, 2 + seed % 7) for seed in range(40)]


@pytest.mark.parametrize("planned", [True, False])
def test_no_answer_is_wrong_whatever_was_evicted(store, planned):
    for chosen in SETS:
        grid, twin = worked(store, planned=planned), worked(store, planned=planned)
        evict(grid, [keys_of(grid)[number] for number in chosen])
        assert_right_or_refused(grid, twin)
        for write in WRITES:
            found, expected = outcome(write, grid), outcome(write, twin)
            if found is StoreError:
                break  # from here on the twin differs
            assert found == expected, (chosen, write)
        else:
            assert_right_or_refused(grid, twin)


def test_a_refused_step_changes_nothing(store):
    grid = worked(store)
    keys = JobKeys("evicting", grid.ref)
    client = store._server.client
    evict(grid, [keys.cells("b")])
    before = {key: client.dump(key) for key in (keys.head, *keys_of(grid))}
    with pytest.raises(StoreError, match="noeviction"):
        grid.end("a", 2, -1)  # which would block the row's cell of tag b
    with pytest.raises(StoreError, match="noeviction"):
        grid.begin("a", 1)  # which would unblock it
    assert {key: client.dump(key) for key in before} == before


def test_no_callback_follows_for_rows_that_never_ran(store):
    grid = Grid.create(store, 2, ("a",), job_id=f"job {next(_numbers)}", success="s")
    grid.run("a", 0)
    evict(grid, [JobKeys("evicting", grid.ref).cells("a")])
    for action in (lambda: grid.begin("a", 0), lambda: grid.run("a", 0), lambda: grid.manager().summary()):
        with pytest.raises(StoreError, match=r"evicted .*noeviction.*:cells:a"):
            action()
    assert grid.decided == set()


def test_a_subscription_ends_with_the_reason(store):
    grid = worked(store)
    with grid.manager().subscribe() as events:
        while events.get(0.1):
            pass
        evict(grid, [JobKeys("evicting", grid.ref).cells("a")])
        grid.write("b", 2, 9)
        assert events.get(PATIENCE).state.status == 9
        evict(grid, [JobKeys("evicting", grid.ref).stream])
        with pytest.raises(SubscriptionLost, match="noeviction"):
            events.get(PATIENCE)


def test_a_job_whose_record_was_evicted_is_not_reported_as_deleted(store):
    grid = worked(store)
    with grid.manager().subscribe() as events:
        while events.get(0.1):
            pass
        evict(grid, [JobKeys("evicting", grid.ref).head])
        for action in (*READS.values(), *WRITES[:4]):
            if action is not READS["summary"] and action is not READS["counts"] and action is not READS["latches"]:
                with pytest.raises(StoreError, match="noeviction"):
                    action(grid)
        with pytest.raises(SubscriptionLost, match="noeviction"):
            events.get(PATIENCE)
    with pytest.raises(LookupError):  # by its name alone, nothing is known of it
        store.get_job(grid.ref.key)


def test_a_deleted_job_is_not_reported_as_evicted(store):
    grid = worked(store)
    watch = store.watch(grid.ref, Scope())
    grid.delete()
    for read in READS.values():
        with pytest.raises(LookupError):
            read(grid)
    with pytest.raises(LookupError):
        watch.read(PATIENCE)
    watch.close()


class TestWarnings:
    @pytest.fixture
    def server(self):
        with running_redis(maxmemory_policy="allkeys-lru") as server, server.client() as client:
            client.acl_setuser("limited", enabled=True, passwords=["+p"], keys=["*"], categories=["+@all"])
            client.execute_command("ACL", "SETUSER", "limited", "-info", "-config")
            yield server

    def test_a_policy_that_evicts_is_named(self, server):
        with open_store(server.url) as store:
            assert [warning.partition(" deletes")[0] for warning in store.server_warnings()] == [store._server.shown]
            assert "allkeys-lru" in store.server_warnings()[0]
            for policy in ("volatile-ttl", "noeviction"):
                with server.client() as client:
                    client.config_set("maxmemory-policy", policy)
                found = store.server_warnings()
                assert [policy in each for each in found] == ([] if policy == "noeviction" else [True])

    def test_a_server_whose_policy_cannot_be_read_causes_no_warning(self, server):
        with open_store(f"redis://limited:p@127.0.0.1:{server.port}") as store:
            assert store.server_warnings() == []
            assert Grid.create(store).write("a", 0, 5).cell.version == 1
        with running_redis(rename_command="INFO ''") as other, open_store(other.url) as store:
            assert store.server_warnings() == []

    def test_every_master_of_a_cluster_is_asked(self, redis_nodes):
        with open_store(f"redis+cluster://127.0.0.1:{redis_nodes[0].port}") as store:
            assert store.server_warnings() == []
            with redis_nodes[2].client() as client:
                client.config_set("maxmemory-policy", "allkeys-lfu")
                try:
                    assert len(store.server_warnings()) == 1
                finally:
                    client.config_set("maxmemory-policy", "noeviction")

    def test_a_server_that_does_not_answer_is_unavailable(self):
        with open_store("redis://127.0.0.1:1") as store, pytest.raises(StoreUnavailable):
            store.server_warnings()

    def test_list_state_warns_and_lists_the_other_jobs(self, server):
        with open_store(server.url, prefix="evicting") as store:
            lost, whole = worked(store), worked(store)
            evict(lost, [JobKeys("evicting", lost.ref).tallies])
            command = [sys.executable, "-m", "celery", "list-state", "--store", f"{server.url}?prefix=evicting"]
            listed = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True)
            assert [json.loads(line)["jobID"] for line in listed.stdout.splitlines()] == [whole.ref.key.job_id]
            assert "maxmemory-policy is allkeys-lru" in listed.stderr
            assert f"job '{lost.ref.key.job_id}' is not listed" in listed.stderr


def test_a_server_that_evicts_under_pressure_gives_no_wrong_answer():
    with running_redis(maxmemory="3mb", maxmemory_policy="allkeys-random") as server, open_store(server.url) as store:
        refused = 0
        with server.client() as client:
            for job in range(60):
                grid = Grid.create(store, 3, ("a",), job_id=str(job))
                try:
                    for row in range(2):
                        grid.run("a", row, message="x" * 20_000)
                        client.set(f"other {job} {row}", "y" * 100_000)
                    assert grid.manager().summary().finished == 2
                    assert grid.decided == set()
                except (StoreError, LookupError) as error:
                    refused += "noeviction" in str(error)
            assert client.info("stats")["evicted_keys"] > 0
        assert refused > 0
