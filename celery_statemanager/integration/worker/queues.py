"""The queues to which the messages of a job were published, and how many messages are in a queue."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from typing import Any

from celery import Celery
from kombu.transport import virtual

from celery_statemanager.integration.brokers import is_amqp
from celery_statemanager.integration.installed import Tracker
from celery_statemanager.integration.outbox.envelope import Envelope, queue_name
from celery_statemanager.integration.outbox.making import REJECTED, binding_in
from celery_statemanager.records import JobRecord, JobRef

logger = logging.getLogger(__name__)

NOT_FOUND = "404"
"""The reply of a broker that has no queue of a name, in AMQP and in kombu's own transports."""

SAMPLE = 8
"""Number of rows whose messages are read to learn the queues of a job."""

MOST_JOBS = 1_000

_queues: dict[JobRef, frozenset[str]] = {}
"""The queues of the last jobs: the messages of a job never change."""


class BrokerQueues:
    """The queues of an app's broker, as of one sweep, which closes the connection at its end."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.sends_ahead = is_amqp(tracker.app)

    def queues_of(self, job: JobRecord) -> frozenset[str]:
        """Return the queues of evenly spaced rows."""
        if job.ref not in _queues:
            while len(_queues) >= MOST_JOBS:
                _queues.pop(next(iter([*_queues])), None)
            _queues[job.ref] = self._sampled(job)
        return _queues[job.ref]

    def _sampled(self, job: JobRecord) -> frozenset[str]:
        rows = {job.num_tasks * number // SAMPLE for number in range(SAMPLE)}
        messages = [each for row in rows for each in self._tracker.blocks.messages(self._tracker.store, job.ref, row)]
        queues = (queue_name(each) for each in messages if REJECTED not in each)
        return frozenset(each for each in queues if each is not None)

    def queue_of(self, job: JobRecord, tag: str, row: int) -> str | None:
        """Return the queue of a message; None if it may be elsewhere, for example until its eta."""
        for message in self._tracker.blocks.messages(self._tracker.store, job.ref, row):
            binding = binding_in(message)
            if REJECTED not in message and binding.tag == tag:
                is_delayed = _may_be_delayed(message, binding.stage, job, self._now)
                return None if is_delayed else queue_name(message)
        return None

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
        """The time of the first use. An earlier time only makes more messages count as delayed."""
        return self._tracker.store.now()

    @cached_property
    def _connection(self) -> Any:
        return self._tracker.app.connection_for_read()


@lru_cache(maxsize=100)
def counts_messages(app: Celery) -> bool:
    """Return whether the transport of an app reports the number of messages in a queue. Others report 0."""
    with app.connection_for_read() as connection:  # does not connect
        transport = connection.transport
    # kombu has no public way to ask: its base class answers 0, and a class that counts overrides this method.
    size = getattr(getattr(transport, "Channel", None), "_size", None)
    return is_amqp(app) or size not in {None, virtual.Channel._size}


def _may_be_delayed(message: Envelope, stage: int, job: JobRecord, now: int) -> bool:
    """Return whether the eta of a message may not have passed; a relative one counts from a time that is not kept."""
    if "eta_after" in message:
        return bool(stage or job.flow is None or job.flow.delayed_until > now)
    eta = message["publish"]["headers"].get("eta")
    if eta is None:
        return False
    moment = datetime.fromisoformat(eta)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return aware.timestamp() * 1_000_000 > now
