"""Pools in which a state could land in the wrong row, and threads that a task starts."""

import asyncio
import logging
import threading

import pytest
from celery import Celery
from celery.concurrency import gevent, prefork, solo, thread
from celery.contrib.testing.worker import start_worker

from celery_statemanager import StatefulTask, StateManager, Status, current_state
from celery_statemanager.explain import explain
from celery_statemanager.integration import pools
from celery_statemanager.integration.binding import Binding

ASYNCIO = """
    import asyncio
    import threading

    from celery import signals
    from celery._state import pop_current_task, push_current_task
    from celery.app.task import Context
    from celery.concurrency.base import BasePool
    from kombu.serialization import loads

    async def trace(task, task_id, request, args, kwargs):
        call = {"task_id": task_id, "args": args, "kwargs": kwargs}
        push_current_task(task)
        task.request_stack.push(Context(request, args=args, called_directly=False, kwargs=kwargs))
        state = result = None
        try:
            signals.task_prerun.send(sender=task, task=task, **call)
            try:
                task.before_start(task_id, args, kwargs)
                result = await task.run(*args, **kwargs)
                state = "SUCCESS"
                signals.task_success.send(sender=task, result=result)
            except Exception as error:
                state, result = "FAILURE", error
                signals.task_failure.send(sender=task, exception=error, traceback=None, einfo=None, **call)
        finally:
            signals.task_postrun.send(sender=task, task=task, state=state, retval=result, **call)
            task.request_stack.pop()
            pop_current_task()

    class AsyncioPool(BasePool):
        # runs all bodies as coroutines in one thread

        def on_start(self):
            self.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, daemon=True).start()

        def on_apply(self, target, args=(), kwargs=None, callback=None, accept_callback=None, **_):
            name, task_id, request, body, content_type, encoding = args
            values, options, _ = loads(body, content_type, encoding, accept=["application/json"])

            async def run():
                await trace(app.tasks[name], task_id, {**request, "is_eager": False}, values, options)
                callback((0, None, 0.0))

            accept_callback(os.getpid(), time.monotonic())
            asyncio.run_coroutine_threadsafe(run(), self.loop)

    app = new_app()
    states = StateManager(app)

    async def meet(name):
        note(name)
        while len((HOME / name).read_text().split()) < 4:
            await asyncio.sleep(0.01)

    @app.task(base=StatefulTask, bind=True, tag="work")
    async def work(self, row):
        await meet("begun")
        self.state.set(50, f"row {row}")
        await meet("written")

        async def write_again():
            current_state().set(60, f"row {row}, {states.current_job().id}")

        await asyncio.gather(write_again())
        await meet("ending")
        if row % 2:
            raise ValueError(f"row {row}")
"""


def test_bodies_that_share_a_thread_write_their_own_rows(project):
    shop = project(ASYNCIO)
    pool = {"CELERY_CUSTOM_WORKER_POOL": f"{shop.name}:AsyncioPool"}
    shop.start_worker(pool="custom", environment=pool, concurrency=4)
    job = shop.states.submit([shop.work.s(row) for row in range(4)])
    job.wait(60)
    found = {each.task_index: (each.status, each.message) for each in job.list_states()}
    for row in range(4):
        failed = (Status.FAILED, f"ValueError: row {row}")
        assert found[row] == (failed if row % 2 else (Status.FINISHED, f"row {row}, {job.id}")), found
    assert f"the pool {shop.name}.AsyncioPool is not one of prefork, solo, threads, gevent, eventlet" in shop.log()


class Recycling(prefork.TaskPool):
    """A pool derived from one of Celery's that runs tasks in the same way."""


class Overridden(solo.TaskPool):
    def on_apply(self, *args, **options): ...


@pytest.mark.parametrize(
    ("pool", "name", "known"),
    [
        ("prefork", "prefork", True),
        ("processes", "prefork", True),
        (solo.TaskPool, "solo", True),
        (thread.TaskPool, "threads", True),
        (gevent.TaskPool, "gevent", True),
        (Recycling, "prefork", True),
        (Overridden, f"{__name__}.Overridden", False),
    ],
)
def test_a_pool_is_recognised_by_the_way_it_runs_tasks(pool, name, known):
    found = pools.pool_of(pool)
    assert (found.name, found.known) == (name, known)


HELPERS = """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    app = new_app()
    states = StateManager(app)

    def in_threads(action):
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(action, range(1, 10)))

    @app.task(base=StatefulTask, bind=True, tag="work")
    def work(self, how):
        state = self.state
        actions = {
            "self": lambda i: self.state.progress(i, 10),
            "current": lambda i: current_state().progress(i, 10),
            "captured": lambda i: state.progress(i, 10),
        }
        if how == "to_thread":
            asyncio.run(asyncio.to_thread(lambda: [self.state.progress(i, 10) for i in range(1, 10)]))
        else:
            in_threads(actions[how])
"""
HOWS = ["self", "current", "captured", "to_thread"]
ALL_WRITES = 11
"""The begin, nine reports of progress and the end."""


@pytest.mark.parametrize(
    ("pool", "written"),
    [("prefork", set(HOWS)), ("solo", set(HOWS)), ("threads", {"captured", "to_thread"}), ("gevent", {"captured"})],
)
def test_threads_of_a_task_write_its_state_or_say_why_not(project, pool, written):
    shop = project(HELPERS)
    shop.start_worker(pool=pool)
    job = shop.states.submit([shop.work.s(how) for how in HOWS])
    assert job.wait(60).finished == len(HOWS)
    versions = {how: job.get_state("work", row).version for row, how in enumerate(HOWS)}
    assert versions == {how: ALL_WRITES if how in written else 2 for how in HOWS}
    for used in ("self.state in thread", "current_state() in thread"):
        assert shop.log().count(used) == (pool in {"threads", "gevent"}), shop.log()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (asyncio.CancelledError("away"), Status.FAILED, "CancelledError: away"),
        (GeneratorExit(), Status.FAILED, "GeneratorExit"),
        (SystemExit(3), Status.LOST, "SystemExit: 3"),
    ],
)
def test_an_eager_body_that_is_aborted_ends_its_cell(error, status, message):
    app = Celery("eager", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://")
    states = StateManager(app)

    @app.task(base=StatefulTask, tag="work", shared=False)
    def work():
        raise error

    with pytest.raises(type(error)):
        states.submit([work.s()], job_id="aborted")
    state = states.job("aborted").get_state("work", 0)
    assert (state.status, state.message) == (status, message)


BATCHES = """
    from celery import signals
    from celery.worker.request import Request

    app = new_app()
    states = StateManager(app)

    class Batches(app.Task):
        # handles messages as celery-batches does: it runs no task by Celery's tracer

        def Strategy(self, task, app, consumer):
            def handle(message, body, ack, reject, callbacks, **_):
                request = Request(
                    message, on_ack=ack, on_reject=reject, app=app, hostname=consumer.hostname, task=task,
                    eventer=consumer.event_dispatcher, connection_errors=consumer.connection_errors,
                    body=message.body, headers=message.headers, decoded=False, utc=True,
                )
                signals.task_received.send(sender=consumer, request=request)
                task.run([request])
                request.acknowledge()

            return handle

    @app.task(base=Batches, typing=False)
    def batch(requests):
        note("ran", len(requests))

    @app.task(base=StatefulTask, tag="work")
    def alone(): ...
"""
NOT_TRACKED = "its class defines its own Strategy, which processes messages differently"


def test_a_task_with_a_strategy_of_its_own_is_refused(project):
    shop = project(BATCHES)
    with pytest.raises(ValueError, match=rf"member 1, task {shop.name}\.batch: {NOT_TRACKED}"):
        shop.states.submit([shop.alone.s(), shop.batch.s()])
    with pytest.raises(ValueError, match=rf"on_success, task {shop.name}\.batch: {NOT_TRACKED}"):
        shop.states.submit([shop.alone.s()], on_success=shop.batch.s())


def test_a_row_of_a_task_with_a_strategy_that_its_submitter_does_not_know_ends(project):
    shop = project(BATCHES)
    shop.start_worker(pool="threads")
    del shop.app.tasks[f"{shop.name}.batch"]
    job = shop.states.submit([shop.app.signature(f"{shop.name}.batch")])
    assert job.wait(60).failed == 1
    state = job.get_state("default", 0)
    assert (state.status, state.message[:60]) == (Status.REJECTED, f"not tracked: {NOT_TRACKED}"[:60])


@pytest.mark.parametrize(
    ("pool", "limits"),
    [
        ("prefork", ""),
        ("threads", "soft and hard time limits have no effect in the threads pool"),
        ("gevent", "soft time limits have no effect in the gevent pool"),
    ],
)
def test_why_state_reports_time_limits_without_effect(project, pool, limits):
    shop = project("""
        app = new_app()
        states = StateManager(app)

        @app.task(base=StatefulTask, tag="work", time_limit=60)
        def work():
            while not (HOME / "go").exists():
                time.sleep(0.01)
        """)
    shop.start_worker(pool=pool)
    job = shop.states.submit([shop.work.s()])
    store, key = shop.states.store, job.manager.ref.key

    def running():
        return [each.text for each in explain(store, store.get_job(key)) if each.code == "running"]

    assert shop.wait(running)
    (text,) = running()
    assert text.partition("more)")[2].removeprefix("; ") == limits
    (shop.home / "go").touch()
    job.wait(60)


def test_a_killed_child_ends_as_the_faq_describes(project):
    shop = project("""
        import signal

        app = new_app()
        states = StateManager(app)

        def killing(name, **options):
            @app.task(name=name, base=StatefulTask, tag="work", shared=False, **options)
            def kill(times=1):
                note(name)
                if len((HOME / name).read_text().split()) <= times:
                    os.kill(os.getpid(), signal.SIGKILL)
            return kill

        early, late = killing("early"), killing("late", acks_late=True)
        requeued = killing("requeued", acks_late=True, on_lost="requeue")
        rejected = killing("rejected", acks_late=True, reject_on_worker_lost=True)
        always = killing("always", acks_late=True, reject_on_worker_lost=True)

        @app.task(base=StatefulTask, tag="work")
        def other():
            note("other")
        """)
    worker = shop.start_worker(concurrency=2)
    names = ["early", "late", "requeued", "rejected"]
    members = [getattr(shop, name).s() for name in names] + [shop.always.s(99)] + [shop.other.s() for _ in range(4)]
    job = shop.states.submit(members)
    job.wait(60)
    states = [job.get_state("work", row) for row in range(len(members))]
    for row, name in enumerate(names[:3]):
        assert states[row].status == Status.LOST, name
        assert states[row].message.startswith("WorkerLostError"), name
        assert len(shop.notes(name)) == 1, name
    assert (states[3].status, len(shop.notes("rejected"))) == (Status.FINISHED, 2)
    assert (states[4].status, len(shop.notes("always"))) == (Status.LOST, 3)
    assert [each.status for each in states[5:]] == [Status.FINISHED] * 4
    assert worker.process.poll() is None


@pytest.mark.parametrize(
    "pool", ["prefork", pytest.param("threads", marks=pytest.mark.full), pytest.param("gevent", marks=pytest.mark.full)]
)
def test_an_aborted_part_of_a_replacement_ends_the_row(project, pool):
    shop = project("""
        import asyncio, sys

        app = new_app()
        states = StateManager(app)

        @app.task(acks_late=True)
        def part(how):
            note("ran", how)
            if how == "cancel":
                raise asyncio.CancelledError("away")
            sys.exit(3)

        @app.task
        def last(*_): ...

        @app.task(base=StatefulTask, bind=True, tag="work")
        def work(self, how):
            raise self.replace(chain(part.si(how), last.si()))
        """)
    shop.start_worker(pool=pool)
    job = shop.states.submit([shop.work.s("cancel"), shop.work.s("exit")])
    assert job.wait(60).failed == 2
    cancelled, exited = (job.get_state("work", row) for row in range(2))
    assert (cancelled.status, cancelled.message[:20]) == (Status.FAILED, "CancelledError: away")
    assert exited.status == Status.LOST
    assert sorted(shop.notes("ran")) == ["cancel", "exit"]


def test_a_body_that_is_aborted_after_a_revoke_ends(project):
    """The threads pool cannot terminate a body: the revoke has no effect on it."""
    shop = project("""
        import asyncio

        app = new_app()
        states = StateManager(app)

        @app.task(base=StatefulTask, bind=True, tag="work", acks_late=True)
        def work(self):
            from celery.worker.state import revoked
            note("ran")
            while self.request.id not in revoked:
                time.sleep(0.01)
            raise asyncio.CancelledError("away")
        """)
    shop.start_worker(pool="threads")
    job = shop.states.submit([shop.work.s()])
    assert shop.wait(lambda: shop.notes("ran"))
    shop.app.control.revoke(Binding(job.manager.ref, 0, "work").celery_task_id)
    assert job.wait(60).failed == 1
    state = job.get_state("work", 0)
    assert (state.status, state.message) == (Status.FAILED, "CancelledError: away")


@pytest.fixture
def logging_stays():
    """Undo what an embedded worker of Celery does to the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.mark.usefixtures("logging_stays")
def test_the_main_thread_of_a_program_with_an_embedded_worker_has_no_state():
    app = Celery("embedded", set_as_current=False, broker="memory://", statemanager_store_url="memory://")
    app.conf.task_default_queue = "embedded"  # other tests leave messages in the default queue of this process
    states, begun, go = StateManager(app), threading.Event(), threading.Event()

    @app.task(base=StatefulTask, bind=True, tag="work", shared=False)
    def work(self):
        begun.set()
        go.wait(30)

    with start_worker(app, perform_ping_check=False, pool="solo"):
        job = states.submit([work.s()])
        assert begun.wait(30)
        assert not current_state()
        assert not work.state
        go.set()
        assert job.wait(30).finished == 1
