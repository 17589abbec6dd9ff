"""Typical user code, checked by ``mypy --strict`` in ``make check`` and never run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from celery import Celery, chain, chord, group
from typing_extensions import assert_type

from celery_statemanager import (
    IndexSet,
    Job,
    JobPage,
    Manager,
    State,
    StatefulTask,
    StateManager,
    Status,
    Store,
    SubmitFailed,
    Summary,
    SynchronizeTimeout,
    WaitTimeout,
    current_state,
    open_store,
)


def core() -> tuple[int, datetime | None, float | None, IndexSet | None, str]:
    store: Store = open_store("sqlite:///states.db")
    Manager.create(store, "etl-41", num_tasks=8, tags={"ingest": range(8), "export": [1, 2]}, run_token="again")
    manager = Manager.create(store, "etl-42", num_tasks=8, task_index=0, tags=["ingest", "export"])
    state: State = manager.set_state("ingest", Status.STARTED, "page 4", payload={"rows": 812})
    state = manager.progress("ingest", 4, 10, "page 4 of 10")
    number: int = manager.begin("ingest")
    try:
        states: list[State] = manager.synchronize("ingest", 10, timeout=60)
    except SynchronizeTimeout as late:
        states = late.states
    summary: Summary = manager.summary(tag=None, indexes=True)
    return number, states[0].timestamp, state.fraction, summary.failed_indexes, summary.lowest.tag


def events(store: Store) -> Iterator[tuple[State, bool]]:
    with Manager.open(store, "etl-42") as manager, manager.subscribe(until_settled=True) as subscription:
        for event in subscription:
            yield event.state, event.replay


app = Celery("shop", broker="redis://localhost")
states = StateManager(app)


@app.task(base=StatefulTask, bind=True, tag="resize", autoretry_for=(OSError,), max_retries=3)
def resize(self: StatefulTask, path: str) -> None:
    self.state.progress(1, 2, path)
    current_state().set(40, "halfway", payload={"rows": 812})
    state: State | None = self.state.get()
    if self.state and state is not None:
        resize.delay(state.tag)


def submit(paths: list[str]) -> tuple[Summary, bool, Job | None]:
    states.submit(group(resize.s(path) for path in paths), job_id="etl-42", run_token="again", tags=("resize",))
    states.submit((resize.s(path) for path in paths), on_failure=resize.si("x"), on_settled=resize.s())
    job: Job = states.submit([resize.s("a"), chain(resize.s("b"), resize.s("c"))], on_success=resize.s())
    assert states.submit(chord([resize.s("a")], resize.s())).body_result(timeout=60) == "a"
    assert states.submit(group([resize.s("a")]) | resize.s(), max_failed="2%").body_result() is None
    return job.wait(timeout=60), states.job("etl-42", run_token=None).cancel("user asked"), states.current_job()


def readers(owner: str) -> Iterator[dict[str, object]]:
    states.submit([resize.s("a")], metadata={"owner": owner, "pages": [1, None]})
    cursor: str | None = None
    while True:
        page: JobPage = states.jobs(text=owner, phase="running", limit=20, cursor=cursor)
        for job in page.jobs:
            assert_type(job.created_at, datetime)
            assert_type(job.settled, bool)
            yield {"id": str(job), "phase": job.phase, **job.metadata, **job.summary().as_dict()}
            yield job.get_state().as_dict()
        cursor = page.cursor
        if cursor is None:
            return


def failures(error: SubmitFailed, late: WaitTimeout) -> tuple[Job | None, Summary | None]:
    assert_type(error.job_id, str)
    assert_type(late.summary, Summary | None)
    return error.job, late.summary
