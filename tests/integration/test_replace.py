"""``self.replace`` in a tracked task with every kind of canvas: the last task ends the cell of the replaced one."""

import importlib.util
import itertools
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from celery import chain
from replacing import CANVASES, ENDINGS, FAILING, GOOD, PLACES
from servers import running_redis
from workers import Worker

from celery_statemanager import Status, WaitTimeout
from celery_statemanager.leases import Report, each_worker
from celery_statemanager.testing.kit import PATIENCE

FILE = Path(__file__).with_name("replacing.py")


def load():
    """Import the app again, with the current environment variables."""
    spec = importlib.util.spec_from_file_location("replacing", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def submit(module, name):
    return module.states.submit([chain(module.replaced.s(name), module.keep.s())])


@pytest.fixture(scope="module")
def eager():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRACKED_BROKER", raising=False)
        patch.delenv("TRACKED_STORE", raising=False)
        module = load()
        module.jobs = {name: submit(module, name) for name in CANVASES}
        yield module


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The app with a broker, a result backend and a worker."""
    with serving(tmp_path_factory.mktemp("replacing")) as module:
        module.jobs = {name: submit(module, name) for name in CANVASES}
        yield module


@pytest.fixture(scope="module")
def served_by_protocol_1(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("replacing"), TRACKED_PROTOCOL="1") as module:
        yield module


@contextmanager
def serving(home, **more):
    with running_redis() as server, pytest.MonkeyPatch.context() as patch:
        environment = {
            "TRACKED_HOME": str(home),
            "TRACKED_BROKER": server.url,
            "TRACKED_STORE": f"sqlite:///{home}/states.db",
            **more,
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        module = load()
        module.start_worker = lambda: Worker(environment, "prefork", module.QUEUE, app="replacing")
        module.worker = module.start_worker()
        try:
            yield module
        finally:
            module.worker.stop()
            module.states.store.close()
            module.app.close()


@pytest.fixture(params=["eager", "served"])
def module(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", CANVASES)
@pytest.mark.xdist_group("replacing")
def test_the_next_stage_gets_the_result_of_the_replacement(module, name):
    _, result = CANVASES[name]
    job = module.jobs[name]
    assert job.wait(PATIENCE).finished == 2, job.list_states()
    assert job.get_state("after", 0).payload == {"result": result}
    assert job.get_state("work", 0).attempt == 2
    assert not module.states.store.get_cell(job.manager.ref, "work", 0).open


PLAIN = ["signature", "chain", "group", "empty group", "group of chains", "chord", "chain with a group inside", "map"]
"""Canvases by which Celery's own tasks can be replaced."""


def submit_plain(module, name):
    return module.states.submit([chain(module.states.tag(module.plain_replaced.s(name), "work"), module.keep.s())])


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.xdist_group("replacing")
def test_a_plain_task_is_replaced_alike(module, name):
    _, result = CANVASES[name]
    job = submit_plain(module, name)
    assert job.wait(PATIENCE).finished == 2, job.list_states()
    assert job.get_state("after", 0).payload == {"result": result}
    assert not module.states.store.get_cell(job.manager.ref, "work", 0).open


@pytest.mark.parametrize("name", ["failing signature", "failing chain", "failing group", "failing chord"])
@pytest.mark.xdist_group("replacing")
def test_a_row_of_a_plain_task_fails_when_its_replacement_fails(module, name):
    job = submit_plain(module, name)
    summary = job.wait(PATIENCE)
    assert (summary.failed, summary.not_run) == (1, 1), job.list_states()
    assert job.get_state("work", 0).message == "ValueError: of the replacement"


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.xdist_group("replacing")
def test_a_row_fails_when_a_task_of_the_replacement_fails(module, name):
    job = submit(module, name)
    summary = job.wait(PATIENCE)
    assert (summary.failed, summary.not_run) == (1, 1), job.list_states()
    assert job.get_state("work", 0).message == "ValueError: of the replacement"
    assert job.get_state("work", 0).attempt <= 2, "any number of tasks fails the row once"


@pytest.mark.parametrize("name", ["signature", "group", "chord"])
@pytest.mark.xdist_group("replacing")
def test_a_replacement_can_be_replaced_again(module, name):
    job = module.states.submit([module.replaced_twice.s(name)])
    assert job.wait(PATIENCE).finished == 1, job.list_states()
    assert (job.get_state("work", 0).status, job.get_state("work", 0).attempt) == (Status.FINISHED, 3)


@pytest.mark.parametrize("name", ["chunks", "chord with a group as body", "JSON of a group"])
@pytest.mark.xdist_group("replacing")
def test_an_untracked_execution_is_replaced_as_a_tracked_one_is(module, name):
    _, result = CANVASES[name]
    run = module.replaced.apply if module.app.conf.task_always_eager else module.replaced.apply_async
    assert run((name,)).get(timeout=PATIENCE) == result


def check_end(module, job, status, message):
    with suppress(WaitTimeout):
        job.wait(3 * PATIENCE)
    state = job.get_state("work", 0)
    assert state.status == status, state
    assert (state.message or "").startswith(message), state
    assert not module.states.store.get_cell(job.manager.ref, "work", 0).open


@pytest.mark.parametrize("plain", [False, True], ids=["stateful", "plain"])
@pytest.mark.xdist_group("replacing")
def test_any_task_of_a_replacement_can_end_the_row(served, plain):
    check_ends(served, served.plain_split_up if plain else served.split_up, [*ENDINGS, *GOOD])


@pytest.mark.parametrize("plain", [False, True], ids=["stateful", "plain"])
@pytest.mark.xdist_group("replacing")
def test_any_task_of_a_replacement_can_end_the_row_in_protocol_1(served_by_protocol_1, plain):
    module = served_by_protocol_1
    check_ends(module, module.plain_split_up if plain else module.split_up, ["ignored", "replaced in vain", "retried"])


def check_ends(module, task, endings):
    pairs = itertools.product(PLACES, endings)
    jobs = {each: module.states.submit([module.states.tag(task.s(*each), "work")]) for each in pairs}
    for (_, ending), job in jobs.items():
        _, status, message = ENDINGS.get(ending, (None, Status.FINISHED, ""))
        check_end(module, job, status, message)


@pytest.mark.parametrize("position", ["first of a chain", "group"])
@pytest.mark.xdist_group("replacing")
def test_a_revoked_task_of_a_replacement_ends_the_row(served, position, eventually, key):
    job = served.states.submit([served.split_for.s(position, served.pause.name, key)])
    home = served.worker.log.parent
    eventually((home / key).exists)
    [pausing] = [
        each["id"]
        for each in served.app.control.inspect().active()["replacing@test"]
        if each["name"] == "replacing.pause"
    ]
    served.app.control.revoke(pausing, terminate=True)
    check_end(served, job, Status.REVOKED, "revoked (in a task of its replacement)")


LOST = [
    pytest.param("chain in a group", "pause", Status.LOST, "lost with its worker ", marks=pytest.mark.full),
    ("first of a chain", "requeued_pause", Status.FINISHED, ""),
]


@pytest.mark.parametrize(("position", "task", "status", "message"), LOST)
@pytest.mark.xdist_group("replacing")
def test_a_row_ends_when_the_worker_of_a_task_of_its_replacement_is_killed(
    served, position, task, status, message, eventually, key
):
    job = served.states.submit([served.split_for.s(position, f"replacing.{task}", key)])
    eventually((served.worker.log.parent / key).exists)
    control, store = served.app.control, served.states.store
    eventually(lambda: control.inspect().reserved() == {"replacing@test": []})  # only the broker could deliver these
    eventually(
        lambda: job.manager.ref in {row.ref for each in each_worker(store) for row in Report.from_record(each).parts}
    )
    served.worker.kill()
    served.worker = served.start_worker()
    check_end(served, job, status, message)
