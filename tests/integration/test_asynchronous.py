"""The asynchronous methods of a job and of the StateManager (rule R24)."""

from __future__ import annotations

import asyncio
import threading
import uuid

import pytest
from celery import Celery
from conftest import PATIENCE

from celery_statemanager import (
    JobNotFound,
    ResultUnavailable,
    StatefulTask,
    StateManager,
    Status,
    TaskFailed,
    WaitTimeout,
    open_store,
)


@pytest.fixture
def states(tmp_path):
    name = f"asynchronous-{uuid.uuid4().hex}"  # an earlier test's app of the same name may be alive
    app = Celery(name, broker="memory://", set_as_current=False, statemanager_store_url=f"sqlite:///{tmp_path}/s.db")
    app.conf.task_always_eager = True
    states = StateManager(app)
    yield states
    states.store.close()
    app.close()


@pytest.fixture
def square(states):
    @states.app.task(shared=False, base=StatefulTask, tag="square")
    def square(number):
        if number < 0:
            raise ValueError("negative")
        return number * number

    return square


def hub_threads():
    return sum(thread.name == "statemanager-hub" for thread in threading.enumerate())


def run(body):
    return asyncio.run(asyncio.wait_for(body, 3 * PATIENCE))


def test_a_job_is_submitted_awaited_and_read_in_an_event_loop(states, square):
    async def body():
        job = await states.asubmit([square.s(number) for number in range(3)], results=True, job_id="squares")
        assert await job.aget(PATIENCE) == [0, 1, 4]
        same = await states.ajob("squares")
        assert same == job
        assert (await same.await_settled(PATIENCE)).finished == 3
        assert (await same.asummary("square", indexes=False)).finished == 3
        assert (await same.aget_state("square", 1)).finished
        assert [state.task_index for state in await same.alist_states(task_index=2)] == [2]
        assert not await same.acancel("too late")
        newest = {}
        async for event in same.asubscribe(until_settled=True):
            newest[event.state.task_index] = event.state.status
        assert newest == dict.fromkeys(range(3), Status.FINISHED)
        async for event in same.asubscribe("square", 1):
            assert (event.state.task_index, event.replay) == (1, True)
            break
        rest = [each async for each in same.asubscribe(until_settled=True, since=event.cursor)]
        assert [each.state.task_index for each in rest] == [2]
        assert [each async for each in same.asubscribe(until_settled=True, since=rest[0].cursor)] == []

    run(body())


def test_errors_are_those_of_the_synchronous_methods(states, square):
    async def body():
        with pytest.raises(JobNotFound):
            await states.ajob("no such job")
        with pytest.raises(TypeError):
            await states.asubmit(5)
        job = await states.asubmit([square.s(2), square.s(-1)], results=True)
        with pytest.raises(TaskFailed, match="negative"):
            await job.aget(PATIENCE)
        plain = await states.asubmit([square.s(2)])
        with pytest.raises(ResultUnavailable):
            await plain.aget()
        with pytest.raises(ValueError, match="tag"):
            await plain.aget_state("unknown")
        with pytest.raises(ValueError, match="since"):
            plain.asubscribe(since="x")
        with pytest.raises(TypeError, match="timeout"):
            await plain.await_settled("soon")
        assert (await plain.await_settled(0)).finished == 1
        await asyncio.to_thread(plain.delete)
        with pytest.raises(JobNotFound):
            await plain.await_settled()

    run(body())


def test_many_tasks_wait_for_a_job_without_a_thread_each(states, square):
    states.app.conf.task_always_eager = False

    async def body():
        job = await states.asubmit([square.s(2)])
        with pytest.raises(WaitTimeout):
            await job.await_settled(0.05)
        waiting = [asyncio.create_task(job.await_settled(PATIENCE)) for _ in range(200)]
        while not hub_threads():
            done, _ = await asyncio.wait(waiting, timeout=0.005)
            assert not done
        assert not (await asyncio.wait(waiting, timeout=0.1))[0]
        assert hub_threads() == 1
        assert await job.acancel("enough")
        for summary in await asyncio.gather(*waiting):
            assert summary.failed == 1
        assert not await job.acancel()

    run(body())


def test_a_job_in_memory_is_read_asynchronously(square):
    app = Celery(f"memory-{uuid.uuid4().hex}", broker="memory://", set_as_current=False)
    app.conf.update(statemanager_store_url="memory://", task_always_eager=True)
    states = StateManager(app)
    states.store = open_store("memory://")

    @app.task(shared=False, base=StatefulTask)
    def task(): ...

    async def body():
        job = await states.asubmit([task.s()])
        assert (await job.await_settled(PATIENCE)).finished == 1

    run(body())
    app.close()
