"""Real brokers and stores, each behind a proxy if clients connect to it by TCP."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from amqp.exceptions import NotFound
from emulator import running as running_emulator
from kombu import Connection
from postgres_kit import running_postgres
from rabbitmq import running_rabbitmq
from redis import Redis
from servers import RedisServer, running_redis

from celery_statemanager.testing import Proxy
from chaos import cluster

NAMES = ("folders-sqlite", "redis-redis", "rabbitmq-redis", "redis-postgres", "redis-cluster", "redis-firestore")


@dataclass
class Place:
    """A broker and a store.

    Attributes:
        home: the folder of logs and notes.
        own_environment: environment variables of this process, which connects directly.
        worker_environment: environment variables of the workers, whose connections pass through the proxies.
        proxies: the proxies of ``broker`` and ``store``, if any.
        make_unavailable: makes the store unavailable for a number of seconds; None for a cluster.
        flush: deletes all messages of the broker.
        own_faults: faults that only this place has; each takes a random number.
        servers: process ids of the servers, by name.
        gauges: each returns sizes that must not grow while jobs come and go, by name.
    """

    home: Path
    own_environment: dict[str, str]
    worker_environment: dict[str, str]
    proxies: dict[str, Proxy] = field(default_factory=dict)
    make_unavailable: Callable[[float], None] | None = None
    flush: Callable[[], object] = lambda: None
    own_faults: dict[str, Callable[[int], object]] = field(default_factory=dict)
    servers: dict[str, int] = field(default_factory=dict)
    gauges: list[Callable[[], dict[str, int]]] = field(default_factory=list)

    def set(self, name: str, value: str) -> None:
        """Set a variable in both environments."""
        self.own_environment[name] = self.worker_environment[name] = value


@contextmanager
def running_place(name: str, keep: Path | None = None) -> Iterator[Place]:
    """Start the servers of a place.

    Args:
        name: the broker and the store, such as ``redis-firestore``.
        keep: the folder of logs and notes; None for a temporary one.
    """
    broker, store = name.split("-")
    with ExitStack() as stack:
        home = keep or Path(stack.enter_context(tempfile.TemporaryDirectory("", "chaos-", ignore_cleanup_errors=True)))
        home.mkdir(parents=True, exist_ok=True)
        own, workers = ({"CHAOS_HOME": str(home), "CHAOS_TIMEOUT": seconds} for seconds in ("20", "2"))
        place = Place(home, own, workers)
        _BROKERS[broker](place, stack)
        _STORES[store](place, stack)
        yield place


def _folders(place: Place, stack: ExitStack) -> None:
    place.set("CHAOS_BROKER", "filesystem://")

    def delete_messages() -> None:
        for message in place.home.glob("**/*.msg"):
            message.unlink(missing_ok=True)

    place.flush = delete_messages


def _sqlite(place: Place, stack: ExitStack) -> None:
    place.set("CHAOS_STORE", f"sqlite:///{place.home}/states.db")

    def lock(seconds: float) -> None:
        connection = sqlite3.connect(place.home / "states.db", isolation_level=None, timeout=20)
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
        connection.close()

    place.make_unavailable = lock


def _redis_broker(place: Place, stack: ExitStack) -> None:
    server = stack.enter_context(running_redis())
    _add_proxy(place, stack, "broker", server.port, "CHAOS_BROKER", "redis://127.0.0.1:{}/0")
    place.flush = Redis.from_url(server.url).flushall
    _measure_redis(place, "broker", server)


def _rabbitmq(place: Place, stack: ExitStack) -> None:
    url = stack.enter_context(running_rabbitmq())
    port = int(url.rpartition(":")[2].partition("/")[0])
    _add_proxy(place, stack, "broker", port, "CHAOS_BROKER", url.replace(str(port), "{}"))

    def purge() -> None:
        with Connection(url) as connection, suppress(NotFound):
            connection.default_channel.queue_purge("chaos")

    place.flush = purge


def _redis_store(place: Place, stack: ExitStack) -> None:
    server = stack.enter_context(running_redis())
    _add_proxy(place, stack, "store", server.port, "CHAOS_STORE", "redis://127.0.0.1:{}/1?prefix=chaos")
    place.make_unavailable = _refuse_connections(place.proxies["store"])
    _measure_redis(place, "store", server)


def _measure_redis(place: Place, name: str, server: RedisServer) -> None:
    assert server.process is not None
    place.servers[name] = server.process.pid
    client = server.client()

    def sizes() -> dict[str, int]:
        keys = sum(each["keys"] for each in client.info("keyspace").values())
        return {f"{name}: keys": keys, f"{name}: connections": client.info("clients")["connected_clients"]}

    place.gauges.append(sizes)


def _postgres(place: Place, stack: ExitStack) -> None:
    server = stack.enter_context(running_postgres())
    url = "postgresql://postgres@127.0.0.1:{}/postgres?prefix=chaos"
    _add_proxy(place, stack, "store", server.port, "CHAOS_STORE", url)
    place.make_unavailable = _refuse_connections(place.proxies["store"])
    assert server.process is not None
    place.servers["store"] = server.process.pid

    def sizes() -> dict[str, int]:
        tables = [name for (name,) in server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        rows = sum(server.execute(f'SELECT count(*) FROM "{table}"')[0][0] for table in tables)
        sessions = server.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        return {"store: rows": rows, "store: connections": sessions[0][0]}

    place.gauges.append(sizes)


def _cluster(place: Place, stack: ExitStack) -> None:
    started = stack.enter_context(cluster.running())
    place.set("CHAOS_STORE", f"redis+cluster://127.0.0.1:{started.port}?prefix=chaos")
    place.own_faults = {"fail over": started.fail_over, "move slots": started.move_slots}


def _firestore(place: Place, stack: ExitStack) -> None:
    port = stack.enter_context(running_emulator(place.home)).port
    _add_proxy(place, stack, "store", port, "FIRESTORE_EMULATOR_HOST", "127.0.0.1:{}")
    place.make_unavailable = _refuse_connections(place.proxies["store"])
    place.set("CHAOS_STORE", "firestore://chaos")


def _add_proxy(place: Place, stack: ExitStack, kind: str, port: int, key: str, url: str) -> None:
    place.proxies[kind] = stack.enter_context(Proxy("127.0.0.1", port))
    place.own_environment[key], place.worker_environment[key] = url.format(port), url.format(place.proxies[kind].port)


def _refuse_connections(proxy: Proxy) -> Callable[[float], None]:
    def refuse(seconds: float) -> None:
        with proxy.down():
            time.sleep(seconds)

    return refuse


_BROKERS = {"folders": _folders, "redis": _redis_broker, "rabbitmq": _rabbitmq}
_STORES = {
    "sqlite": _sqlite,
    "redis": _redis_store,
    "cluster": _cluster,
    "postgres": _postgres,
    "firestore": _firestore,
}


def load_environment(place: Place) -> None:
    """Set the environment variables that ``chaos.app`` reads when it is imported."""
    os.environ.update(place.own_environment)
