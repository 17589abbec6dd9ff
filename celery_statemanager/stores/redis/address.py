"""What a store's URL says: where its servers are, how to talk to them, and what is the store's own. No connection."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import BlockingConnectionPool, ConnectionPool, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.stores import checked_timeout, masked

_OWN: dict[str, Callable[[str], Any]] = {"prefix": str, "stream_length": int, "timeout": float, "cluster": str}
_REFUSED = {
    "decode_responses": "states are kept as bytes",
    "retry": "the store must know what was sent twice",
    "retry_on_error": "the store must know what was sent twice",
    "retry_on_timeout": "the store must know what was sent twice",
}
_PORTS = {"redis+sentinel": 26379}


@dataclass
class Address:
    """A URL taken apart.

    Attributes:
        own: the store's own options.
        client: redis-py's options.
    """

    scheme: str
    hosts: list[tuple[str, int]]
    path: str
    own: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)

    @property
    def clustered(self) -> bool:
        """Whether it is a cluster."""
        return self.scheme.endswith("+cluster") or str(self.own.get("cluster")).lower() in ("1", "true", "yes")

    @property
    def service(self) -> str:
        """The name by which sentinels know the server."""
        return self.path.strip("/").partition("/")[0] or "mymaster"

    @property
    def database(self) -> str:
        """The database's number, as it was written."""
        path = self.path.strip("/")
        if self.scheme == "redis+unix":
            path = ""
        elif self.scheme == "redis+sentinel":
            path = path.partition("/")[2]
        return path or str(self.client.get("db", 0))


def parse(url: str, timeout: float, options: dict[str, Any]) -> Address:
    """Take a URL and what else was given apart. Raises: ConfigurationError."""
    try:
        address = _parse(url, timeout, options)
        _check(address)
    except ConfigurationError:
        raise
    except (ValueError, TypeError) as error:
        why = str(error)  # what others wrote of a URL may show its password
        known = isinstance(error, _UnusableError) or why.startswith("Invalid value for")
        hint = why if known else "look at its host, port, database and options"
        raise ConfigurationError(f"{masked(url)} cannot be used: {hint}") from None
    return address


class _UnusableError(ValueError):
    """Says what cannot be used of a URL, and nothing secret."""


def _parse(url: str, timeout: float, options: dict[str, Any]) -> Address:
    parts = urlsplit(url)
    own = {name: _own(name, value) for name, value in parse_qsl(parts.query) if name in _OWN}
    own |= {name: options[name] for name in options if name in _OWN}
    own["timeout"] = checked_timeout(own.get("timeout", timeout))
    hosts = _hosts(parts.netloc.rpartition("@")[2], _PORTS.get(parts.scheme, 6379))
    client = {
        "socket_timeout": own["timeout"],
        "socket_connect_timeout": own["timeout"],
        **_client_options(parts, hosts),
        **{name: value for name, value in options.items() if name not in _OWN},
    }
    return Address(parts.scheme, hosts, unquote(parts.path), own, client)


def _own(name: str, value: str) -> Any:
    try:
        return _OWN[name](value)
    except ValueError:
        raise _UnusableError(f"{name} is a number, not {value!r:.60}") from None


def client_of(address: Address) -> Any:
    """Make the client; a cluster's asks its servers at once, any other connects later."""
    options = dict(address.client)
    if address.clustered:
        return _cluster(address, options)
    options["retry"] = _no_retry()
    if address.scheme == "redis+sentinel":
        sentinels: Any = Sentinel(
            address.hosts, **{k: v for k, v in options.items() if k.startswith(("socket_", "ssl"))}
        )
        return sentinels.master_for(address.service, **{**options, "db": int(address.database)})
    pool = BlockingConnectionPool if "max_connections" in options else ConnectionPool
    if pool is BlockingConnectionPool:
        options["timeout"] = options["socket_timeout"]
    return redis.Redis(connection_pool=pool(**options))


def check_options(address: Address) -> None:
    """Refuse options that redis-py does not know, before anything is sent. Raises: ConfigurationError."""
    apart = {"max_connections", *(inspect.signature(RedisCluster).parameters if address.clustered else ())}
    made = {name: value for name, value in address.client.items() if name not in apart}
    kind = made.pop("connection_class", redis.Connection)
    try:
        kind(**made)
    except TypeError as error:
        raise ConfigurationError(f"an option that the Redis client does not take: {error}") from error


def _cluster(address: Address, options: dict[str, Any]) -> Any:
    if options.pop("connection_class", None) is redis.SSLConnection:
        options["ssl"] = True
    if int(redis.__version__.partition(".")[0]) >= 6:
        options["retry"] = _no_retry()
    else:
        options["cluster_error_retry_attempts"] = 0
    for name in ("db", "host", "port"):
        options.pop(name, None)
    return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in address.hosts], **options)


def _no_retry() -> Retry:
    """Send nothing twice: what had no answer may have been done."""
    return Retry(NoBackoff(), 0)


def _client_options(parts: Any, hosts: list[tuple[str, int]]) -> dict[str, Any]:
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name not in _OWN])
    base = {"redis+unix": "unix", "rediss": "rediss", "rediss+cluster": "rediss"}.get(parts.scheme, "redis")
    credentials, at, _ = parts.netloc.rpartition("@")
    place = "" if base == "unix" else f"{hosts[0][0]}:{hosts[0][1]}"
    path = "" if parts.scheme == "redis+sentinel" else parts.path
    return dict(parse_url(f"{base}://{credentials}{at}{place}{path}?{query}"))


def _hosts(netloc: str, default_port: int) -> list[tuple[str, int]]:
    found = []
    for each in netloc.split(","):
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(?::(\d+))?", each)
        if match is None or int(match[2] or 1) not in range(1, 65_536):
            raise _UnusableError("hosts and ports are written like localhost:6379")
        found.append((match[1] or "localhost", int(match[2] or default_port)))
    return found


def _check(address: Address) -> None:
    for name, why in _REFUSED.items():
        if name in address.client:
            raise _UnusableError(f"option {name!r} cannot be set, {why}")
    if re.search(r"[{}\s]", str(address.own.get("prefix", ""))):
        raise _UnusableError("the prefix may not hold braces or blanks")
    db = address.database
    if not db.isdecimal():
        raise _UnusableError("a database is given by its number, like /0")
    if address.clustered and int(db):
        raise _UnusableError("a Redis cluster has only database 0")
