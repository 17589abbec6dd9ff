"""What a broker does with the messages that it sends to workers, by the kind of the broker."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from celery import Celery
from kombu.transport import virtual


class Redelivers(Enum):
    """When a broker delivers the unacknowledged messages of a killed worker to another one."""

    AT_ONCE = "at once"
    """When the connection breaks."""
    LATER = "later"
    """After a timeout, such as the visibility timeout of Redis (an hour by default)."""
    NEVER = "never"
    """The message was removed when the worker received it."""


_AT_ONCE = {"amqp", "qpid"}
_NEVER = {"consul", "etcd", "filesystem", "memory", "mongodb", "pyro", "sql", "zookeeper"}
_KEEPS_ORDER = {"amqp", "memory", "redis"}

LONGEST_HEARTBEAT = 120.0
"""The interval in seconds that counts if the app asks for no heartbeats: Celery's default."""


def redelivers(app: Celery) -> Redelivers:
    """Return when the broker of an app delivers the messages of a killed worker again."""
    kind = _kind(app)
    return Redelivers.AT_ONCE if kind in _AT_ONCE else Redelivers.NEVER if kind in _NEVER else Redelivers.LATER


def is_amqp(app: Celery) -> bool:
    """Return whether the broker of an app sends messages before the worker asks for each, and counts those it has."""
    return _kind(app) == "amqp"


def keeps_order(app: Celery) -> bool:
    """Return whether messages of equal priority leave a queue in the order in which any host has published them."""
    return _kind(app) in _KEEPS_ORDER


def put_back_delay(app: Celery) -> float:
    """Return the seconds within which the broker puts back what a worker had received whose connection has broken.

    RabbitMQ learns of a host that is gone when it has missed two heartbeats. Other brokers put nothing back by then.
    """
    return 2.0 * (app.conf.broker_heartbeat or LONGEST_HEARTBEAT) if redelivers(app) is Redelivers.AT_ONCE else 0.0


@lru_cache(maxsize=100)
def counts_messages(app: Celery) -> bool:
    """Return whether the transport of an app reports the number of messages in a queue. Others report 0."""
    with app.connection_for_read() as connection:  # does not connect
        transport = connection.transport
    # kombu has no public way to ask: its base class answers 0, and a class that counts overrides this method.
    size = getattr(getattr(transport, "Channel", None), "_size", None)
    return is_amqp(app) or size not in {None, virtual.Channel._size}


@lru_cache(maxsize=100)
def _kind(app: Celery) -> str:
    with app.connection_for_read() as connection:  # does not connect
        kind: str = connection.transport.driver_type
    return kind
