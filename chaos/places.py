"""Brokers and stores, each real, each behind a proxy where it is reached by TCP."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from emulator import running as running_emulator
from rabbitmq import running_rabbitmq
from servers import running_redis

from celery_statemanager.testing import Proxy

NAMES = ("folders-sqlite", "redis-redis", "rabbitmq-redis", "redis-firestore")


@dataclass
class Place:
    """Where rounds are played.

    Attributes:
        near: the environment of the one who judges, who has connections of its own.
        far: the environment of the workers, all of whose connections can be cut.
        proxies: before the ``broker`` and the ``store``, those that have one.
        away: takes the store away for so many seconds.
    """

    home: Path
    near: dict[str, str]
    far: dict[str, str]
    proxies: dict[str, Proxy] = field(default_factory=dict)
    away: Callable[[float], None] = lambda seconds: None


@contextmanager
def place(name: str, keep: Path | None = None) -> Iterator[Place]:
    """Start the servers of a place, named broker-store.

    Args:
        keep: where logs and notes are kept; a temporary folder if not given.
    """
    broker, store = name.split("-")
    with ExitStack() as stack:
        home = keep or Path(stack.enter_context(tempfile.TemporaryDirectory("", "chaos-", ignore_cleanup_errors=True)))
        home.mkdir(parents=True, exist_ok=True)
        near, far = ({"CHAOS_HOME": str(home), "CHAOS_TIMEOUT": seconds} for seconds in ("20", "2"))
        made = Place(home, near, far)
        _BROKERS[broker](made, stack)
        _STORES[store](made, stack)
        yield made


def _folders(made: Place, stack: ExitStack) -> None:
    for environment in (made.near, made.far):
        environment["CHAOS_BROKER"] = "filesystem://"


def _sqlite(made: Place, stack: ExitStack) -> None:
    for environment in (made.near, made.far):
        environment["CHAOS_STORE"] = f"sqlite:///{made.home}/states.db"

    def lock(seconds: float) -> None:
        connection = sqlite3.connect(made.home / "states.db", isolation_level=None, timeout=20)
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
        connection.close()

    made.away = lock


def _redis_broker(made: Place, stack: ExitStack) -> None:
    port = stack.enter_context(running_redis()).port
    _between(made, stack, "broker", port, "CHAOS_BROKER", "redis://127.0.0.1:{}/0")


def _rabbitmq(made: Place, stack: ExitStack) -> None:
    url = stack.enter_context(running_rabbitmq())
    port = int(url.rpartition(":")[2].partition("/")[0])
    _between(made, stack, "broker", port, "CHAOS_BROKER", url.replace(str(port), "{}"))


def _redis_store(made: Place, stack: ExitStack) -> None:
    port = stack.enter_context(running_redis()).port
    _between(made, stack, "store", port, "CHAOS_STORE", "redis://127.0.0.1:{}/1?prefix=chaos")
    made.away = _refused(made.proxies["store"])


def _firestore(made: Place, stack: ExitStack) -> None:
    port = stack.enter_context(running_emulator(made.home)).port
    _between(made, stack, "store", port, "FIRESTORE_EMULATOR_HOST", "127.0.0.1:{}")
    made.away = _refused(made.proxies["store"])
    for environment in (made.near, made.far):
        environment["CHAOS_STORE"] = "firestore://chaos"


def _between(made: Place, stack: ExitStack, kind: str, port: int, key: str, url: str) -> None:
    made.proxies[kind] = stack.enter_context(Proxy("127.0.0.1", port))
    made.near[key], made.far[key] = url.format(port), url.format(made.proxies[kind].port)


def _refused(proxy: Proxy) -> Callable[[float], None]:
    def away(seconds: float) -> None:
        with proxy.down():
            time.sleep(seconds)

    return away


_BROKERS = {"folders": _folders, "redis": _redis_broker, "rabbitmq": _rabbitmq}
_STORES = {"sqlite": _sqlite, "redis": _redis_store, "firestore": _firestore}


def load(made: Place) -> None:
    """Let this process be the one who judges: ``chaos.app`` reads the environment when it is imported."""
    os.environ.update(made.near)
