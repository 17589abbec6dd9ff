"""Jobs in eager mode, the arguments of submit, settings, and the StateManager of an app."""

import gc
import json
import subprocess
import sys
import weakref
from contextlib import suppress
from uuid import uuid4

import pytest
from celery import Celery, chain, current_app, shared_task
from celery.canvas import chunks

from celery_statemanager import (
    ConfigurationError,
    JobNotFound,
    StateError,
    StatefulTask,
    StateManager,
    Status,
    StoreUnavailable,
    SubmitFailed,
    current_state,
)
from celery_statemanager.integration.backlog import Backlog
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.settings import Settings
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.records import JobKey
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import FakeClock, FaultyStore


def new_app(**settings):
    return Celery("eager", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://", **settings)


def with_faults(**settings):
    """Return an app, its StateManager, and the StateManager's store, which fails on request."""
    app = new_app(**settings)
    states = StateManager(app)
    states.store = FaultyStore(states.store)
    return app, states, states.store


@pytest.fixture
def app():
    return new_app(statemanager_progress_interval=0.0)


@pytest.fixture
def states(app):
    return StateManager(app)


def test_a_job_and_its_callbacks_run_before_submit_returns(app, states):
    called = []

    @app.task(shared=False, base=StatefulTask, bind=True, tag="a")
    def first(self, value):
        self.state.progress(1, 2, "half")
        return value + 1

    @app.task(shared=False, base=StatefulTask, tag="b")
    def then(value):
        current_state().set(50, payload={"value": value})

    @app.task(shared=False, base=StatefulTask)
    def done(job_id, word):
        called.append((job_id, word, states.current_job().id))

    job = states.submit(
        [chain(first.s(i), then.s()) for i in range(3)], on_success=done.s("yes"), on_settled=done.s("too")
    )
    assert sorted(called) == [(job.id, "too", job.id), (job.id, "yes", job.id)]
    assert job.summary().fraction == 1.0
    assert job.get_state("b", 2).payload == {"value": 3}
    assert job.get_state("a", 0).payload == {"progress": {"done": 2, "total": 2}}
    assert states.current_job() is None


def test_progress_by_the_manager_of_a_task_keeps_the_payload(app, states):
    @app.task(shared=False, base=StatefulTask, bind=True, tag="a")
    def counts(self):
        self.state.set(5, payload={"page": 7})
        self.state.manager.progress("a", 1, 4)

    job = states.submit([counts.s()])
    assert job.get_state("a", 0).payload == {"page": 7, "progress": {"done": 4, "total": 4}}


def test_a_sweep_during_a_long_eager_task_does_not_cancel_the_job(app, states):
    clock = FakeClock(1_000_000.0)
    states.store = MemoryStore(clock=clock)

    @app.task(shared=False, base=StatefulTask, tag="a")
    def slow():
        clock.advance(600)
        sweep(states)

    job = states.submit([slow.s(), slow.s()])
    assert job.manager.store.get_job(JobKey(job.id)).cancelled is None
    assert job.summary().finished == 2


def test_a_failing_member_fails_only_its_row(app, states):
    @app.task(shared=False, base=StatefulTask, tag="a")
    def odd(value):
        if value % 2:
            raise StateError(-42, "odd")
        return value

    @app.task(shared=False, base=StatefulTask, tag="b")
    def then(value): ...

    job = states.submit(chain(odd.s(i), then.s()) for i in range(4))
    assert [job.get_state(task_index=row).status for row in range(4)] == [Status.FINISHED, -42, Status.FINISHED, -42]
    assert str(job.summary().failed_indexes) == "1,3"
    assert job.get_state("b", 1).message == "not run: stage 'a' failed: odd"


def test_a_raised_state_error_overrides_a_written_status(app, states):
    @app.task(shared=False, base=StatefulTask, bind=True, tag="a")
    def doubly_failed(self, code):
        self.state.set(-9, "bad page", {"page": 4})
        raise StateError(code, "disk full") if code else ValueError("broken")

    job = states.submit([doubly_failed.s(-42), doubly_failed.s(0)])
    raised, written = (job.get_state("a", row) for row in range(2))
    assert (raised.status, raised.message, raised.payload) == (-42, "disk full", {"page": 4})
    assert (written.status, written.message) == (-9, "bad page")


def test_submit_fails_at_a_member_that_cannot_be_encoded(app, states):
    ran = []

    @app.task(shared=False, base=StatefulTask, tag="a")
    def take(value):
        ran.append(value)

    with pytest.raises(SubmitFailed, match=r"failed at member 1: EncodeError.*the job is cancelled") as caught:
        states.submit([take.s(1), take.s(object()), take.s(3)])
    job = caught.value.job
    assert caught.value.published == 1
    assert ran == [1]
    assert [job.get_state("a", row).status for row in range(3)] == [Status.FINISHED, Status.CANCELLED, Status.CANCELLED]
    assert job.wait(timeout=0).failed == 2


def test_a_task_that_cannot_send_another_task_fails_only_its_row(app, states):
    app.conf.task_eager_propagates = True

    @app.task(shared=False, base=StatefulTask, tag="a")
    def send(value):
        if value:
            send.delay(object())

    job = states.submit([send.s(1), send.s(0)])
    assert [job.get_state("a", row).status for row in range(2)] == [Status.FAILED, Status.FINISHED]


def test_a_propagated_exception_fails_only_its_row():
    app = new_app(task_eager_propagates=True)
    states = StateManager(app)

    @app.task(shared=False, base=StatefulTask)
    def broken(value):
        if value == 1:
            raise ValueError("broken")

    job = states.submit(broken.s(value) for value in range(3))
    assert (job.get_state("default", 1).status, job.get_state("default", 1).message) == (-1, "ValueError: broken")
    assert (job.summary().finished, job.wait(1).failed) == (2, 1)


def test_each_retry_takes_the_next_attempt(app, states):
    seen = []

    @app.task(
        shared=False, base=StatefulTask, bind=True, autoretry_for=(OSError,), max_retries=3, default_retry_delay=0
    )
    def flaky(self):
        seen.append((self.state.attempt, self.state.get().status))
        if len(seen) < 3:
            raise OSError("again")

    job = states.submit([flaky.s()])
    assert seen == [(1, Status.STARTED), (2, Status.STARTED), (3, Status.STARTED)]
    assert (job.get_state().status, job.get_state("default", 0).attempt) == (Status.FINISHED, 3)


def test_the_next_attempt_finds_the_payload_of_the_previous_one(app, states):
    found = []

    @app.task(
        shared=False, base=StatefulTask, bind=True, autoretry_for=(OSError,), max_retries=1, default_retry_delay=0
    )
    def resuming(self):
        found.append(self.state.get().payload)
        self.state.set(10, payload={"row": 7})
        if len(found) == 1:
            raise OSError("again")

    states.submit([resuming.s()])
    assert found == [None, {"row": 7}]


def test_throttled_progress_is_written_with_the_end():
    app = new_app(statemanager_progress_interval=3600.0)
    states = StateManager(app)

    @app.task(shared=False, base=StatefulTask, bind=True)
    def steps(self, fail):
        written = [self.state.progress(done, 10, f"step {done}") for done in (1, 2, 3)]
        assert [state is not None for state in written] == [True, False, False]
        if fail:
            raise ValueError("broken")

    job = states.submit([steps.s(fail=False), steps.s(fail=True)])
    finished, failed = (job.get_state("default", row) for row in range(2))
    assert (finished.version, finished.message, finished.payload) == (
        3,
        "step 3",
        {"progress": {"done": 10, "total": 10}},
    )
    assert (failed.status, failed.payload) == (Status.FAILED, {"progress": {"done": 3, "total": 10}})


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (lambda state: state.set(5, "said"), None),
        (lambda state: state.progress(1, 2, "said"), None),
        (lambda state: state.get().status, Status.STARTED),
    ],
)
@pytest.mark.parametrize("policy", ["log", "raise"])
def test_a_store_outage_fails_a_task_only_under_the_raise_policy(policy, call, known):
    app, states, store = with_faults(statemanager_on_store_error=policy)
    given = []

    @app.task(shared=False, base=StatefulTask, bind=True)
    def task(self):
        with store.away():
            given.append(call(self.state))
        return "the work is done"

    state = states.submit([task.s()]).wait(10).lowest
    if policy == "log":
        assert given == [known]
        assert state.status == Status.FINISHED
    else:
        assert given == []
        assert (state.status, state.message.partition(":")[0]) == (Status.FAILED, "StoreUnavailable")


def test_get_returns_the_checkpoint_of_the_previous_attempt_during_an_outage():
    app, states, store = with_faults()
    found = []

    @app.task(
        shared=False, base=StatefulTask, bind=True, autoretry_for=(OSError,), max_retries=1, default_retry_delay=0
    )
    def resuming(self):
        with store.away():
            found.append(self.state.get().payload)
        self.state.set(10, payload={"row": 7})
        with store.away():
            found.append(self.state.get().payload)
        if len(found) == 2:
            raise OSError("again")

    states.submit([resuming.s()])
    assert found == [None, {"row": 7}, {"row": 7}, {"row": 7}]


def test_get_waits_for_a_store_that_could_not_number_the_attempt():
    app, states, store = with_faults()
    store.lose_response("begin", applied=False)
    store.lose_response("lowest", applied=False, times=3)
    found = []

    @app.task(shared=False, base=StatefulTask, bind=True)
    def task(self):
        found.append((self.state.attempt, self.state.get().status))

    assert states.submit([task.s()]).wait(10).finished == 1
    assert found == [(None, Status.NOT_STARTED)]


def test_get_raises_rather_than_return_none_for_a_store_that_does_not_answer():
    app, states, store = with_faults(statemanager_store_timeout=0.1)
    store.lose_response("begin", applied=False)

    @app.task(shared=False, base=StatefulTask, bind=True)
    def task(self):
        with store.away():
            self.state.get()

    state = states.submit([task.s()]).wait(10).lowest
    assert (state.status, state.message.partition(":")[0]) == (Status.FAILED, "StoreUnavailable")


INTERRUPTED_BEGIN = """
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery
from celery_statemanager import StatefulTask, StateManager
from celery_statemanager.testing import FaultyStore

app = Celery("first", task_always_eager=True, statemanager_store_url="memory://")
states = StateManager(app)
states.store = FaultyStore(states.store)

@app.task(base=StatefulTask)
def task(): ...

def interrupt(_):
    raise SoftTimeLimitExceeded

states.store.at("begin", interrupt)
print(states.submit([task.s()]).summary().finished)
"""


def test_a_time_limit_during_the_first_begin_of_a_process_keeps_the_end_state():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_BEGIN], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize("policy", ["log", "raise"])
def test_a_duplicate_that_could_not_reach_the_store_stops_at_its_first_write(policy):
    app, states, store = with_faults(statemanager_on_store_error=policy)
    states.backlog = Backlog(avoid_for=0.0)
    ran = []

    @app.task(shared=False, base=StatefulTask, bind=True)
    def task(self):
        self.state.set(5)
        ran.append(self.state.attempt)

    job = states.submit([task.s()])
    before = job.list_states()
    store.lose_response("begin", applied=False)
    assert Binding(job.manager.ref, 0, "default").bind(task.s()).apply_async().state == "IGNORED"
    assert ran == [1]
    assert job.list_states() == before


@pytest.mark.parametrize("policy", ["log", "raise"])
@pytest.mark.parametrize("lost", [["begin"], ["write"], ["begin", "write"]])
@pytest.mark.parametrize("writes", [0, 1, 3])
def test_an_attempt_whose_begin_got_no_response_keeps_its_number(lost, writes, policy):
    app, states, store = with_faults(statemanager_on_store_error=policy)
    states.backlog = Backlog(avoid_for=0.0)
    if "begin" not in lost:
        store.lose_response("begin", applied=False)
    for method in lost:
        store.lose_response(method, applied=True)

    @app.task(shared=False, base=StatefulTask, bind=True)
    def task(self):
        for number in range(writes):
            with suppress(StoreUnavailable):
                self.state.set(5 + number)

    job = states.submit([task.s()])
    assert job.wait(10).finished == 1
    cell = store.get_cell(job.manager.ref, "default", 0)
    assert (cell.attempt, cell.losses, cell.open) == (1, 0, False)


def test_an_outage_of_one_store_does_not_stop_the_begins_of_another_app():
    down_app, down, down_store = with_faults()
    up_app, up, _ = with_faults()
    ran = []

    @down_app.task(shared=False, base=StatefulTask, bind=True)
    def cut_off(self):
        ran.append(("down", self.state.attempt))

    @up_app.task(shared=False, base=StatefulTask, bind=True)
    def work(self):
        ran.append(("up", self.state.attempt))

    def deliver(job, task):
        return Binding(job.manager.ref, 0, "default").bind(task.s()).apply_async()

    cut, finished = down.submit([cut_off.s()]), up.submit([work.s()])
    del ran[:]
    with down_store.away():
        deliver(cut, cut_off)
        assert up.submit([work.s()]).summary().finished == 1
        assert deliver(finished, work).state == "IGNORED"
    assert ran == [("down", None), ("up", 1)]


def test_an_app_has_one_state_manager(app, states):
    assert StateManager(app) is states
    assert StateManager.installed(app) is states
    assert StateManager.installed(Celery("other", set_as_current=False)) is None


@pytest.mark.parametrize("given", ["redis://", "redis://:secret@localhost/0", "sqlite:///states.db"])
def test_a_store_url_instead_of_an_app_is_rejected_with_a_hint(given):
    with pytest.raises(TypeError, match=r"takes a Celery app, not .*app\.conf\.statemanager_store_url") as caught:
        StateManager(given)
    assert "secret" not in str(caught.value)
    assert given.partition(":")[0] in str(caught.value)


@pytest.mark.parametrize("given", [None, MemoryStore(), Celery])
def test_an_argument_that_is_not_an_app_is_rejected(given):
    with pytest.raises(TypeError, match="StateManager takes a Celery app, not"):
        StateManager(given)


def test_the_settings_of_an_app_are_rejected_without_their_passwords():
    settings = Celery("other", set_as_current=False, broker="redis://:secret@localhost/0").conf
    with pytest.raises(TypeError, match="StateManager takes a Celery app, not an object of type Settings") as caught:
        StateManager(settings)
    assert "secret" not in str(caught.value)


def test_a_proxy_of_an_app_is_accepted(app):
    app.set_current()
    assert StateManager(current_app) is StateManager(app)


def test_a_uuid_is_accepted_as_job_id_and_as_run_token(app, states):
    @app.task(shared=False)
    def task(value=None): ...

    job_id, run_token = uuid4(), uuid4()
    job = states.submit([task.s()], job_id=job_id, run_token=run_token)
    assert (job.id, job.run_token) == (str(job_id), str(run_token))
    for found in (states.job(job_id, run_token=run_token), states.job(str(job_id), str(run_token))):
        assert found.manager.ref == job.manager.ref
    with pytest.raises(SubmitFailed, match=str(job_id)) as caught:
        states.submit([task.s(object())], job_id=job_id)
    assert caught.value.job_id == str(job_id)


def test_an_app_without_a_state_manager_is_not_affected(states):
    other = Celery("other", set_as_current=False, task_always_eager=True)

    @other.task(shared=False, base=StatefulTask, bind=True)
    def task(self):
        return bool(self.state)

    assert task.delay().get() is False
    assert not current_state()


def test_the_tag_of_a_signature_is_not_sent_in_its_message(app, states):
    headers = []

    @app.task(shared=False, base=StatefulTask, bind=True, tag="first")
    def task(self, *args):
        headers.append(self.request.headers)

    marked = states.tag(task.s().set(headers={"mine": 1}), "second")
    job = states.submit([chain(task.s(), marked)])
    assert job.tags == ("first", "second")
    assert [("statemanager_tag" in each, each.get("mine")) for each in headers] == [(False, None), (False, 1)]


def test_a_given_plan_must_contain_the_tags_of_the_members(app, states):
    @app.task(shared=False, base=StatefulTask, tag="a")
    def task(): ...

    job = states.submit([task.s(), task.s()], tags=("a", "audit"))
    assert (job.summary().expected, job.manager.get_state().status) == (4, Status.NOT_STARTED)
    with pytest.raises(ValueError, match="tags leaves out 'a' for task 0"):
        states.submit([task.s(), task.s()], tags={"a": [1], "b": [0]})


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (lambda task: task, "write task.s"),
        (lambda task: 7, "must be a task signature or a chain of them, not 7"),
        (lambda task: task.s().set(task_id="mine"), "has its own task_id"),
        (lambda task: task.chunks(zip(range(4)), 2), r"write .*task\.chunks\(…\)\.group\(\)"),
        (lambda task: json.loads(json.dumps(task.chunks([(1,)], 2))), r"write .*task\.chunks\(…\)\.group\(\)"),
        (lambda task: chain(task.s(), task.chunks([(1,)], 2)), "contains chunks: .* one task or a flat chain"),
    ],
)
def test_submit_rejects_an_invalid_member_with_a_hint(app, states, member, text):
    @app.task(shared=False)
    def task(*args): ...

    with pytest.raises((TypeError, ValueError), match=text):
        states.submit([task.s(), member(task)])


def test_submit_rejects_chunks_with_a_hint(app, states):
    @app.task(shared=False)
    def task(*args): ...

    with pytest.raises(TypeError, match=r"submit takes a list, .*: write .*task\.chunks\(…\)\.group\(\)"):
        states.submit(task.chunks([(1,), (2,)], 1))
    with pytest.raises(TypeError, match=r"write .*task\.chunks\(…\)\.group\(\)"):
        states.submit(json.loads(json.dumps(task.chunks([(1,), (2,)], 1))))
    assert states.submit(task.chunks([(1,), (2,), (3,)], 2).group()).summary().finished == 2


@pytest.mark.parametrize("tasks", [lambda task: task, lambda task: task.s(), lambda task: chain(task.s(), task.s())])
def test_submit_rejects_a_single_task_with_a_hint(app, states, tasks):
    @app.task(shared=False)
    def task(*args): ...

    with pytest.raises(TypeError, match=r"submit takes a list, .*: write \[.*task.*\]"):
        states.submit(tasks(task))


@pytest.mark.parametrize("callback", [7, "name", lambda task: None, chunks("task", [(1,)], 2)])
def test_submit_rejects_a_callback_that_is_not_one_task_signature(app, states, callback):
    @app.task(shared=False)
    def task(*args): ...

    with pytest.raises(TypeError, match="on_success must be one task signature"):
        states.submit([task.s()], on_success=callback)
    with pytest.raises(TypeError, match="on_settled must be one task signature"):
        states.submit([task.s()], on_settled=chain(task.s(), task.s()))


@pytest.mark.parametrize(
    ("callback", "given"),
    [
        (lambda task: task.s(), r"positional arguments? but .* given \(the job_id is prepended, notify\.si"),
        (lambda task: task.s(1), r"positional arguments? but .* given \(the job_id is prepended"),
        (lambda task: task.si(1), r"positional arguments? but .* given \(it is immutable"),
        (lambda task: task.s(word=1), "unexpected keyword argument 'word'"),
        (lambda task: task.si(word=1), "unexpected keyword argument 'word'"),
        (lambda task: json.loads(json.dumps(task.s())), r"positional arguments? but .* \(the job_id is prepended"),
    ],
)
@pytest.mark.parametrize("when", ["on_success", "on_failure", "on_settled"])
@pytest.mark.parametrize("bound", [False, True])
def test_a_callback_that_cannot_accept_its_arguments_is_rejected(app, states, callback, given, when, bound):
    published = []

    @app.task(shared=False)
    def member():
        published.append(1)

    task = app.task(shared=False, name="notify", bind=bound)(notify_bound if bound else notify)
    with pytest.raises(TypeError, match=rf"{when}, task notify: .*{given}"):
        states.submit([member.s()], **{when: callback(task)})
    assert published == []


def notify(): ...


def notify_bound(self): ...


def test_a_callback_that_can_accept_its_arguments_is_submitted(app, states):
    ran = []

    @app.task(shared=False, name="publish")
    def publish(job_id, word="word"):
        ran.append(word)

    @app.task(shared=False)
    def nothing():
        ran.append("nothing")

    @app.task(shared=False, typing=False)
    def untyped():
        raise AssertionError("it cannot run")

    for callback in (publish.s(), publish.s("args"), publish.s(word="kwargs"), nothing.si(), untyped.s()):
        assert states.submit([nothing.si()], on_success=callback).summary().finished == 1
    assert [each for each in ran if each != "nothing"] == ["word", "args", "kwargs"]
    assert ran.count("nothing") == 6


def test_the_arguments_of_a_callback_of_another_app_are_not_checked(app, states):
    @app.task(shared=False)
    def task(): ...

    app.conf.task_always_eager = False
    app.conf.broker_url = "memory://"
    job = states.submit([task.s()], on_success=app.signature("elsewhere.publish", args=(1, 2)))
    assert states.store.get_job(JobKey(job.id)).latches["success"].callback is not None


def test_settings_are_read_with_and_without_a_namespace():
    class Config:
        CELERY_STATEMANAGER_LEASE = 7
        CELERY_STATEMANAGER_STORE_URL = "memory://"

    namespaced = Celery("namespaced", set_as_current=False)
    namespaced.config_from_object(Config, namespace="CELERY")
    plain = Celery("plain", set_as_current=False, statemanager_lease=8)
    assert (Settings.from_app(namespaced).lease, Settings.from_app(namespaced).store_url) == (7, "memory://")
    assert (Settings.from_app(plain).lease, Settings.from_app(plain).progress_interval) == (8, 1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lease", 0),
        ("lease", "30"),
        ("progress_interval", -1),
        ("store_timeout", float("nan")),
        ("on_store_error", "ignore"),
        ("store_url", 5),
        ("max_state_bytes", True),
    ],
)
def test_the_error_for_an_invalid_setting_names_the_setting(key, value):
    with pytest.raises(ConfigurationError, match=f"statemanager_{key} must be .*, not "):
        Settings.from_app(Celery("bad", set_as_current=False, **{f"statemanager_{key}": value}))


@pytest.mark.parametrize("namespace", [None, "CELERY"])
def test_a_mistyped_setting_is_logged_once(namespace, caplog):
    app = Celery(f"typo {namespace}", set_as_current=False)
    prefix = f"{namespace}_STATEMANAGER_" if namespace else "statemanager_"
    app.config_from_object({f"{prefix}LEESE" if namespace else f"{prefix}leese": 7}, namespace=namespace)
    for _ in range(2):
        Settings.from_app(app)
    warning = "unknown setting statemanager_leese has no effect; did you mean statemanager_lease?"
    assert [record.getMessage() for record in caplog.records] == [f"app {app.main!r}: {warning}"]


def test_a_state_manager_does_not_connect_before_its_first_use(tmp_path):
    app = Celery("lazy", set_as_current=False, statemanager_store_url=f"sqlite:///{tmp_path}/missing/states.db")
    states = StateManager(app)
    with pytest.raises(ConfigurationError):
        states.job("any")


def test_an_unreferenced_app_with_a_state_manager_is_garbage_collected():
    app = new_app()
    StateManager(app)
    seen = weakref.ref(app)
    del app
    gc.collect()
    assert seen() is None


def test_an_unknown_job_is_not_found(states):
    with pytest.raises(JobNotFound):
        states.job("never")


def test_a_shared_task_is_tracked_by_the_app_that_runs_it(app, states):
    @shared_task(base=StatefulTask, bind=True, tag="shared")
    def shared(self):
        self.state.set(5, "from a shared task")

    app.set_current()
    job = states.submit([shared.s()])
    assert job.get_state("shared", 0).message == "from a shared task"


def test_the_repr_of_a_task_state_names_its_cell(app, states):
    said = []

    @app.task(shared=False, base=StatefulTask, tag="b")
    def show():
        said.append(repr(current_state()))

    show.apply()
    states.submit([show.s()], job_id="etl-42")
    assert said == ["<TaskState of no job>", "<TaskState of job 'etl-42', task 0, 'b'>"]
