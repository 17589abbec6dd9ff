"""Determine from a message where it waits after its publication."""

from __future__ import annotations

from datetime import datetime

from celery import Celery
from celery.utils.time import maybe_make_aware

from celery_statemanager.integration.brokers import counts_messages, keeps_order
from celery_statemanager.integration.outbox.envelope import Envelope, queue_name
from celery_statemanager.integration.outbox.making import REJECTED
from celery_statemanager.records import Place


def place_of(app: Celery, message: Envelope, published_at: int) -> Place | None:
    """Return where a message waits; None if only its broker knows, or does not tell how many messages a queue has.

    RabbitMQ keeps messages with an eta for a quorum queue in queues of its own, whose names a message does not have.

    Args:
        published_at: the time of its publication, in microseconds.
    """
    queue = None if REJECTED in message else queue_name(message)
    if queue is None or message["task"] not in app.tasks or not counts_messages(app):
        return None
    eta = _eta(message, published_at)
    in_order = keeps_order(app) and not eta and message["publish"].get("priority") is None
    return Place(queue, eta, in_order)


def _eta(message: Envelope, published_at: int) -> int:
    """Return the eta of a message in microseconds; 0 if it has none."""
    if "eta_after" in message:
        return published_at + int(message["eta_after"] * 1_000_000)
    eta = message["publish"]["headers"].get("eta")
    return 0 if eta is None else microseconds_of(eta)


def microseconds_of(eta: str) -> int:
    """Return the time in the header of a message in microseconds."""
    return round(maybe_make_aware(datetime.fromisoformat(eta)).timestamp() * 1_000_000)
