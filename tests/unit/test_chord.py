"""Chords that are submitted: their parts, the calls of body and errbacks, and what a killed process leaves (R21)."""

import uuid
from dataclasses import replace

import pytest
from celery import VERSION, Celery, chain, chord, group
from celery.exceptions import CPendingDeprecationWarning
from hypothesis import given
from hypothesis import strategies as st
from kombu import Queue

from celery_statemanager import (
    ConfigurationError,
    ResultUnavailable,
    StatefulTask,
    StateManager,
    Status,
    TaskFailed,
    WaitTimeout,
)
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.outbox import publisher
from celery_statemanager.integration.outbox.envelope import from_message
from celery_statemanager.integration.outbox.making import binding_in
from celery_statemanager.integration.settings import Settings
from celery_statemanager.integration.worker.sweeping import sweep
from celery_statemanager.records import CALLBACK_ROW, Place, Write
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.testing import FaultyStore, Grid
from celery_statemanager.testing.kit import FINISHED

PLACE = ("success", CALLBACK_ROW)


def add_tasks(app, called):
    """Add the tasks of the tests to an app, and return them by name."""

    def echo(value=None):
        return value

    def collect(results, *args, **kwargs):
        called.append(("collect", results))
        return [results, list(args), kwargs]

    def again(value):
        called.append(("again", value))
        return [value, value]

    def fails(*args):
        raise ValueError("broken")

    def old(task_id):
        called.append(("old", task_id))

    def new(request, exc, traceback):
        called.append(("new", request.id, exc))

    def own(*args):
        called.append(("own", args))
        return "own"

    functions = (echo, collect, again, fails, old, new, own)
    return {
        each.__name__: app.task(
            name=each.__name__, shared=False, **({} if each in (old, new) else {"base": StatefulTask})
        )(each)
        for each in functions
    }


class Eager:
    """An app in eager mode, its StateManager, its tasks, and the calls of them."""

    def __init__(self, **settings):
        self.called = []
        self.app = Celery("chord", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://")
        self.app.conf.update(settings)
        self.states = StateManager(self.app)
        vars(self).update(add_tasks(self.app, self.called))


@pytest.fixture
def eager():
    made = Eager()
    yield made
    made.app.close()


@pytest.fixture(scope="module")
def shared():
    made = Eager()
    yield made
    made.app.close()


members = st.sampled_from(["echo", "chain", "own"])
# Before 5.7, Celery in eager mode does not run a chain as body.
chains = ["chain", "own last"] if VERSION[:2] >= (5, 7) else []
bodies = st.sampled_from(["task", "immutable", "kwargs", *chains])


def member_of(tasks, kind, value):
    if kind == "chain":
        return chain(tasks.echo.s(value), tasks.again.s(), tasks.echo.s())
    return tasks.echo.s(value) if kind == "echo" else tasks.own.si(value)


def body_of(tasks, kind):
    return {
        "task": tasks.collect.s(),
        "chain": chain(tasks.collect.s(1), tasks.again.s(), tasks.again.s()),
        "immutable": tasks.own.si(1, 2),
        "kwargs": tasks.collect.s(2, key="value"),
        "own last": tasks.collect.s() | tasks.own.si(3),
    }[kind]


@given(
    st.lists(st.tuples(members, st.none() | st.integers() | st.text()), min_size=1, max_size=6), bodies, st.booleans()
)
def test_the_body_returns_what_it_returns_in_celery(shared, header, kind, as_group):
    def canvas():
        tasks = [with_own_tags(shared, member_of(shared, *each)) for each in header]
        body = body_of(shared, kind)
        return (group(tasks) | body) if as_group else chord(tasks, body)

    expected = canvas().apply_async().get()
    job = shared.states.submit(canvas())
    assert job.body_result(1) == expected
    assert job.num_tasks == len(header)


def with_own_tags(eager, member):
    if member.subtask_type != "chain":
        return member
    return chain(*(eager.states.tag(part, str(number)) for number, part in enumerate(member.tasks)))


@pytest.mark.parametrize("as_group", [False, True])
def test_the_arguments_of_a_chord_go_to_its_header_as_in_celery(eager, as_group):
    def canvas():
        chained = chain(eager.collect.s(2), eager.states.tag(eager.collect.s(3), "second"))
        header = [eager.collect.s(), eager.collect.s(2, key="own"), eager.collect.si(5), chained]
        given = {"args": (1,), "kwargs": {"kwargs": {"key": "given"}}}
        return chord(group(header) if as_group else header, eager.again.s(), **given)

    assert eager.states.submit(canvas()).body_result(1) == canvas().apply_async().get()


def test_a_generator_and_a_decoded_chord_are_accepted(eager):
    assert (
        eager.states.submit(group(eager.echo.s(i) for i in range(3)) | eager.again.s()).body_result(1)
        == [[0, 1, 2]] * 2
    )
    assert (
        eager.states.submit(chord((eager.echo.s(i) for i in range(3)), eager.again.s())).body_result(1)
        == [[0, 1, 2]] * 2
    )
    canvas = chord([eager.echo.s(1), eager.echo.s(2)], eager.again.s())
    assert (
        eager.states.submit(eager.app.backend.decode(eager.app.backend.encode(dict(canvas)))).body_result(1)
        == [[1, 2]] * 2
    )


def test_an_empty_header_runs_the_body_with_an_empty_list(eager):
    job = eager.states.submit(chord([], eager.collect.s()))
    assert job.body_result(1) == [[], [], {}]
    summary = job.wait(1)
    assert (job.num_tasks, summary.expected, summary.failed) == (0, 0, 0)
    assert job.get(1) == []


def test_the_chord_of_the_caller_is_not_changed(eager):
    canvas = chord([eager.echo.s(1)], eager.collect.s() | eager.again.s()).set(queue="elsewhere")
    before = eager.app.backend.encode(dict(canvas))
    eager.states.submit(canvas)
    assert eager.app.backend.encode(dict(canvas)) == before


def test_the_results_of_all_rows_are_kept_unless_the_body_is_immutable(eager):
    assert eager.states.submit(chord([eager.echo.s(1)], eager.collect.s())).get(1) == [1]
    job = eager.states.submit(chord([eager.echo.s(1)], eager.own.si()))
    assert job.body_result(1) == "own"
    with pytest.raises(ResultUnavailable):
        job.get(1)


def test_other_callbacks_get_the_job_id(eager):
    job = eager.states.submit(chord([eager.echo.s(1)], eager.collect.s()), on_settled=eager.own.s(), job_id="etl-42")
    assert ("own", ("etl-42",)) in eager.called
    assert job.body_result(1) == [[1], [], {}]


def test_tolerated_failures_are_none_in_the_list_and_call_no_errbacks(eager):
    header = [eager.echo.s(1), eager.fails.s(), eager.echo.s(3)]
    body = eager.collect.s().on_error(eager.old.s())
    job = eager.states.submit(chord(header, body), max_failed=1)
    assert job.body_result(1) == [[1, None, 3], [], {}]
    assert [name for name, *_ in eager.called] == ["collect"]


def test_more_failures_than_tolerated_call_the_errbacks_once(eager):
    header = [eager.fails.s(), eager.fails.s(), eager.echo.s(3)]
    job = eager.states.submit(chord(header, eager.collect.s().on_error(eager.old.s())), max_failed=1)
    with pytest.raises(TaskFailed, match="task 0 of job"):
        job.body_result(1)
    assert eager.called == [("old", f"{job.manager.ref.incarnation}.0.0")]


def test_a_cancelled_job_calls_no_errbacks(queued):
    body = queued.tasks["collect"].s().on_error(queued.tasks["new"].s())
    job = queued.submit(chord([queued.tasks["echo"].s(0)], body))
    job.cancel("not needed")
    with pytest.raises(TaskFailed, match="with status -7: not needed"):
        job.body_result(0)
    assert queued.called == []


class TestBadInput:
    @pytest.mark.parametrize(
        ("build", "error", "text"),
        [
            (
                lambda t: (chord([t.echo.s(1)]), {}),
                ValueError,
                "the chord has no body: write submit(chord(header, body))",
            ),
            (
                lambda t: (chord([t.echo.s(1)], t.collect.s()), {"on_success": t.own.s()}),
                ValueError,
                "on_success beside the body of a chord: the body is the on_success callback",
            ),
            (
                lambda t: (chord([group(t.echo.s(1), t.echo.s(2))], t.collect.s()), {}),
                ValueError,
                "member 0 contains a group: a member must be one task or a flat chain of tasks",
            ),
            (
                lambda t: (chord([t.echo.s(0), chord([t.echo.s(1)], t.collect.s())], t.collect.s()), {}),
                ValueError,
                "member 1 contains a chord",
            ),
            (
                lambda t: (chord([t.echo.s(1)], group(t.echo.s(), t.again.s())), {}),
                ValueError,
                "the body of the chord contains a group: it must be one task or a flat chain of tasks",
            ),
            (
                lambda t: (chord([t.echo.s(1)], chain(t.collect.s(), chord([t.echo.s(1)], t.collect.s()))), {}),
                ValueError,
                "the body of the chord contains a chord",
            ),
            (lambda t: (chord([t.echo.s(1)], t.echo.chunks([(1,)], 1)), {}), ValueError, "contains a celery.chunks"),
            (
                lambda t: (chord([t.echo.s(1)], t.again.s(1)), {}),
                TypeError,
                r"(the list of results is prepended, again.si(…) leaves it out)",
            ),
            (
                lambda t: (chord([t.echo.s(1)], t.collect.s() | t.again.s(1)), {}),
                TypeError,
                r"(the value of the task before is prepended, again.si(…) leaves it out)",
            ),
            (lambda t: (chord([t.echo.s(1)], t.again.si()), {}), TypeError, "it is immutable"),
            (
                lambda t: (chord([t.echo.s(1)], t.collect.s().set(task_id="mine")), {}),
                ValueError,
                "the body of the chord must not have a task_id",
            ),
        ],
    )
    def test_is_refused_before_anything_is_stored(self, eager, build, error, text):
        canvas, options = build(eager)
        with pytest.raises(error) as caught:
            eager.states.submit(canvas, **options)
        assert text in str(caught.value)
        assert eager.states.store.list_jobs().jobs == []
        assert eager.called == []

    def test_a_job_without_a_body_has_no_result_of_one(self, eager):
        with pytest.raises(ResultUnavailable, match=r"without a body; submit it with submit\(chord\(header, body\)\)"):
            eager.states.submit([eager.echo.s(1)]).body_result(1)

    @pytest.mark.parametrize("value", [0, -1, True, "1", 1.5])
    def test_of_the_setting(self, value):
        app = Celery("bad", set_as_current=False, statemanager_max_body_bytes=value)
        with pytest.raises(ConfigurationError, match="statemanager_max_body_bytes"):
            Settings.from_app(app)


class TestErrbacks:
    def both(self, eager, body):
        return body.on_error(eager.old.s()).on_error(eager.new.s())

    def calls(self, eager):
        return [each for each in eager.called if each[0] in {"old", "new"}]

    def test_are_called_once_for_a_failed_header(self, eager):
        body = self.both(eager, eager.collect.s())
        job = eager.states.submit(chord([eager.echo.s(1), eager.fails.s(), eager.fails.s()], body))
        task_id = f"{job.manager.ref.incarnation}.1.0"
        new, old = self.calls(eager)
        assert old == ("old", task_id)
        assert new[:2] == ("new", task_id)
        assert isinstance(new[2], TaskFailed)
        assert (new[2].task_index, new[2].tag, new[2].message) == (1, "default", "ValueError: broken")
        with pytest.raises(TaskFailed) as caught:
            job.body_result(1)
        assert (caught.value.task_index, caught.value.status) == (1, Status.FAILED)
        assert ("collect", [1]) not in eager.called

    def test_of_a_failed_body_are_called_by_celery(self, eager):
        job = eager.states.submit(chord([eager.echo.s(1)], self.both(eager, eager.fails.s())))
        assert [each[:2] for each in self.calls(eager)] == [
            (name, f"{job.manager.ref.incarnation}.success") for name in ("new", "old")
        ]
        with pytest.raises(TaskFailed, match=f"^body of job '{job.id}' failed with status -1: ValueError: broken"):
            job.body_result(1)

    def test_of_the_chord_are_those_of_its_body(self, eager):
        canvas = chord([eager.fails.s()], eager.collect.s()).set(link_error=eager.old.s())
        job = eager.states.submit(canvas)
        assert self.calls(eager) == [("old", f"{job.manager.ref.incarnation}.0.0")]

    def test_that_were_linked_to_the_chord_are_called(self, eager):
        canvas = chord([eager.fails.s()], eager.collect.s())
        with pytest.warns(CPendingDeprecationWarning):
            canvas.link_error(eager.old.s())
        eager.states.submit(canvas)
        assert len(self.calls(eager)) == 1

    def test_of_a_chain_are_called_when_the_header_fails(self, eager):
        body = chain(eager.collect.s(), eager.again.s())
        body.link_error(eager.old.s())
        eager.states.submit(chord([eager.fails.s()], body))
        assert len(self.calls(eager)) == 1

    def test_are_called_for_a_list_that_is_too_large(self, eager):
        eager.states.settings = replace(eager.states.settings, max_body_bytes=30)
        fits = chord([eager.echo.s("x" * 10)] * 2, eager.collect.s())  # ["xxxxxxxxxx","xxxxxxxxxx"] has 27 bytes
        assert eager.states.submit(fits).body_result(1)[0] == ["x" * 10] * 2
        job = eager.states.submit(chord([eager.echo.s("é" * 6)] * 2, self.both(eager, eager.collect.s())))
        reason = "not published: the results take more than statemanager_max_body_bytes = 30 bytes"
        cell = eager.states.store.get_cell(job.manager.ref, *PLACE)
        assert (cell.status, cell.message) == (Status.REJECTED, reason)
        new, old = self.calls(eager)
        assert (new[1], old[1], new[2].message) == (f"{job.manager.ref.incarnation}.success",) * 2 + (reason,)
        with pytest.raises(TaskFailed, match="max_body_bytes"):
            job.body_result(1)

    def test_are_called_for_a_result_that_is_not_available(self, eager):
        eager.states.settings = replace(eager.states.settings, max_result_bytes=10)
        job = eager.states.submit(chord([eager.echo.s(1), eager.echo.s("x" * 20)], self.both(eager, eager.collect.s())))
        with pytest.raises(TaskFailed) as caught:
            job.body_result(1)
        assert "it cannot take the result of task 1: it takes 22 bytes, more than statemanager_max" in str(caught.value)
        assert len(self.calls(eager)) == 2

    def test_of_a_later_stage_are_called_if_it_cannot_take_the_value_before(self, eager):
        eager.states.settings = replace(eager.states.settings, max_result_bytes=30)
        stages = eager.echo.s(), eager.again.s(), eager.again.s().on_error(eager.old.s())
        job = eager.states.submit(chord([eager.echo.s(1)] * 5, chain(*stages)))
        with pytest.raises(
            TaskFailed, match=r"^body 3 of 3 of job .* the value of the stage before: it takes 34 bytes"
        ):
            job.body_result(1)
        assert self.calls(eager) == [("old", f"{job.manager.ref.incarnation}.body-3")]

    def test_that_fail_do_not_disturb_the_job(self, eager, caplog):
        job = eager.states.submit(chord([eager.fails.s()], eager.collect.s().on_error(eager.new.s(1))))
        with pytest.raises(TaskFailed):
            job.body_result(1)
        assert "takes 3 positional arguments but 4 were given" in caplog.text
        assert not eager.states.store.get_job(job.manager.ref.key).due

    def test_a_value_of_the_body_that_is_too_large_is_reported(self, eager):
        eager.states.settings = replace(eager.states.settings, max_result_bytes=20)
        job = eager.states.submit(chord([eager.echo.s("12345")] * 2, eager.again.s()))
        with pytest.raises(ResultUnavailable, match="its body has returned it, but it takes 40 bytes"):
            job.body_result(1)


@pytest.fixture
def queued(clock):
    """An app whose messages stay in a queue in memory, and whose store fails on request."""
    app = Celery("queued", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    app.conf.task_default_queue = f"chord-{uuid.uuid4().hex}"  # all apps of a process share the broker in memory
    app.conf.task_queues = [Queue(app.conf.task_default_queue)]
    states = StateManager(app)
    states.store = FaultyStore(MemoryStore(clock))
    states.called = []
    states.tasks = add_tasks(app, states.called)
    app.finalize()
    yield states
    app.close()


@pytest.fixture
def receive(queued):
    """Receive the messages of the queue."""
    with queued.app.connection_for_read() as connection:
        queue = queued.app.amqp.queues[queued.app.conf.task_default_queue](connection.default_channel)
        yield lambda: [from_message(each, None) for each in iter(lambda: queue.get(no_ack=True), None)]


def finish(states, binding, value=None, status=FINISHED):
    """Run the row or the callback of a binding, as a worker's process does."""
    grid, place = Grid(states.store, binding.ref), (binding.tag, binding.task_index)
    attempt = grid.begin(*place, owner="w", delivery=grid.cell(*place).delivery).cell.attempt
    request = Write.ending(*place, status, attempt=attempt)
    request.value = value
    return publisher.write(states, binding.ref, request)


class TestQueued:
    def submit(self, states, body, rows=1):
        job = states.submit(chord([states.tasks["echo"].s(row) for row in range(rows)], body))
        for row in range(rows):
            finish(states, Binding(job.manager.ref, row, "default"), value=f"={row}")
        return job, Grid(states.store, job.manager.ref)

    def tasks_of(self, messages):
        return [(each["task"], each["publish"]["headers"]["argsrepr"]) for each in messages]

    def test_the_body_is_a_message_with_the_list(self, queued, receive):
        job, grid = self.submit(queued, queued.tasks["collect"].s(7, key=8).set(priority=3), rows=3)
        *_, message = receive()
        assert self.tasks_of([message]) == [("collect", "([0, 1, 2], 7)")]
        assert message["publish"]["priority"] == 3
        assert binding_in(message).tag == "success"
        assert grid.job.due
        with pytest.raises(WaitTimeout):
            job.body_result(0)
        finish(queued, binding_in(message), value='="done"')
        assert job.body_result(0) == "done"
        assert not grid.job.due

    def test_that_is_rejected_does_not_run_again_alone_but_the_results_are_kept(self, queued):
        queued.settings = replace(queued.settings, max_body_bytes=3)
        job, grid = self.submit(queued, queued.tasks["collect"].s(), rows=2)
        with pytest.raises(TaskFailed, match="max_body_bytes"):
            job.body_result(1)
        report = job.rerun("failed")
        assert (len(report.rows), grid.job.generation.number) == (0, 1)
        assert job.get(1) == [0, 1]

    def test_the_options_of_a_chord_are_those_of_its_header_and_body(self, queued, receive):
        header, body = [queued.tasks["echo"].s(0)], queued.tasks["collect"].s().set(priority=2)
        later = chord(header, body | queued.tasks["again"].s()).set(priority=7, countdown=600, headers={"tenant": "t"})
        job = queued.submit(later)
        (first,) = receive()
        assert first["publish"]["priority"] == 7
        assert first["publish"]["headers"]["eta"] is not None
        finish(queued, Binding(job.manager.ref, 0, "default"), value="=0")
        (second,) = receive()
        headers = second["publish"]["headers"]
        assert (second["publish"]["priority"], headers["tenant"], headers["eta"]) == (7, "t", None)

    def test_a_stage_of_the_body_follows_the_one_before(self, queued, receive):
        job, grid = self.submit(
            queued, chain(queued.tasks["collect"].s(), queued.tasks["own"].si(1), queued.tasks["again"].s())
        )
        for stage, value, expected in [
            ("success", "=[1]", ("own", "[1]")),
            ("body-2", "=2", ("again", "(2,)")),
        ]:
            receive()
            finish(queued, Binding(grid.ref, CALLBACK_ROW, stage), value=value)
            (message,) = receive()
            assert self.tasks_of([message]) == [expected]
        finish(queued, binding_in(message), value="=[2, 2]")
        assert job.body_result(0) == [2, 2]
        assert not grid.job.due

    def test_a_stage_that_a_killed_process_has_not_published_is_published_by_a_sweep(self, queued, receive, clock):
        _, grid = self.submit(queued, queued.tasks["collect"].s() | queued.tasks["again"].s())
        receive()
        attempt = grid.begin(*PLACE, owner=None).cell.attempt
        request = Write.ending(*PLACE, FINISHED, attempt=attempt)
        request.value = "=[5]"
        queued.store.write(grid.ref, request)  # the process is killed here
        assert receive() == []
        assert sweep(queued).callbacks == 1
        assert self.tasks_of(receive()) == [("again", "([5],)")]
        clock.advance(60)
        sweep(queued)
        assert receive() == []

    def test_a_stage_that_was_decided_and_not_published_is_published_by_a_sweep(self, queued, receive, clock):
        _, grid = self.submit(queued, queued.tasks["collect"].s() | queued.tasks["again"].s())
        receive()
        updates = []

        def killed_after_the_decision(_):
            updates.append(1)
            if len(updates) == 2:
                raise SystemExit

        for _ in range(2):
            queued.store.at("update_job", killed_after_the_decision)
        with pytest.raises(SystemExit):
            finish(queued, Binding(grid.ref, *reversed(PLACE)), value="=[5]")
        assert len(receive()) == 1
        clock.advance(60)
        assert sweep(queued).callbacks == 1
        (message,) = receive()
        assert binding_in(message).celery_task_id == f"{grid.ref.incarnation}.body-2", "again, under the same id"

    @pytest.mark.parametrize("body", ["collect", "chain"])
    def test_the_errbacks_of_a_lost_body_are_called_by_the_sweep(self, queued, receive, clock, body):
        stages = queued.tasks["collect"].s()
        stages.link_error(queued.tasks["new"].s())
        job, grid = self.submit(queued, stages if body == "collect" else stages | queued.tasks["again"].s())
        receive()
        grid.begin(*PLACE, owner="w")
        clock.advance(600)
        sweep(queued)
        assert grid.cell(*PLACE).status == Status.LOST
        ((name, task_id, error),) = queued.called
        assert (name, task_id) == ("new", f"{grid.ref.incarnation}.success")
        assert (error.status, error.message) == (Status.LOST, "lost with its worker w")
        clock.advance(600)
        sweep(queued)
        assert len(queued.called) == 1
        assert not grid.job.due
        with pytest.raises(TaskFailed, match="lost with its worker w"):
            job.body_result(0)

    def test_errbacks_of_a_header_that_a_killed_process_did_not_call_are_called_by_a_sweep(self, queued, clock):
        body = queued.tasks["collect"].s().on_error(queued.tasks["new"].s())
        job = queued.submit(chord([queued.tasks["echo"].s(0)], body))
        grid = Grid(queued.store, job.manager.ref)
        attempt = grid.begin("default", 0).cell.attempt
        queued.store.write(grid.ref, Write.ending("default", 0, int(Status.FAILED), "broken", attempt=attempt))
        assert queued.called == []
        assert grid.job.due
        clock.advance(600)
        sweep(queued)
        ((_, task_id, error),) = queued.called
        assert (task_id, error.task_index, error.message) == (f"{grid.ref.incarnation}.0.0", 0, "broken")
        clock.advance(600)
        sweep(queued)
        assert len(queued.called) == 1
        assert not grid.job.due

    def test_a_body_of_another_app_is_seen_to_end(self, queued, receive):
        """Its broker does not tell how many messages a queue has, so where it waits is not known."""
        _, grid = self.submit(queued, queued.app.signature("elsewhere"))
        assert grid.job.latches["success"].place == Place("")
        assert grid.job.due
        finish(queued, Binding(grid.ref, *reversed(PLACE)), value="=1")
        assert not grid.job.due

    def test_a_body_whose_end_is_not_recorded_is_not_awaited_for_ever(self, queued, receive):
        job, grid = self.submit(queued, queued.tasks["collect"].s())
        attempt = grid.begin(*PLACE).cell.attempt
        request = Write.ending(*PLACE, FINISHED, attempt=attempt)
        request.value = "=1"
        queued.store.write(grid.ref, request)
        assert job.body_result(0) == 1
        sweep(queued)
        assert not grid.job.due

    def test_in_each_generation_the_body_runs_once(self, queued, receive):
        job, grid = self.submit(queued, queued.tasks["collect"].s() | queued.tasks["again"].s(), rows=0)
        body = queued.tasks["collect"].s() | queued.tasks["again"].s()
        job = queued.submit(chord([queued.tasks["echo"].s(row) for row in range(2)], body))
        grid, ref = Grid(queued.store, job.manager.ref), job.manager.ref
        finish(queued, Binding(ref, 0, "default"), value="=0")
        finish(queued, Binding(ref, 1, "default"), status=int(Status.FAILED))
        with pytest.raises(TaskFailed):
            job.body_result(0)
        receive()
        job.rerun("failed")
        receive()
        finish(queued, Binding(ref, 1, "default", generation=2), value="=1")
        (message,) = receive()
        assert self.tasks_of([message]) == [("collect", "([0, 1],)")]
        assert binding_in(message).tag == "success.2"
        finish(queued, binding_in(message), value="=[9]")
        (message,) = receive()
        assert (binding_in(message).tag, self.tasks_of([message])) == ("body-2.2", [("again", "([9],)")])
        finish(queued, binding_in(message), value="=8")
        assert job.body_result(0) == 8
        assert not grid.job.due
