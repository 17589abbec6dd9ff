"""Deliver messages twice, as brokers may do. Not imported by the package, because it imports Celery."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.signals import after_task_publish


@dataclass(frozen=True)
class Published:
    """A published task message."""

    app: Celery
    task: str
    body: Any
    headers: dict[str, Any]
    exchange: str
    routing_key: str

    @property
    def id(self) -> str:
        """The id of the Celery task."""
        return str(self.headers["id"])

    def redeliver(self) -> None:
        """Publish the message again, with the same id, headers and body. Raises: what the broker raises."""
        with self.app.producer_or_acquire() as producer:
            producer.publish(
                self.body,
                exchange=self.exchange,
                routing_key=self.routing_key,
                correlation_id=self.id,
                headers={**self.headers},
                serializer=self.app.conf.task_serializer,
            )


@contextmanager
def published(app: Celery) -> Iterator[list[Published]]:
    """Record the task messages that this process publishes inside the block, so that a test can ``redeliver`` them.

    ::

        with published(app) as messages:
            job = states.submit([resize.s("a.png")])
        messages[0].redeliver()
    """
    messages: list[Published] = []

    def note(sender: str, body: Any, exchange: str, routing_key: str, headers: dict[str, Any], **_: Any) -> None:
        messages.append(Published(app, sender, body, {**headers}, exchange, routing_key))

    after_task_publish.connect(note, weak=False)
    try:
        yield messages
    finally:
        after_task_publish.disconnect(note)
