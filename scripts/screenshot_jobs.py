"""The jobs of the screenshots: a memory store on a clock that is set, and what has happened in it."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from celery import Celery, chain

from celery_statemanager import StatefulTask, StateManager, Status
from celery_statemanager.integration.callbacks import publish_decided
from celery_statemanager.integration.submission.job import Job
from celery_statemanager.leases import Report, cell_name, renew, try_acquire
from celery_statemanager.records import CALLBACK_ROW, Begin, Write

NOW = 1_793_541_810.0
LEASE = 30.0
KILLED = 18.5
"""Seconds since one of the workers was killed."""
WORKERS = [f"pod-{number}:{pid}:{number:x}c" for number, pid in ((1, 41), (2, 38), (3, 44), (4, 41))]
DEAD = WORKERS[2]
"""The worker that was killed: it is silent, and its lease has not ended yet."""

REFUSED = "ConnectionError: storage.example.com:443 refused the connection"
BROKEN = "UnidentifiedImageError: cannot identify image file 'IMG_{}.jpg'"


class Clock:
    """Seconds since the epoch, as set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Plan(NamedTuple):
    """A job and what happens to it.

    Attributes:
        age: seconds since its submission.
        steps: seconds of each stage, by tag.
        slots: rows that run at the same time.
        broken: the message of each row that fails, by tag and row.
    """

    job_id: str
    title: str
    owner: str
    rows: int
    age: float
    steps: dict[str, float]
    slots: int
    broken: Mapping[tuple[str, int], str] = MappingProxyType({})
    ends: str = ""


def refused(tag: str, *rows: int) -> dict[tuple[str, int], str]:
    """Return rows that cannot reach their server."""
    return {(tag, row): REFUSED for row in rows}


def unreadable(tag: str, *rows: int) -> dict[tuple[str, int], str]:
    """Return rows with a broken file."""
    return {(tag, row): BROKEN.format(4000 + row) for row in rows}


PHOTOS = Plan(
    "catalogue-2026-11",
    "Product photos, autumn catalogue",
    "media-team",
    600,
    254,
    {"resize": 2.1, "classify": 3.4, "upload": 1.2},
    12,
)
INVOICES = Plan(
    "invoices-2026-10",
    "Invoices of October",
    "billing",
    1_200,
    5_400,
    {"render": 1.1, "send": 0.7},
    16,
    refused("send", *range(412, 431), 640, 641) | unreadable("render", 77, 310, 311, 902),
)
EMBEDDINGS = Plan(
    "embeddings-v7",
    "Embed the product catalogue",
    "search",
    100_000,
    3_120,
    {"embed": 2.3},
    48,
    refused("embed", *range(21_300, 21_420), *range(48_010, 48_080), 60_200)
    | unreadable("embed", 3_102, 35_777, 57_404),
)
OTHERS = [
    Plan("thumbnails-retry", "", "media-team", 1_600, 1_500, {"resize": 2.0}, 2, ends="cancel"),
    Plan(
        "archive-q3",
        "Archive the recordings of Q3",
        "operations",
        900,
        2_400,
        {"pack": 5.0, "store": 2.0},
        4,
        ends="pause",
    ),
    Plan(
        "warehouse-2026-11-01", "Nightly warehouse load", "data-platform", 400, 41_000, {"extract": 2.0, "load": 4.0}, 8
    ),
    Plan(
        "warehouse-2026-10-31",
        "Nightly warehouse load",
        "data-platform",
        400,
        127_400,
        {"extract": 2.0, "load": 4.0},
        8,
    ),
    Plan("price-feed", "Prices for resellers", "pricing", 64, 9, {"fetch": 4.0}, 6),
]

app = Celery("shop", broker="memory://", set_as_current=False)
clock = Clock()
app.conf.update(statemanager_store_url="memory://screenshots", statemanager_store_options={"clock": clock})
states = StateManager(app)


@app.task(base=StatefulTask, name="shop.publish_catalogue")
def publish_catalogue(job_id: str) -> None:
    """Stand for a callback."""


@app.task(base=StatefulTask, name="shop.tell_owner")
def tell_owner(job_id: str) -> None:
    """Stand for a callback."""


@lru_cache
def task_of(tag: str) -> StatefulTask:
    """Return a task with a tag."""

    def body(*_: object) -> None:
        """Stand for the work."""

    return app.task(body, base=StatefulTask, name=f"shop.{tag}", tag=tag)


def steps(plan: Plan) -> Iterator[tuple[float, int, bool, str]]:
    """Yield the begins and the ends of tasks in the order of time: seconds since the submission, row, begins, tag."""
    free = [0.05 * slot for slot in range(plan.slots)]
    found = []
    for row in range(plan.rows):
        moment = heapq.heappop(free)
        for number, (tag, seconds) in enumerate(plan.steps.items()):
            found.append((moment, row, True, tag))
            moment += seconds * (0.6 + 0.08 * ((row * 7 + number * 3) % 11))
            found.append((moment, row, False, tag))
            if (tag, row) in plan.broken:
                break
        heapq.heappush(free, moment)
        if moment > plan.age + 60:
            break
    return iter(sorted(each for each in found if each[0] <= plan.age))


def submit(plan: Plan) -> Job:
    """Submit a job, and write the states of its tasks up to now."""
    began = NOW - plan.age
    clock.now = began
    tasks = [task_of(tag) for tag in plan.steps]
    members = (
        chain(tasks[0].si(row), *(task.si() for task in tasks[1:])) if tasks[1:] else tasks[0].si(row)
        for row in range(plan.rows)
    )
    metadata = {"title": plan.title, "owner": plan.owner} if plan.title else {"owner": plan.owner}
    job = states.submit(
        members, job_id=plan.job_id, metadata=metadata, on_success=publish_catalogue.s(), on_failure=tell_owner.s()
    )
    ref, store, owners = job._record.ref, states.store, {}
    for moment, row, begins, tag in steps(plan):
        is_late = moment > plan.age - KILLED
        if (plan.ends and moment > plan.age * 0.6) or (is_late and owners.get(row) == DEAD):
            continue
        clock.now = began + moment
        if begins:
            owners[row] = WORKERS[row % (2 if is_late else len(WORKERS))]
            store.begin(ref, Begin(tag=tag, task_index=row, owner=owners[row]))
            continue
        owners.pop(row)
        message = plan.broken.get((tag, row))
        status = int(Status.FAILED if message else Status.FINISHED)
        decided = store.write(ref, Write.ending(tag, row, status, message, attempt=1)).decided
        run_callbacks(job, decided)
    clock.now = NOW
    if plan.ends == "cancel":
        job.cancel("superseded by thumbnails-2")
    elif plan.ends == "pause":
        job.pause("storage maintenance until 18:00")
    return job


def run_callbacks(job: Job, decided: Sequence[str]) -> None:
    """Publish the callbacks of latches, and write that their tasks have finished."""
    publish_decided(states, job._record.ref, decided)
    for name in decided:
        tag = job._record.callback_tag(name)
        if job._record.latches[name].callback is not None:
            states.store.begin(job._record.ref, Begin(tag=tag, task_index=CALLBACK_ROW, owner=WORKERS[0]))
            clock.now += 1.2
            states.store.write(job._record.ref, Write.ending(tag, CALLBACK_ROW, int(Status.FINISHED), attempt=1))


def report_workers(jobs: list[Job]) -> None:
    """Write the records of the workers, which name the rows that they run, and the time of the next sweep."""
    for worker in WORKERS:
        names = [
            cell_name(job._record.ref, tag, row)
            for job in jobs
            for tag in job.tags
            for row in job.summary(tag).running_indexes or ()
            if states.store.get_cell(job._record.ref, tag, row).owner == worker
        ]
        clock.now = NOW - (KILLED if worker == DEAD else 0.5)
        renew(states.store, worker, Report(running=names), LEASE)
    clock.now = NOW - 11
    try_acquire(states.store, WORKERS[0], 20.0)
    clock.now = NOW


def submit_all() -> None:
    """Submit all jobs, the oldest first."""
    plans = sorted([PHOTOS, INVOICES, EMBEDDINGS, *OTHERS], key=lambda plan: -plan.age)
    report_workers([submit(plan) for plan in plans])
