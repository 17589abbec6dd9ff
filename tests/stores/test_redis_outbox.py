"""What only the Redis store guarantees of outboxes: costs, interrupted steps in two slots, lost keys, full servers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from redis_kit import check_refused_when_full
from servers import running_redis

from celery_statemanager import JobNotFound, StoreError, StoreUnavailable, open_store
from celery_statemanager.indexset import IndexSet
from celery_statemanager.records import Claimed, Flow, JobRecord, JobRef
from celery_statemanager.stores.redis.keys import JobKeys, entry_of
from celery_statemanager.stores.redis.tuning import Tuning
from celery_statemanager.testing import Grid
from celery_statemanager.testing import contract_outbox as outbox
from celery_statemanager.testing.contract_outbox import claim
from celery_statemanager.testing.kit import FINISHED, every_job, purge

SERVERS = ["redis_server", "redis_nodes"]


@pytest.fixture
def store(redis_store):
    return redis_store


@pytest.fixture
def impatient(redis_server, prefix):
    """Yield another store on the same keys, which treats old entries of the registry as soon as they exist."""
    with open_store(redis_server.url, prefix=prefix, tuning=Tuning(quiet_after=0.0, orphaned_after=0.0)) as store:
        yield store


def draft(num_tasks: int = 6, **options) -> JobRecord:
    return outbox.draft(num_tasks, **options)


def create(store, num_tasks: int = 6, **options) -> Grid:
    return outbox.create(store, num_tasks, **options)


def calls(client) -> dict[str, int]:
    """Return how often the server has run each command, also inside scripts."""
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in client.info("commandstats").items()}


def keys_left(client, prefix: str) -> list[bytes]:
    return list(client.scan_iter(f"{prefix}:*"))


class TestCosts:
    @pytest.fixture
    def sent(self, store, monkeypatch):
        """Record the calls of the server."""
        sent: list[str] = []
        for name in ("run", "call", "call_all"):
            act = getattr(store._server, name)
            monkeypatch.setattr(
                store._server, name, lambda *args, name=name, act=act: (sent.append(name), act(*args))[1]
            )
        return sent

    def test_a_claim_and_an_end_that_claims_are_one_round_trip_each(self, store, sent):
        grid = create(store, max_in_flight=2)
        grid.write("a", 5, 5)  # touches the job
        uses = [
            lambda: claim(grid, limit=2),
            lambda: claim(grid, "q", dead=frozenset({"p", "unknown"})),
            lambda: store.get_outbox(grid.ref),
            lambda: grid.begin("a", 0, owner="w"),
            lambda: grid.write("a", 0, -1, attempt=1, ends_attempt=True, publisher="w"),
        ]
        sent.clear()
        for use in uses:
            reply = use()
            assert sent == ["run"]
            sent.clear()
        assert reply.claimed == IndexSet([2])

    @pytest.mark.parametrize("max_in_flight", ["no flow", None])
    def test_without_a_window_an_end_reads_one_command_more(self, store, client, max_in_flight):
        grid = Grid.create(store, 6, ("a",)) if max_in_flight == "no flow" else create(store)
        grid.run("a", 5)
        made = {}
        for row, publisher in enumerate((None, "w")):
            grid.begin("a", row)
            client.config_resetstat()
            grid.write("a", row, FINISHED, attempt=1, ends_attempt=True, publisher=publisher)
            made[publisher] = calls(client)
        assert made["w"].pop("hmget") == made[None].pop("hmget") + 1
        assert made["w"] == made[None]

    def test_a_block_is_stored_and_found_in_two_round_trips(self, store, sent):
        job = draft()
        store.add_block(job.ref, 0, b"x", 60)
        assert sent == ["run", "call_all"]
        sent.clear()
        assert store.get_block(job.ref, 4) == (0, b"x")
        assert sent == ["call_all", "call"]
        sent.clear()
        store.create_job(job)
        assert sent == ["run", "run", "call"]


class TestDrafts:
    def test_a_dropped_draft_leaves_no_key(self, store, client, prefix):
        for drop in (lambda job: store.drop_draft(job.ref), lambda _: store.drop_expired_drafts()):
            job = draft()
            store.add_block(job.ref, 0, b"x", 0)
            assert keys_left(client, prefix)
            drop(job)
            assert keys_left(client, prefix) == []

    def test_a_refused_job_leaves_no_key(self, store, client, prefix):
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.create_job(draft())
        assert keys_left(client, prefix) == []

    def test_a_submitter_that_dies_before_its_first_block_leaves_no_key(self, store, client, prefix):
        store._registry.extend_draft(draft().ref, 0)
        assert store.drop_expired_drafts() == 0
        assert keys_left(client, prefix) == []

    def test_a_submitter_that_dies_after_the_creation_keeps_its_messages(self, store, client, prefix, monkeypatch):
        def fail(ref: JobRef) -> None:
            raise StoreUnavailable("away")

        job = draft()
        store.add_block(job.ref, 0, b"x", 0)
        monkeypatch.setattr(store._registry, "forget_draft", fail)
        assert store.create_job(job).revision == 1
        monkeypatch.undo()
        assert client.zcard(f"{prefix}:{{*}}:drafts") == 1
        assert store.drop_expired_drafts() == 0
        assert client.zcard(f"{prefix}:{{*}}:drafts") == 0
        assert store.get_block(job.ref, 0) == (0, b"x")

    @pytest.fixture
    def before_drops(self, store, monkeypatch):
        """Return a list; its functions are called after the expired drafts were listed and before they are dropped."""
        acts = []
        call_all = store._server.call_all

        def act(commands):
            sent = list(commands)
            while acts and sent[0][0] == "UNLINK":
                acts.pop()()
            return call_all(sent)

        monkeypatch.setattr(store._server, "call_all", act)
        return acts

    def test_a_job_that_is_created_while_its_draft_is_dropped_keeps_its_messages(self, store, before_drops):
        job = draft()
        store.add_block(job.ref, 0, b"x", 0)
        before_drops.append(lambda: store.create_job(job))
        assert store.drop_expired_drafts() == 0
        assert store.get_block(job.ref, 0) == (0, b"x")

    def test_a_draft_that_is_extended_while_it_is_dropped_stays_listed(self, store, client, prefix, before_drops):
        job = draft()
        store.add_block(job.ref, 0, b"x", 0)
        before_drops.append(lambda: store.add_block(job.ref, 3, b"y", 60))
        assert store.drop_expired_drafts() == 1
        assert store.get_block(job.ref, 3) is None
        assert client.zcard(f"{prefix}:{{*}}:drafts") == 1
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.add_block(job.ref, 4, b"z", 60)
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.create_job(job)
        store.drop_draft(job.ref)
        assert keys_left(client, prefix) == []

    def test_a_block_is_found_although_the_job_is_created_meanwhile(self, store, monkeypatch):
        job = draft()
        store.add_block(job.ref, 0, b"x", 60)
        call = store._server.call

        def create_before(*command):
            monkeypatch.undo()
            store.create_job(job)
            return call(*command)

        monkeypatch.setattr(store._server, "call", create_before)
        assert store.get_block(job.ref, 0) == (0, b"x")

    def test_a_late_block_does_not_change_a_job(self, store, client, prefix):
        grid = create(store)
        store.add_block(grid.ref, 0, b"late", 0)
        for _ in range(2):
            assert store.get_block(grid.ref, 0) == (0, b"messages")
            assert client.ttl(JobKeys(prefix, grid.ref).blocks) == -1
            store.drop_expired_drafts()
        assert client.exists(JobKeys(prefix, grid.ref).draft) == 0

    def test_the_server_deletes_a_draft_that_is_not_listed(self, store, client, prefix):
        job = draft()
        store.add_block(job.ref, 0, b"x", 30.5)
        assert 3_600 < client.ttl(JobKeys(prefix, job.ref).draft) <= 3_631
        store.create_job(job)
        assert client.ttl(JobKeys(prefix, job.ref).blocks) == -1

    def test_a_purge_keeps_a_job_whose_creation_took_too_long(self, store, impatient, monkeypatch):
        job = draft()
        store.add_block(job.ref, 0, b"x", 60)
        register = store._registry.register
        monkeypatch.setattr(store._registry, "register", lambda ref: (register(ref), impatient.list_jobs()))
        store.create_job(job)
        monkeypatch.undo()
        assert list(every_job(store)) == []
        purge(store)
        assert store.get_block(job.ref, 0) == (0, b"x")
        assert [each.job_id for each in every_job(store, due=True)] == ["job"]

    def test_a_purged_draft_is_refused(self, store, impatient, client, prefix):
        job = draft()
        store.add_block(job.ref, 0, b"x", 0)
        store._registry.register(job.ref)
        assert impatient.list_jobs().jobs == []
        purge(store)
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.create_job(job)
        store.drop_expired_drafts()
        assert keys_left(client, prefix) == []

    def test_many_drafts_are_dropped_in_one_call(self, store, client, prefix):
        for number in range(130):
            store.add_block(draft(job_id=f"job {number}").ref, 0, b"x", 0)
        assert store.drop_expired_drafts() == 130
        assert keys_left(client, prefix) == []


class TestLostKeys:
    @pytest.mark.parametrize("server", SERVERS)
    def test_lost_blocks_are_reported(self, request, prefix, server):
        found = request.getfixturevalue(server)
        url = found.url if server == "redis_server" else f"{found[0].url}?cluster=true"
        with open_store(url, prefix=prefix) as store:
            grid = create(store)
            keys = JobKeys(prefix, grid.ref)
            assert store._server.client.delete(keys.blocks) == 1
            with pytest.raises(StoreError, match=r"evicted .*noeviction.*:blocks"):
                store.get_block(grid.ref, 0)
            assert claim(grid).rows == IndexSet(range(6))

    def test_a_lost_draft_is_refused(self, store, client, prefix):
        job = draft()
        store.add_block(job.ref, 0, b"x", 60)
        client.delete(JobKeys(prefix, job.ref).draft)
        with pytest.raises(StoreError, match="its stored messages were deleted"):
            store.create_job(job)

    def test_a_lost_job_is_not_claimed(self, store, client, prefix):
        grid = create(store)
        client.delete(JobKeys(prefix, grid.ref).head)
        for use in (lambda: claim(grid), lambda: store.get_outbox(grid.ref)):
            with pytest.raises(StoreError, match="noeviction"):
                use()

    def test_a_deleted_job_is_not_reported_as_lost(self, store):
        grid = create(store)
        assert store.delete_job(grid.job)
        for use in (lambda: claim(grid), lambda: store.get_outbox(grid.ref)):
            with pytest.raises(JobNotFound):
                use()
        purge(store)
        assert store.get_block(grid.ref, 0) is None

    def test_claims_survive_a_new_incarnation(self, store):
        grid = create(store)
        claim(grid, limit=2)
        store.adopt_job(grid.ref, "new")
        adopted = Grid(store, JobRef(grid.ref.key, "new"))
        assert store.get_outbox(adopted.ref).claims["p"].rows == IndexSet([0, 1])
        assert store.get_block(adopted.ref, 3) == (0, b"messages")


class TestFullServer:
    @pytest.fixture
    def server(self):
        with running_redis() as server:
            yield server

    def test_a_full_server_rejects_a_step_completely(self, server):
        with open_store(server.url) as store, server.client() as client:
            grid, other = create(store, max_in_flight=1), draft(job_id="other")
            claim(grid)
            grid.begin("a", 0)
            steps = [
                lambda: store.add_block(other.ref, 0, b"x", 60),
                lambda: store.create_job(other),
                lambda: claim(grid, "q", dead=frozenset({"p"})),
                lambda: grid.write("a", 0, -1, attempt=1, ends_attempt=True, publisher="w"),
            ]
            check_refused_when_full(client, steps)
            assert store.get_block(grid.ref, 0) == (0, b"messages")
            assert store.delete_job(grid.job)
            purge(store)
            assert list(client.scan_iter()) == []

    def test_a_block_that_does_not_fit_is_not_stored(self, server):
        with open_store(server.url) as store, server.client() as client:
            job = draft()
            store.add_block(job.ref, 0, b"x", 60)
            extend = store._registry.extend_draft
            store._registry.extend_draft = lambda *args: (extend(*args), client.config_set("maxmemory", 1))
            with pytest.raises(StoreUnavailable, match="is full"):
                store.add_block(job.ref, 3, b"y" * 100_000, 60)
            client.config_set("maxmemory", 0)
            assert store.get_block(job.ref, 3) == (0, b"x")


class TestDue:
    def test_a_quiet_job_is_due_until_it_settles(self, store, impatient, client, prefix):
        live = f"{prefix}:{{*}}:live"
        grid, settled, plain = create(store, 1), create(store, 1, job_id="settled"), Grid.create(store, job_id="plain")
        settled.run("a", 0)
        list(impatient.list_open_attempts())
        assert client.zrange(live, 0, -1) == [entry_of(grid.ref).encode()]
        assert [job.job_id for job in every_job(store, due=True)] == ["job"]
        grid.seen_by(impatient).run("a", 0)
        list(impatient.list_open_attempts())
        assert client.zcard(live) == 0
        plain.seen_by(impatient).update(lambda job: replace(job, flow=Flow(2)))
        list(impatient.list_open_attempts())
        assert [job.job_id for job in every_job(store, due=True)] == ["plain"]


class TestClaims:
    def test_touching_ranges_of_several_publishers_are_joined(self, store):
        grid = create(store, 40)
        for number in range(20):
            claim(grid, f"p{number}", 2)
        dead = frozenset(f"p{number}" for number in range(20) if number != 7)
        taken = claim(grid, "sweeper", dead=dead)
        assert str(taken.rows) == str(taken.again) == "0-13,16-39"
        assert str(store.get_outbox(grid.ref).claims["sweeper"].rows) == "0-13,16-39"

    @pytest.mark.parametrize("publisher", ["host:1:0f", "ß %7D\n*", "claim:", "claimed", ""])
    def test_any_text_names_a_publisher(self, store, publisher):
        grid = create(store, 4)
        claim(grid, publisher, 1)
        assert store.get_outbox(grid.ref).claims.keys() == {publisher}
        assert claim(grid, "p", 1, dead=frozenset({publisher})).rows == IndexSet([0, 1])
        assert store.get_outbox(grid.ref).claims.keys() == {"p"}

    def test_a_publisher_may_take_over_its_own_claim(self, store):
        grid = create(store, 4)
        claim(grid, limit=2)
        assert claim(grid, limit=1, dead=frozenset({"p"})) == Claimed(IndexSet([0, 1, 2]), IndexSet([0, 1]), 1)
        assert store.get_outbox(grid.ref).claims["p"].rows == IndexSet([0, 1, 2])

    def test_the_end_of_the_last_row_claims_nothing(self, store):
        grid = create(store, 2, max_in_flight=2)
        claim(grid, limit=1)
        grid.run("a", 0)
        grid.begin("a", 1)
        assert grid.end("a", 1, publisher="p").claimed == IndexSet()
        assert store.get_outbox(grid.ref).claims["p"].rows == IndexSet([0]), "a settled job has nothing to claim"

    def test_a_claim_is_no_activity_and_no_change_of_the_record(self, store):
        grid = create(store)
        before = grid.job
        claim(grid)
        assert grid.job == before

    def test_a_claim_is_gone_with_its_job(self, store, client, prefix):
        grid = create(store)
        claim(grid)
        with suppress(JobNotFound):
            grid.delete()
        assert keys_left(client, prefix) == []
