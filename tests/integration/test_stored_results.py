"""Workers that die between Celery's SUCCESS and our FINISHED (rules R13, R16): the body is not run again."""

import os
import signal

import pytest
from conftest import load

PATIENCE = 40
pytestmark = pytest.mark.slow
places = pytest.mark.places(("folders-sqlite", "prefork"), ("rabbitmq-redis", "threads"), ("redis-redis", "prefork"))


@pytest.fixture
def own(setting, key):
    """Return the app with a store of its own, so that only workers with its result backend sweep."""
    url = setting.environment["TRACKED_STORE"]
    store = url.replace("prefix=", f"prefix={key}-") if "prefix=" in url else f"{url}-{key}"
    environment = {"TRACKED_STORE": store, "TRACKED_RESULTS": f"file://{setting.home}"}
    own = load({**setting.environment, **environment})
    own.environment = environment
    del os.environ["TRACKED_RESULTS"]  # ``load`` has set it
    yield own
    own.states.store.close()
    own.app.close()


@places
@pytest.mark.parametrize(
    ("member", "deduplicates"),
    [
        ("gate", False),
        ("late_gate", True),
        pytest.param("gate", True, marks=pytest.mark.full),
        pytest.param("late_gate", False, marks=pytest.mark.full),
    ],
)
def test_a_task_whose_result_is_stored_is_not_run_again(
    own, place, start_worker, key, eventually, member, deduplicates
):
    own.environment |= {"TRACKED_DEDUPLICATE": "1"} if deduplicates else {}
    worker = start_worker(key, pool="solo", TRACKED_FAULT="after_storing_result", **own.environment)
    callback = own.callback.s().set(queue=key)
    job = own.states.submit([getattr(own, member).s(key).set(queue=key)], on_success=callback, results=True)
    (own.HOME / f"{key}.go").touch()
    assert worker.process.wait(PATIENCE) == -signal.SIGKILL
    start_worker(key, **own.environment)
    assert job.get(PATIENCE) == [{"attempt": 1}]
    eventually(lambda: own.notes(f"callback.{job.id}"))
    assert own.notes(key) == ["begun 1", "ended 1"]


@places
def test_a_child_that_dies_after_its_result_is_stored_has_finished(own, place, start_worker, key, eventually):
    if place[1] != "prefork":
        pytest.skip("only the prefork pool has children")
    start_worker(key, TRACKED_FAULT="child_dies_after_storing_result", **own.environment)
    job = own.states.submit([own.gate.s(key).set(queue=key)])
    (own.HOME / f"{key}.go").touch()
    assert job.wait(PATIENCE).finished == 1
    assert own.notes(key) == ["begun 1", "ended 1"]


@places
def test_a_status_of_the_application_is_kept(own, start_worker, key):
    worker = start_worker(key, pool="solo", TRACKED_FAULT="after_storing_result", **own.environment)
    job = own.states.submit([own.write_error.s(key).set(queue=key)])
    assert worker.process.wait(PATIENCE) == -signal.SIGKILL
    start_worker(key, **own.environment)
    job.wait(PATIENCE)
    assert (job.get_state().status, job.get_state().message) == (-50, "out of quota")


@pytest.mark.full
@pytest.mark.places(("redis-redis", "threads"))
def test_the_result_of_a_task_with_a_large_message_is_found(own, start_worker, key, eventually):
    worker = start_worker(key, pool="solo", TRACKED_FAULT="after_storing_result", **own.environment)
    job = own.states.submit([own.late_gate.s(key, "x" * 70_000).set(queue=key)])
    (own.HOME / f"{key}.go").touch()
    assert worker.process.wait(PATIENCE) == -signal.SIGKILL
    start_worker(key, **own.environment)
    assert job.wait(PATIENCE).finished == 1
    assert own.notes(key) == ["begun 1", "ended 1"]
