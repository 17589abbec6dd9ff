"""A simulated broker loses messages, and workers come and go: sweeps find what is lost and nothing else (rule R19)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from sweep_actions import RecordedActions

from celery_statemanager import leases
from celery_statemanager.leases import Received, Report
from celery_statemanager.records import ClaimRequest, Delivery, Flow, JobRef, Place, Verdict, Write
from celery_statemanager.stores.memory import MemoryStore
from celery_statemanager.stores.wrapped import WrappedStore
from celery_statemanager.sweep import Sweep
from celery_statemanager.testing import FakeClock, Grid
from celery_statemanager.testing.kit import FINISHED

LEASE, SWEEP = 30.0, 20
LISTED_AFTER = 2 * LEASE / leases.CHECKS
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 20))]
QUEUE, PREFETCH, SLOTS = "work", 3, 2


class Message(NamedTuple):
    ref: JobRef
    tag: str
    row: int
    delivery: Delivery = Delivery()


@dataclass
class Worker:
    name: str
    received: list[tuple[Message, float]] = field(default_factory=list)
    running: list[tuple[Message, int, float]] = field(default_factory=list)
    renewed_at: float = 0.0
    stops: bool = False


class Broker(RecordedActions):
    """One queue in order. It is asked and filled by sweeps, too."""

    keeps_order = True

    def __init__(self, store):
        super().__init__(store)
        self.queue = []

    def queues_of(self, job):
        return frozenset([QUEUE])

    def place_of(self, job, tag, row, cell=None):
        return Place(QUEUE, in_order=True)

    def message_count(self, queue):
        return len(self.queue)

    def publish_messages(self, job, outbox, dead, ended):
        others = {"dead": frozenset(dead), "ended": frozenset(ended)}
        claimed = self._store.claim(job.ref, ClaimRequest(publisher="sweeper/1.1", limit=1_000, **others))
        self.publish_rows(job, claimed.rows)
        self._store.claim(job.ref, ClaimRequest(publisher="sweeper/1.1", limit=0))
        return len(claimed.rows)

    def publish_rows(self, job, rows):
        """Publish the present messages of claimed rows."""
        for row in rows:
            cells = [(tag, self._store.get_cell(job.ref, tag, row)) for tag in job.plan.stages(row)]
            tag, cell = next((each for each in cells if each[1] is None or not each[1].succeeded), cells[-1])
            if cell is None or cell.is_due:
                self.queue.append(Message(job.ref, tag, row, cell.delivery if cell else Delivery()))


class Watched(WrappedStore):
    """A store that calls a function with each message that is made due again because it was lost."""

    found = staticmethod(print)

    def write(self, ref, write):
        if write.due_again and "its message was lost" in write.message:
            self.found(ref, write)
        return super().write(ref, write)


class Simulation:
    def __init__(self, seed, loss):
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.store = Watched(MemoryStore(self.clock))
        self.store.found = self.found
        self.broker = Broker(self.store)
        self.jobs, self.workers, self.lost, self.wanted = [], [], set(), 2
        self.errors = []
        self.found_behind_others = self.losses = 0
        self._loss = loss

    def run(self, seconds):
        """Run the workers and sweeps until no message is lost and no job submitted any more, and all jobs are done."""
        for second in range(10 * seconds):
            busy = second < seconds
            if not busy and all(grid.job.settled for grid in self.jobs):
                return
            self.clock.advance(1)
            if busy:
                self.submit()
                self.lose()
                self.scale()
            while len(self.workers) < self.wanted:
                self.workers.append(Worker(f"w{self.random.randrange(10**9)}"))
            for worker in [*self.workers]:
                self.work(worker)
            if second % SWEEP == 0:
                Sweep(self.store, self.broker, lease=LEASE, max_lost=3).run()

    def submit(self):
        if self.random.random() > 0.06 or len(self.broker.queue) > 25:
            return
        rows, tags = self.random.randint(1, 8), self.random.choice([("a",), ("a", "b")])
        flow = self.random.choice([Flow(), Flow(2)])
        published = rows if flow.max_in_flight is None else min(rows, 2)
        name = f"job {len(self.jobs)}"
        grid = Grid.submitted(self.store, rows, tags, job_id=name, flow=flow, published=published)
        self.jobs.append(grid)
        self.broker.publish_rows(grid.job, range(published))

    def lose(self):
        if self.broker.queue and self.random.random() < self._loss:
            message = self.broker.queue.pop(self.random.randrange(len(self.broker.queue)))
            self.lost.add(message[:3])
            self.losses += 1

    def scale(self):
        """Change the number of workers. One that stops ends its tasks first, and puts back what it has received."""
        if self.workers and self.random.random() < 0.01:
            self.wanted = self.random.randint(1, 3)
            self.random.choice(self.workers).stops = True

    def work(self, worker):
        now = self.clock()
        for message, attempt, ends_at in [*worker.running]:
            if ends_at <= now:
                worker.running.remove((message, attempt, ends_at))
                self.end(worker, message, attempt)
        if worker.stops and not worker.running:
            self.broker.queue[:0] = [message for message, _ in worker.received]
            self.release_claims(worker)
            self.store.drop_worker(worker.name)
            self.workers.remove(worker)
            return
        while not worker.stops and len(worker.received) < PREFETCH and self.broker.queue:
            worker.received.append((self.broker.queue.pop(0), now))
        while not worker.stops and worker.received and len(worker.running) < SLOTS:
            self.begin(worker, worker.received.pop(0)[0])
        is_new = any(renewed > worker.renewed_at and renewed <= now - LISTED_AFTER for _, renewed in worker.received)
        if is_new or now - worker.renewed_at >= LEASE / leases.RENEWALS:
            self.renew(worker)

    def release_claims(self, worker):
        ended = ClaimRequest(publisher=f"{worker.name}/1.end", limit=0, ended=frozenset([f"{worker.name}/1.1"]))
        for grid in self.jobs:
            self.store.claim(grid.ref, ended)

    def begin(self, worker, message):
        grid = Grid(self.store, message.ref)
        reply = grid.begin(message.tag, message.row, owner=worker.name, delivery=message.delivery)
        if reply.verdict is Verdict.BEGUN:
            duration = self.random.choice([1, 3, 10, 25, 200])
            worker.running.append((message, reply.cell.attempt, self.clock() + duration))

    def end(self, worker, message, attempt):
        job, place = self.store.get_job(message.ref.key), (message.tag, message.row)
        if self.random.random() < 0.1:
            later = message.delivery._replace(retries=message.delivery.retries + 1)
            self.broker.queue.append(message._replace(delivery=later))
            self.store.write(message.ref, Write.returned(*place, "retry", later, attempt=attempt))
            return
        last = Write.ending(*place, FINISHED, attempt=attempt)
        last.next_is_due = bool(job.plan.after(*place))
        last.publisher = f"{worker.name}/1.1"
        self.broker.publish_rows(job, self.store.write(message.ref, last).claimed)

    def renew(self, worker):
        received = [Received(each.ref, each.tag, each.row, each.delivery) for each, _ in worker.received]
        running = [leases.cell_name(each.ref, each.tag, each.row) for each, _, _ in worker.running]
        leases.renew(self.store, worker.name, Report(running, received=received, processes=[1]), LEASE)
        worker.renewed_at = self.clock()

    def found(self, ref, write):
        message = (ref, write.tag, write.task_index)
        held = [each for worker in self.workers for each, *_ in (*worker.received, *worker.running)]
        if message in {each[:3] for each in (*self.broker.queue, *held)} or message not in self.lost:
            self.errors.append(message)
        self.lost.discard(message)
        self.found_behind_others += bool(self.broker.queue)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_lost_is_published_again_once(seed):
    simulation = Simulation(seed, loss=0.01)
    simulation.run(3_000)
    assert simulation.errors == []
    assert simulation.losses > 10
    assert simulation.found_behind_others
    assert simulation.lost == set()
    assert all(grid.job.settled for grid in simulation.jobs)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_merely_waits_is_not_published_again(seed):
    simulation = Simulation(seed, loss=0.0)
    simulation.run(3_000)
    assert simulation.errors == []
    assert all(grid.job.settled for grid in simulation.jobs)
