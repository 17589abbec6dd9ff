"""The stages of a chain, which the job publishes one after another (rule R19)."""

import pytest
from conftest import FAULT_PLACES, PLACES, load
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
                eventually(lambda: job.get_state("work", 0).finished)
            worker.kill()
            assert job.get_state("work", 0).status == Status.FINISHED
            start_configured_worker(environment, "threads", key)
            return tracked, job

        yield run
        tracked.states.store.close()
        tracked.app.close()


@pytest.mark.full
@pytest.mark.parametrize("first", ["gate", "late_gate"])
def test_a_stage_that_ends_without_the_broker_is_followed_when_the_broker_is_back(away, key, first):
    tracked, job = away(first)
    assert job.wait(PATIENCE).finished == 2
    assert tracked.notes(key) == ["begun 1", "ended 1"]


@pytest.mark.slow
@pytest.mark.places(*FAULT_PLACES)
@pytest.mark.parametrize(
    "fault",
    [
        "dies_before_publishing",
        pytest.param("child_dies_before_publishing", marks=pytest.mark.full),
        pytest.param("dies_after_publishing", marks=pytest.mark.full),
    ],
)
def test_the_stage_after_a_killed_process_runs_once(tracked, setting, pool, key, start_worker, fault):
    start_worker(f"{key}.{fault}", pool="prefork", TRACKED_FAULT=fault)
    first = tracked.succeed.s(f"{key}.second").set(queue=f"{key}.{fault}")
    second = tracked.states.tag(tracked.count.s(), "second").set(queue=pool)
    job = tracked.states.submit([first | second])
    assert job.wait(PATIENCE).finished == 2
    assert len(tracked.notes(f"{key}.second")) == 1
    assert tracked.states.store.get_value(job.manager.ref, 0) is None, "the last stage has ended"


@pytest.mark.places(*PLACES, usual=2)
def test_a_stage_whose_value_the_next_one_cannot_take_fails(tracked, pool, key, submit):
    job = submit([tracked.returns_object.s() | tracked.second.s()])
    assert job.wait(PATIENCE).failed == 1
    message = job.get_state("work", 0).message
    assert message.startswith("returned, but the next stage cannot take its value: EncodeError: "), message


@pytest.mark.places(*PLACES, usual=2)
def test_values_pass_through_each_stage(tracked, pool, key, submit):
    last = tracked.states.tag(tracked.count.s(), "third")
    middle = tracked.states.tag(tracked.succeed.s(), "second")
    job = submit([tracked.succeed.s(f"{key}.{row}") | middle | last for row in range(5)])
    assert job.wait(PATIENCE).finished == 15
    assert [len(tracked.notes(f"{key}.{row}")) for row in range(5)] == [1] * 5
