"""Access to the server: one client, created at the first call. The errors of every call are translated."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from redis.cluster import RedisCluster
from redis.connection import ConnectionPool
from redis.exceptions import NoScriptError

from celery_statemanager.errors import ConfigurationError, StoreError, StoreUnavailable
from celery_statemanager.stores.redis.address import UNLIMITED
from celery_statemanager.stores.redis.connections import CallLimit, Connections
from celery_statemanager.stores.redis.errors import CLIENT_ERRORS, ErrorTranslator
from celery_statemanager.stores.redis.packing import pack_command, pack_script_call
from celery_statemanager.stores.redis.scripts import Script

_NO_LIMIT = nullcontext()
_CHUNK = 1_000
"""Fields of a hash in one chunk."""


class Server:
    """A server or cluster, shared by threads. A forked child creates another client, unless it was passed in.

    Scripts use connections outside of the client's pool. The exceptions are clients that were passed in,
    ``max_connections``, sentinels and clusters.

    Args:
        create_client: returns a client of redis-py.
        shown: the server's URL without its password.
        max_connections: the number of connections that calls may use at the same time; further calls wait.
        timeout: seconds for which they wait.
    """

    def __init__(
        self, create_client: Callable[[], Any], shown: str, max_connections: int = UNLIMITED, timeout: float = 5.0
    ) -> None:
        self.shown = shown
        self._errors = ErrorTranslator(shown, self._leave_replica)
        self._limit = CallLimit(max_connections, timeout) if max_connections < UNLIMITED else None
        self._create_client = create_client
        self._client: Any = None
        self._connections: Connections | None = None
        self._inherited: list[Any] = []
        self._owned = True
        self._pid = os.getpid()
        self._lock = threading.Lock()

    @classmethod
    def from_client(cls, client: Any, timeout: float) -> Server:
        """Wrap a client that the caller owns and closes. Raises: ConfigurationError."""
        if client.get_encoder().decode_responses:
            raise ConfigurationError(
                "the Redis client decodes replies, but the store needs bytes: create it with decode_responses=False"
            )
        server = cls(lambda: client, type(client).__name__, _size_of_pools(client), timeout)
        server._owned = False
        return server

    @property
    def client(self) -> Any:
        """The client, created at the first access. A cluster's client then connects."""
        client = self._client
        if client is None:
            with self._lock:
                if self._client is None:
                    created = self._create_client()
                    if self._owned and not self._limit and type(_pool_of(created)) is ConnectionPool:
                        self._connections = Connections(created.connection_pool)
                    self._client = created
                client = self._client
        return client

    @property
    def clustered(self) -> bool:
        """Whether the server is a cluster."""
        return hasattr(self.client, "get_node_from_key")

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Run a script in one round trip, or two if the server has not cached it."""
        try:
            try:
                return self._send("EVALSHA", script.digest, keys, args)
            except NoScriptError:
                return self._send("EVAL", script.source, keys, args)
        except CLIENT_ERRORS as error:  # not ``with self._errors``, which costs time when nothing fails
            raise self._errors.translate(error, script.source) from error

    def call(self, *command: Any) -> Any:
        """Send one command whose first argument is its key."""
        with self._errors, self._limited():
            return self.client.execute_command(*command)

    def call_all(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        """Send many commands together, without a transaction. Each command has one key."""
        with self._errors, self._limited():
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute())

    def scan(self, key: str, chunk: int = _CHUNK) -> Iterator[Iterable[tuple[bytes, bytes]]]:
        """Yield a hash's fields and values in chunks of about this size. Fields may repeat.

        The server prepares the next chunk while the caller processes one.
        """
        client, connections = self.client, self._connections
        with self._errors:
            if connections is None:
                cursor = None
                while cursor != 0:
                    with self._limited():
                        cursor, values = client.execute_command(*_scan_command(key, cursor or 0, chunk))
                    yield values.items()
                return
            for _, flat in connections.ask_ahead(
                pack_command(*_scan_command(key, 0, chunk)),
                lambda reply: None if reply[0] == b"0" else pack_command(*_scan_command(key, reply[0], chunk)),
            ):
                yield zip(flat[::2], flat[1::2])

    def time_at(self, key: str) -> int:
        """Return the time of the server that holds a key, in microseconds."""
        with self._errors, self._limited():
            client = self.client
            node = self._node_of(key)
            seconds, microseconds = client.time() if node is None else client.time(target_nodes=node)
        return int(seconds) * 1_000_000 + int(microseconds)

    def warnings(self) -> list[str]:
        """Return a sentence for each ``maxmemory-policy`` that deletes states."""
        return [
            f"{self.shown} deletes states when its memory is full (maxmemory-policy is {policy}): set it to noeviction"
            for policy in sorted(self.eviction_policies() - {"noeviction"})
        ]

    def eviction_policies(self) -> set[str]:
        """Return the ``maxmemory-policy`` of the server, or of each master of a cluster; empty if it cannot be read."""
        try:
            with self._errors, self._limited():
                if self.clustered:
                    replies = self.client.info("memory", target_nodes=RedisCluster.PRIMARIES)
                    found = replies.values() if "maxmemory_policy" not in replies else [replies]
                else:
                    found = [self.client.info("memory")]
        except StoreUnavailable:
            raise
        except StoreError:  # not permitted, or unknown to this server
            return set()
        return {str(each["maxmemory_policy"]) for each in found if "maxmemory_policy" in each}

    def connection(self, key: str, socket_timeout: float) -> Any:
        """Open a dedicated connection to the server that holds a key. The caller closes it."""
        with self._errors:
            client = self.client
            if self.clustered:
                with self._limited():
                    client.exists(key)  # updates the client's map of slots if the key has moved
            node = self._node_of(key)
            pool = (client if node is None else client.get_redis_connection(node)).connection_pool
            connection = pool.connection_class(**{**pool.connection_kwargs, "socket_timeout": socket_timeout})
            connection.connect()
            return connection

    def close(self) -> None:
        """Close the client; the next call creates another."""
        with self._lock:
            client, self._client = self._client, None
            connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()
        if client is not None and self._owned:
            client.close()

    def before_fork(self) -> None:
        """Wait until no other thread is creating the client."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Release the lock. In a child, drop the parent's client and the calls of its other threads."""
        if os.getpid() != self._pid and self._limit:
            self._limit = self._limit.renewed()
        if self._owned and os.getpid() != self._pid:
            self._pid = os.getpid()
            self._inherited.append(self._client)  # its finalizer would take locks that may be held at the fork
            self._client = self._connections = None
        self._lock.release()

    def _send(self, name: str, script: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        client, connections = self.client, self._connections  # both at once: another thread may close the store
        if connections is None:
            with self._limited():
                return client.execute_command(name, script, len(keys), *keys, *args)
        return connections.ask(pack_script_call(name, script, tuple(keys), args))

    def _leave_replica(self) -> None:
        """Close idle connections, because their server has become a replica. New ones find the master by its name."""
        connections, pool = self._connections, _pool_of(self._client)
        if connections is not None:
            connections.close_idle()
        if pool is not None and self._owned:
            pool.disconnect(inuse_connections=False)

    def _limited(self) -> AbstractContextManager[None]:
        return self._limit or _NO_LIMIT

    def _node_of(self, key: str) -> Any:
        """Return the cluster node that holds a key, or None for a single server."""
        return self.client.get_node_from_key(key) if self.clustered else None


def _pool_of(client: Any) -> Any:
    """Return the client's pool; None for a cluster."""
    return getattr(client, "connection_pool", None)


def _size_of_pools(client: Any) -> int:
    """Return the number of connections that each pool of a client may have."""
    nodes = client.get_nodes() if hasattr(client, "get_nodes") else ()
    pools = [_pool_of(client), *(_pool_of(node.redis_connection) for node in nodes)]
    return min((getattr(pool, "max_connections", UNLIMITED) for pool in pools if pool is not None), default=UNLIMITED)


def _scan_command(key: str, cursor: int | bytes, chunk: int) -> tuple[str | bytes | int, ...]:
    return "HSCAN", key, cursor, "COUNT", chunk
