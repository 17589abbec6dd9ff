"""A chain whose stage returns while the broker is away: its row does not wait for ever (rules R13, R16)."""

import pytest
from conftest import load
from servers import running_redis

from celery_statemanager import Status
from celery_statemanager.testing import Proxy

PATIENCE = 60


@pytest.fixture
def away(tmp_path, key, start_configured_worker, eventually):
    """Yield a function that runs a chain and takes the broker away while its first stage runs."""
    with running_redis() as server, Proxy("127.0.0.1", server.port) as proxy:
        broker = server.url.replace(str(server.port), str(proxy.port))
        environment = {
            "TRACKED_HOME": str(tmp_path),
            "TRACKED_BROKER": broker,
            "TRACKED_STORE": f"sqlite:///{tmp_path}/s.db",
        }
        tracked = load(environment)

        def run(first):
            worker = start_configured_worker(environment, "threads", key)
            member = getattr(tracked, first).s(key).set(queue=key) | tracked.second.s().set(queue=key)
            job = tracked.states.submit([member])
            eventually(lambda: tracked.notes(key))
            with proxy.down():
                (tracked.HOME / f"{key}.go").touch()
                eventually(lambda: job.get_state("work", 0).message)
            worker.kill()
            message = job.get_state("work", 0).message
            assert message.startswith("returned, but its next stage was not published: OperationalError: "), message
            start_configured_worker(environment, "threads", key)
            return tracked, job

        yield run


@pytest.mark.full
def test_a_row_fails_if_its_next_stage_cannot_be_published(away, key):
    _, job = away("gate")
    assert job.wait(PATIENCE).failed == 1
    first, second = job.get_state("work", 0), job.get_state("second", 0)
    assert (first.status, second.status) == (Status.FAILED, Status.FAILED)
    assert second.message == f"not run: stage 'work' failed: {first.message}"


@pytest.mark.full
def test_a_stage_that_may_run_again_publishes_the_next_one_then(away, key):
    tracked, job = away("late_gate")
    assert job.wait(PATIENCE).finished == 2
    assert tracked.notes(key) == ["begun 1", "ended 1", "begun 2", "ended 2"]
