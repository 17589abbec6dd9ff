"""When a broker delivers the messages of a killed worker again."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

from celery import Celery


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


@lru_cache(maxsize=100)
def redelivers(app: Celery) -> Redelivers:
    """Return when the broker of an app delivers the messages of a killed worker again."""
    with app.connection_for_read() as connection:  # does not connect
        kind = connection.transport.driver_type
    return Redelivers.AT_ONCE if kind in _AT_ONCE else Redelivers.NEVER if kind in _NEVER else Redelivers.LATER
