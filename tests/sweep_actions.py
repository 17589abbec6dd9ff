"""The actions of a sweep outside the store, for tests without a broker."""

from __future__ import annotations

from collections.abc import Collection

from celery_statemanager.records import Cell, ClaimRequest, JobRecord, JobRef, OpenAttempt, OutboxState, Place
from celery_statemanager.stores.capabilities import Outbox


class RecordedActions:
    """Record what a sweep would publish.

    Args:
        store: where to claim what is published; without one, nothing is claimed.
        own: the beginning of the ids of this app's jobs. Other jobs belong to another app.

    Attributes:
        policy, policies: whether lost attempts run again, and the exceptions by row; None: their task is another app's.
        vetoes: whether lost messages may be published again.
        empty_queue: the queue of all messages, which is empty; None if their queues are unknown.
        published: for each call that publishes callbacks, the job and the latches.
        messages: for each call that publishes messages, the job, the number of its claimed rows, and the dead and ended
            publishers.
        again: the rows whose messages were claimed and had been published before.
        resent: the published messages of parts.
        reruns: the jobs whose interrupted reruns were completed.
        stopped: for each job whose deadline has passed, the job and the latches that its cancellation decided.
    """

    broker_redelivers = False
    sends_ahead = False
    keeps_order = False
    put_back_delay = 0.0

    def __init__(self, store: Outbox | None = None, *, own: str = "") -> None:
        self.own = own
        self.policy: bool | None = False
        self.policies: dict[int, bool | None] = {}
        self.vetoes = True
        self.empty_queue: str | None = None
        self.published: list[tuple[str, ...]] = []
        self.messages: list[tuple[str, int, set[str], set[str]]] = []
        self.again: list[int] = []
        self.resent: list[str] = []
        self.reruns: list[str] = []
        self.stopped: list[tuple[str, ...]] = []
        self._store = store

    def queues_of(self, job: JobRecord) -> frozenset[str]:
        return frozenset() if self.empty_queue is None else frozenset([self.empty_queue])

    def place_of(self, job: JobRecord, tag: str, row: int, cell: Cell | None = None) -> Place | None:
        return None if self.empty_queue is None else Place(self.empty_queue)

    def place_of_callback(self, job: JobRecord, latch: str, cell: Cell) -> Place | None:
        return job.latches[latch].place

    def message_count(self, queue: str) -> int | None:
        return 0

    def may_publish_again(self, ref: JobRef, tag: str, row: int) -> bool:
        return self.vetoes

    def finish_if_succeeded(self, attempt: OpenAttempt) -> bool:
        return False

    def runs_again(self, attempt: OpenAttempt) -> bool | None:
        return self.policies.get(attempt.task_index, self.policy)

    def resend(self, ref: JobRef, message: str) -> bool:
        self.resent.append(message)
        return True

    def publish(self, ref: JobRef, decided: tuple[str, ...]) -> int:
        if not ref.key.job_id.startswith(self.own):
            return 0
        self.published.append((ref.key.job_id, *decided))
        return len(decided)

    def stop(self, ref: JobRef, decided: tuple[str, ...]) -> None:
        self.stopped.append((ref.key.job_id, *decided))

    def complete_rerun(self, job: JobRecord) -> None:
        self.reruns.append(job.job_id)

    def publish_messages(
        self, job: JobRecord, outbox: OutboxState, dead: Collection[str], ended: Collection[str]
    ) -> int | None:
        if not job.job_id.startswith(self.own):
            return None
        self.messages.append((job.job_id, outbox.claimed, {*dead}, {*ended}))
        if self._store is None:
            return 1
        publishers = {"dead": frozenset(dead), "ended": frozenset(ended)}
        claimed = self._store.claim(job.ref, ClaimRequest(publisher="sweep", limit=job.num_tasks, **publishers))
        self._store.claim(job.ref, ClaimRequest(publisher="sweep", limit=0))
        self.again += claimed.again
        return len(claimed.rows)
