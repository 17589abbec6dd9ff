"""Tasks that run and do not move: marked within their limit and one sweep, in every pool (rule R23)."""

import os

import pytest

from celery_statemanager import Status
from celery_statemanager.explain import explain
from celery_statemanager.leases import SWEEPER

POOLS = ["prefork", "threads", "solo", "gevent"]
ONE_POOL = ["prefork", *(pytest.param(pool, marks=pytest.mark.full) for pool in POOLS[1:])]
"""For slow tests."""
LIMIT, SWEEP = 1.0, 1.5

TASKS = """
    import ctypes
    import threading

    app = new_app()
    states = StateManager(app)

    def until(name):
        while not (HOME / name).exists():
            time.sleep(0.05)  # stands here

    @app.task(base=StatefulTask, bind=True, tag="work", stall_after=1.0)
    def hang(self):
        self.state.set(40, "page 4")
        until("go")
        self.state.set(50, "page 5")
        until("end")

    @app.task(base=StatefulTask, bind=True, tag="work", stall_after=1.0, on_stall="stop", autoretry_for=(Exception,))
    def stop(self):
        self.state.set(40)
        until("go")
        note("begun")
        self.state.set(50)
        note("written")

    @app.task(base=StatefulTask, bind=True, tag="work", stall_after=1.0)
    def hold_the_interpreter(self):
        pipe = os.open(HOME / "pipe", os.O_RDWR)
        self.state.set(40, "page 4")
        ctypes.PyDLL(None).read(pipe, ctypes.create_string_buffer(1), 1)
        until("go")

    @app.task(base=StatefulTask, bind=True, tag="work", stall_after=1.0)
    def meet(self):
        self.state.set(40)
        self.state.synchronize(40)
        time.sleep(0.5)
        self.state.set(50)

    @app.task(base=StatefulTask, bind=True, tag="work")
    def be_late(self):
        note("late")
        until("go")
        self.state.set(40)

    @app.task(tag="work")
    def plain():
        until("go")

    @app.task(base=StatefulTask, bind=True)
    def name_threads(self):
        self.state.set(40)
        note("threads", " ".join(each.name for each in threading.enumerate()))
"""


def line_of(shop, text="# stands here"):
    lines = (shop.home / f"{shop.name}.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def release(shop, name="go"):
    (shop.home / name).touch()


def stalled(shop, job):
    """Wait until row 0 has stalled; return its state."""
    assert shop.wait(lambda: job.summary().stalled), (job.list_states(), shop.log())
    return job.get_state("work", 0)


def reason(shop, job):
    (found,) = explain(shop.states.store, shop.states.store.get_job(job.manager.ref.key))
    return found


@pytest.mark.parametrize("pool", POOLS)
def test_a_body_that_does_not_move_is_marked_with_its_place_until_it_writes(project, pool):
    shop = project(TASKS)
    shop.start_worker(pool=pool)
    job = shop.states.submit([shop.hang.s()])
    with job.subscribe("work", 0) as events:
        for event in events:
            if event.state.stalled:
                break
            last = event.state
        place = f"{shop.name}.py:{line_of(shop)} until"
        state = event.state
        assert (state.status, state.message) == (40, f"page 4; stands in {place}")
        assert LIMIT <= (state.timestamp - last.timestamp).total_seconds() <= LIMIT + SWEEP
        assert str(job.summary().stalled_indexes) == "0"
        assert reason(shop, job).code == "stalled"
        assert f"alive, but has not moved for {LIMIT:.0f}s; stands in {place}" in reason(shop, job).text
        release(shop)
        state = next(event.state for event in events if event.state.status == 50)
        assert (state.stalled, state.message) == (False, "page 5")
    release(shop, "end")
    assert job.wait(60).stalled == 0
    assert job.get_state("work", 0).message == "page 5"


@pytest.mark.parametrize("pool", POOLS)
def test_the_next_write_of_a_stalled_body_stops_it_if_its_policy_says_so(project, pool):
    shop = project(TASKS)
    shop.start_worker(pool=pool)
    job = shop.states.submit([shop.stop.s()])
    stalled(shop, job)
    release(shop)
    assert job.wait(60).failed == 1
    state = job.get_state("work", 0)
    assert (state.status, state.attempt, state.stalled) == (Status.TIMED_OUT, 1, False)
    assert state.message.startswith("stalled: nothing was written for ")
    assert state.message.endswith(f"(stall_after is 1 s), it stood in {shop.name}.py:{line_of(shop)} until")
    assert (shop.notes("begun"), shop.notes("written")) == (["x"], [])


@pytest.mark.parametrize("pool", ONE_POOL)
def test_a_function_that_holds_the_interpreter_is_marked_by_a_sweep(project, pool):
    """The function waits for the test. It is marked while its worker's lease lasts, which no thread can renew."""
    shop = project(TASKS + "\n    app.conf.statemanager_lease = 60.0\n")
    os.mkfifo(shop.home / "pipe")
    shop.start_worker(pool=pool, concurrency=1)
    if pool != "prefork":  # no thread of this worker can run
        shop.start_worker("-Q", "sweeping", pool="threads")
    assert shop.wait(lambda: shop.states.store.get_worker(SWEEPER))  # a worker waits before its first sweep
    job = shop.states.submit([shop.hold_the_interpreter.s()])
    assert stalled(shop, job).message == "page 4"
    with (shop.home / "pipe").open("w") as pipe:
        pipe.write("x")
    place = f"page 4; stands in {shop.name}.py:"
    assert shop.wait(lambda: job.get_state("work", 0).message.startswith(place)), job.list_states()
    assert job.get_state("work", 0).version == 4
    release(shop)
    assert job.wait(60).finished == 1


@pytest.mark.parametrize("pool", ONE_POOL)
def test_waiting_in_a_barrier_counts_as_moving(project, pool):
    shop = project(TASKS)
    for _ in range(2 if pool == "solo" else 1):
        shop.start_worker(pool=pool)
    job = shop.states.submit([shop.meet.s(), shop.be_late.s()])
    assert shop.wait(lambda: shop.notes("late") and job.get_state("work", 0).status == 40)
    waiting = job.get_state("work", 0)
    enough = shop.states.store.now() + round((LIMIT + 3 * SWEEP) * 1_000_000)
    assert shop.wait(lambda: shop.states.store.now() > enough)
    assert job.get_state("work", 0) == waiting, shop.log()
    release(shop)
    assert job.wait(60).finished == 2


def test_the_limit_of_a_job_holds_for_plain_tasks_and_wins(project):
    shop = project(TASKS)
    shop.start_worker(pool="threads", concurrency=3)
    job = shop.states.submit([shop.plain.s(), shop.hang.s(), shop.stop.s()], stall_after=2.0, on_stall="report")
    assert shop.wait(lambda: job.summary().stalled == 3)
    after = {shop.states.store.get_cell(job.manager.ref, "work", row).stall.after for row in range(3)}
    assert after == {2_000_000}
    release(shop)
    release(shop, "end")
    assert job.wait(60).finished == 3
    assert shop.notes("written") == ["x"]


def test_a_task_without_a_limit_starts_no_thread(project):
    shop = project(TASKS)
    shop.start_worker(pool="prefork", concurrency=1)
    assert shop.states.submit([shop.name_threads.s()]).wait(60).finished == 1
    assert shop.notes("threads")
    assert "statemanager-stalls" not in shop.notes("threads")
