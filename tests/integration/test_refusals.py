"""A Redis that refuses writes for a while is an outage: endings wait and are written when it accepts them again."""

import pytest
from conftest import load
from servers import running_redis
from workers import Worker

from celery_statemanager import Status, StoreUnavailable

PATIENCE = 40
RETRIES = "cannot write a state, will retry"


def setting(name, refusing, accepting):
    """Return actions by which a server starts to refuse writes, and accepts them again, by one of its settings."""
    return lambda client: client.config_set(name, refusing), lambda client: client.config_set(name, accepting)


REFUSALS = {
    "full": setting("maxmemory", 1, 0),
    "too few replicas": setting("min-replicas-to-write", 1, 0),
    "a replica": (lambda client: client.replicaof("127.0.0.1", 1), lambda client: client.replicaof("NO", "ONE")),
}


@pytest.fixture(scope="module")
def server():
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def own(server, tmp_path_factory):
    home = tmp_path_factory.mktemp("refusals")
    tracked = load({"TRACKED_HOME": str(home), "TRACKED_BROKER": "filesystem://", "TRACKED_STORE": server.url})
    yield tracked
    tracked.states.store.close()
    tracked.app.close()


@pytest.fixture(scope="module")
def worker(own, server):
    environment = {"TRACKED_HOME": str(own.HOME), "TRACKED_BROKER": "filesystem://", "TRACKED_STORE": server.url}
    worker = Worker(environment, "threads", "celery")
    yield worker
    worker.kill()


def test_a_worker_warns_of_a_server_that_evicts(own, server, start_configured_worker, eventually):
    environment = {"TRACKED_HOME": str(own.HOME), "TRACKED_BROKER": "filesystem://", "TRACKED_STORE": server.url}
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        started = start_configured_worker(environment, "solo", "nobody")
        eventually(lambda: "maxmemory-policy is allkeys-lru): set it to noeviction" in started.log.read_text())
        client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize("refusal", REFUSALS)
def test_endings_wait_until_the_server_accepts_writes(own, worker, server, refusal, key, eventually):
    refuse, accept = REFUSALS[refusal]
    rows = [f"{key}-0", f"{key}-1"]
    job = own.states.submit([own.gate.s(rows[0]), own.late_gate.s(rows[1])], on_success=own.callback.s())
    eventually(lambda: all(own.notes(row) for row in rows))
    before = worker.log.read_text().count(RETRIES)
    with server.client() as client:
        refuse(client)
        try:
            for row in rows:
                (own.HOME / f"{row}.go").touch()
            eventually(lambda: worker.log.read_text().count(RETRIES) > before)
            with pytest.raises(StoreUnavailable):
                job.cancel("refused")
        finally:
            accept(client)
    assert job.wait(PATIENCE).finished == 2
    eventually(lambda: own.notes(f"callback.{job.id}"))
    assert [own.notes(row) for row in rows] == [["begun 1", "ended 1"]] * 2
    assert {state.status for state in job.list_states()} == {Status.FINISHED}
