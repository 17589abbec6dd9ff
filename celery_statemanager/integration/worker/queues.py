"""The queues to which the messages of a job were published, and how many messages are in a queue."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cached_property
from typing import Any

from celery_statemanager.integration.brokers import counts_messages, is_amqp, keeps_order, put_back_delay
from celery_statemanager.integration.callbacks import callback_task
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.due import Unpublishable, delivered_message
from celery_statemanager.integration.outbox.envelope import Envelope, from_json, queue_name
from celery_statemanager.integration.outbox.making import REJECTED, binding_in
from celery_statemanager.integration.outbox.places import microseconds_of, place_of
from celery_statemanager.records import Cell, JobRecord, JobRef, Place

logger = logging.getLogger(__name__)

NOT_FOUND = "404"
"""The reply of a broker that has no queue of a name, in AMQP and in kombu's own transports."""

SAMPLE = 8
"""Number of rows whose messages are read to learn the queues of a job."""

MOST_JOBS = 1_000

MOST_READS = 500
"""Maximum number of cells that one sweep reads to learn the etas of messages."""

_samples: dict[JobRef, frozenset[tuple[str, str]]] = {}
"""Tasks and queues of the last jobs: the messages of a job never change."""


class BrokerQueues:
    """The queues of an app's broker, as of one sweep, which closes the connection at its end."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.sends_ahead = is_amqp(tracker.app)
        self.keeps_order = keeps_order(tracker.app)
        self.put_back_delay = put_back_delay(tracker.app)
        self._reads = 0

    def queues_of(self, job: JobRecord) -> frozenset[str]:
        """Return the queues of the messages of evenly spaced rows that this app may publish."""
        app = self._tracker.app
        return frozenset(queue for task, queue in self._sample(job) if task in app.tasks)

    def _sample(self, job: JobRecord) -> frozenset[tuple[str, str]]:
        """Return the tasks and queues of evenly spaced rows."""
        if job.ref not in _samples:
            while len(_samples) >= MOST_JOBS:
                _samples.pop(next(iter([*_samples])), None)
            rows = {job.num_tasks * number // SAMPLE for number in range(SAMPLE)}
            stages = [each for row in rows for each in self._stages(job, row) if REJECTED not in each]
            named = ((str(each["task"]), queue_name(each)) for each in stages)
            _samples[job.ref] = frozenset((task, queue) for task, queue in named if queue is not None)
        return _samples[job.ref]

    def place_of(self, job: JobRecord, tag: str, row: int, cell: Cell | None = None) -> Place | None:
        """Return where a message waits that is published; None if that is unknown, as for one of another app.

        Args:
            cell: the cell of the message, if an attempt of it has begun.
        """
        stages = self._stages(job, row)
        number = next((number for number, each in enumerate(stages) if binding_in(each).tag == tag), None)
        if number is None or (cell and cell.delivery.replacements and not cell.delivery.retries):
            return None  # a replacement may consist of several tasks
        try:
            message = delivered_message(stages[number], cell or Cell())
        except Unpublishable:
            return None
        place = place_of(self._tracker.app, message, self._due_at(job, stages, number, message))
        if place is not None and place.delayed_until and not number and not cell and job.flow is not None:
            place = place._replace(delayed_until=max(place.delayed_until, job.flow.delayed_until))
        return place

    def place_of_callback(self, job: JobRecord, latch: str, cell: Cell) -> Place | None:
        """Return where the published message of a callback waits; None if that is unknown, as for one of another app.

        Args:
            latch: its name.
        """
        place, app = job.latches[latch].place, self._tracker.app
        if (
            place is None
            or not place.queue
            or callback_task(job.latches[latch]) not in app.tasks
            or cell.delivery.replacements
        ):
            return None
        if not cell.delivery.retries:
            return place
        kept = None if cell.kept is None else from_json(cell.kept)
        if kept is None or "eta" in kept:
            return Place(place.queue, microseconds_of(kept["eta"]) if kept else 0)
        return place_of(app, kept, cell.timestamp) if "publish" in kept else None

    def _due_at(self, job: JobRecord, stages: list[Envelope], number: int, message: Envelope) -> int:
        """Return the time at which a message became due, if its eta counts from then.

        The cells of a limited number of rows are read. The other ones count as due now.
        """
        if "eta_after" not in message or (number == 0 and job.generation.number == 1):
            return job.created_at
        self._reads += 1
        if self._reads > MOST_READS:
            return self._now
        bindings = map(binding_in, stages[max(number - 1, 0) : number + 1])
        cells = (self._tracker.store.get_cell(job.ref, each.tag, each.task_index) for each in bindings)
        return max((cell.timestamp for cell in cells if cell), default=job.created_at)

    def _stages(self, job: JobRecord, row: int) -> list[Envelope]:
        return self._tracker.blocks.messages(self._tracker.store, job.ref, row)

    def message_count(self, queue: str) -> int | None:
        """Return the number of messages in a queue, 0 if there is no queue; None if the broker does not tell."""
        app = self._tracker.app
        if not counts_messages(app):
            return None
        try:
            with self._connection.channel() as channel:
                return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except Exception as error:  # noqa: BLE001 - brokers and their clients raise any error
            if str(getattr(error, "reply_code", "")) == NOT_FOUND:
                return 0
            logger.info("sweep: cannot count the messages in queue %r: %s", queue, error)
            return None

    def close(self) -> None:
        """Close the connection, if one was opened."""
        if "_connection" in vars(self):
            with suppress(Exception):
                self._connection.close()

    @cached_property
    def _now(self) -> int:
        """The time of the first use."""
        return self._tracker.store.now()

    @cached_property
    def _connection(self) -> Any:
        return self._tracker.app.connection_for_read()
