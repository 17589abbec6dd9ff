"""A broker and a store that a test empties or takes away. Both belong to the test, or are shared through a proxy."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from amqp.exceptions import NotFound
from kombu import Connection
from postgres_kit import running_postgres
from servers import running_redis

from celery_statemanager.testing import Proxy


@dataclass
class Outages:
    """A broker and a store.

    Attributes:
        home: the folder of logs, notes and files.
        environment: variables of a process that connects directly.
        through_proxies: variables of a process whose connections can be cut.
        broker_away, store_away: contexts in which processes that connect through proxies cannot reach it.
        flush: deletes all messages of the broker; receives the names of the queues.
        restart: restarts the broker without its messages; receives the names of the queues; None for a folder.
    """

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    through_proxies: dict[str, str] = field(default_factory=dict)
    broker_away: Callable[[], AbstractContextManager[None]] | None = None
    store_away: Callable[[], AbstractContextManager[None]] | None = None
    flush: Callable[..., object] | None = None
    restart: Callable[..., object] | None = None

    def set(self, name: str, value: str, through_proxy: str | None = None) -> None:
        self.environment[name], self.through_proxies[name] = value, through_proxy or value


@contextmanager
def outages(
    name: str, home: Path, url_of_rabbitmq: Callable[[], str], emulator: Callable[[], str]
) -> Iterator[Outages]:
    """Yield the broker and the store of a place.

    Args:
        name: both names, such as ``redis-firestore``.
        url_of_rabbitmq: returns the URL of a server, which is shared with other tests.
        emulator: returns the address of a Firestore emulator, which is shared with other tests.
    """
    broker, store = name.split("-")
    with ExitStack() as stack:
        here = Outages(home)
        here.set("TRACKED_HOME", str(home))
        if broker == "folders":
            _folders(here)
        elif broker == "redis":
            _redis(here, stack)
        else:
            _rabbitmq(here, stack, url_of_rabbitmq())
        if store == "sqlite":
            _sqlite(here)
        elif store == "redis":
            address = urlsplit(stack.enter_context(running_redis()).url).netloc
            _proxied_store(here, stack, address, "TRACKED_STORE", f"redis://{{}}/0?prefix={home.name}")
        elif store == "postgres":
            address = f"127.0.0.1:{stack.enter_context(running_postgres()).port}"
            _proxied_store(here, stack, address, "TRACKED_STORE", "postgresql://postgres@{}/postgres")
        else:
            here.set("TRACKED_STORE", f"firestore://{home.name}")
            here.set("TRACKED_STORE_TIMEOUT", "5")
            _proxied_store(here, stack, emulator(), "FIRESTORE_EMULATOR_HOST", "{}")
        yield here


def _folders(here: Outages) -> None:
    here.set("TRACKED_BROKER", "filesystem://")
    queue = here.home / "queue"

    def delete_messages(*_: str) -> None:
        for message in queue.glob("*.msg"):
            message.unlink(missing_ok=True)

    @contextmanager
    def away() -> Iterator[None]:
        hidden = queue.rename(here.home / "hidden")
        yield
        hidden.rename(queue)

    here.flush, here.broker_away = delete_messages, away


def _redis(here: Outages, stack: ExitStack) -> None:
    server = stack.enter_context(running_redis())
    proxy = stack.enter_context(Proxy("127.0.0.1", server.port))
    here.set("TRACKED_BROKER", server.url, server.url.replace(str(server.port), str(proxy.port)))
    here.broker_away = proxy.down
    here.flush = lambda *_: server.client().flushall()

    def restart(*_: str) -> None:
        server.stop(kill=True)
        server.start()

    here.restart = restart


def _rabbitmq(here: Outages, stack: ExitStack, url: str) -> None:
    port = urlsplit(url).port
    proxy = stack.enter_context(Proxy("127.0.0.1", port))
    here.set("TRACKED_BROKER", url, url.replace(str(port), str(proxy.port)))
    here.broker_away = proxy.down

    def flush(*queues: str) -> None:
        with Connection(url) as connection:
            for each in queues:
                connection.default_channel.queue_purge(each)

    def restart(*queues: str) -> None:
        """Delete the queues, as a restart without persistence does, and cut the connections."""
        with proxy.down(), Connection(url) as connection:
            for each in queues:
                with suppress(NotFound), connection.channel() as channel:
                    channel.queue_delete(each)

    here.flush, here.restart = flush, restart


def _sqlite(here: Outages) -> None:
    path = here.home / "states.db"
    here.set("TRACKED_STORE", f"sqlite:///{path}")

    @contextmanager
    def away() -> Iterator[None]:
        connection = sqlite3.connect(path, isolation_level=None, timeout=20)
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
        connection.close()

    here.store_away = away


def _proxied_store(here: Outages, stack: ExitStack, address: str, name: str, text: str) -> None:
    host, port = address.split(":")
    proxy = stack.enter_context(Proxy(host, int(port)))
    here.set(name, text.format(address), text.format(f"127.0.0.1:{proxy.port}"))
    here.store_away = proxy.down
