"""The way to the server: one client, made at the first call; every call's errors translated."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from redis.connection import ConnectionPool
from redis.exceptions import NoScriptError

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.stores.redis.connections import Connections
from celery_statemanager.stores.redis.errors import CLIENT_ERRORS, translate, translated
from celery_statemanager.stores.redis.packing import pack_command, pack_script_call
from celery_statemanager.stores.redis.scripts import Script

_AT_ONCE = 1_000
"""Fields of a hash in one portion."""


class Server:
    """Shared by threads. A forked child makes a client of its own; one that was given notices a fork by itself.

    Scripts have connections of their own, unless somebody said which or how many there shall be: a client that was
    given, ``max_connections``, sentinels, a cluster.

    Args:
        make: gives a redis-py client.
        shown: the server's URL as it may be printed.
    """

    def __init__(self, make: Callable[[], Any], shown: str) -> None:
        self.shown = shown
        self._make = make
        self._client: Any = None
        self._connections: Connections | None = None
        self._inherited: list[Any] = []
        self._owned = True
        self._pid = os.getpid()
        self._lock = threading.Lock()

    @classmethod
    def from_client(cls, client: Any) -> Server:
        """Wrap a client that is somebody else's: it is never closed. Raises: ConfigurationError."""
        if client.get_encoder().decode_responses:
            raise ConfigurationError("a store needs a Redis client that gives bytes: decode_responses=False")
        server = cls(lambda: client, type(client).__name__)
        server._owned = False
        return server

    @property
    def client(self) -> Any:
        """The client; a cluster's is connected when it is made."""
        client = self._client
        if client is None:
            with self._lock:
                if self._client is None:
                    made = self._make()
                    if self._owned and type(getattr(made, "connection_pool", None)) is ConnectionPool:
                        self._connections = Connections(made.connection_pool)
                    self._client = made
                client = self._client
        return client

    @property
    def clustered(self) -> bool:
        """Whether it is a cluster."""
        return hasattr(self.client, "get_node_from_key")

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Run a script in one round trip, two if the server does not remember it."""
        try:
            try:
                return self._send("EVALSHA", script.digest, keys, args)
            except NoScriptError:
                return self._send("EVAL", script.source, keys, args)
        except CLIENT_ERRORS as error:  # not by ``translated``, which takes a while when nothing is wrong
            raise translate(error, self.shown) from error

    def call(self, *command: Any) -> Any:
        """Send one command that names its key second."""
        with translated(self.shown):
            return self.client.execute_command(*command)

    def call_all(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        """Send many commands together, in no transaction; each names one key."""
        with translated(self.shown):
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute())

    def scan(self, key: str, at_once: int = _AT_ONCE) -> Iterator[Iterable[tuple[bytes, bytes]]]:
        """Give a hash's fields and values in portions; a field may come twice.

        The server is at the next portion while the caller is at one.
        """
        client, connections = self.client, self._connections
        with translated(self.shown):
            if connections is None:
                cursor = None
                while cursor != 0:
                    cursor, portion = client.execute_command(*_scanning(key, cursor or 0, at_once))
                    yield portion.items()
                return
            for _, flat in connections.ask_ahead(
                pack_command(*_scanning(key, 0, at_once)),
                lambda reply: None if reply[0] == b"0" else pack_command(*_scanning(key, reply[0], at_once)),
            ):
                yield zip(flat[::2], flat[1::2])

    def time_at(self, key: str) -> int:
        """Give the time of the server that keeps a key, in microseconds."""
        with translated(self.shown):
            client = self.client
            node = self._node_of(key)
            seconds, microseconds = client.time() if node is None else client.time(target_nodes=node)
        return int(seconds) * 1_000_000 + int(microseconds)

    def connection(self, key: str, socket_timeout: float) -> Any:
        """Make a connection of its own to the server that keeps a key; it is connected, and the caller's to close."""
        with translated(self.shown):
            client = self.client
            if self.clustered:
                client.exists(key)  # the client learns so where the key has moved to
            node = self._node_of(key)
            pool = (client if node is None else client.get_redis_connection(node)).connection_pool
            connection = pool.connection_class(**{**pool.connection_kwargs, "socket_timeout": socket_timeout})
            connection.connect()
            return connection

    def close(self) -> None:
        """Close the client; the next call makes another."""
        with self._lock:
            client, self._client = self._client, None
            connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()
        if client is not None and self._owned:
            client.close()

    def before_fork(self) -> None:
        """Wait until no other thread makes the client."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Go on; a child makes a client of its own."""
        if self._owned and os.getpid() != self._pid:
            self._pid = os.getpid()
            self._inherited.append(self._client)  # its locks may be held for ever, and it takes them when it goes
            self._client = self._connections = None
        self._lock.release()

    def _send(self, name: str, script: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        client, connections = self.client, self._connections  # another thread may close the store
        if connections is None:
            return client.execute_command(name, script, len(keys), *keys, *args)
        return connections.ask(pack_script_call(name, script, tuple(keys), args))

    def _node_of(self, key: str) -> Any:
        """Give the cluster node that keeps a key; None for a single server."""
        return self.client.get_node_from_key(key) if self.clustered else None


def _scanning(key: str, cursor: int | bytes, at_once: int) -> tuple[str | bytes | int, ...]:
    return "HSCAN", key, cursor, "COUNT", at_once
