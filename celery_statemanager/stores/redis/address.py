"""Parsing of a store's URL into servers, options of the client and options of the store. Nothing connects."""

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
from redis.connection import ConnectionPool, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.stores import checked_timeout, masked

_OWN: dict[str, Callable[[str], Any]] = {
    "prefix": str,
    "stream_length": int,
    "timeout": float,
    "cluster": str,
    "sentinel_username": str,
    "sentinel_password": str,
}
UNLIMITED = 2**31
"""A number of connections that is never reached. Pools of redis-py 8 have at most 100 unless another one is given."""
_REFUSED = {
    "decode_responses": "the store needs replies as bytes",
    "retry": "only the store may send a command again",
    "retry_on_error": "only the store may send a command again",
    "retry_on_timeout": "only the store may send a command again",
}
_PROTOCOL = 2
"""The version of the server's protocol. Some releases of redis-py use 3, which old servers and some proxies refuse."""
_PORTS = {"redis+sentinel": 26379}


@dataclass
class RedisAddress:
    """A parsed URL.

    Attributes:
        own: options of the store.
        client: options of redis-py.
    """

    scheme: str
    hosts: list[tuple[str, int]]
    path: str
    own: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)

    @property
    def clustered(self) -> bool:
        """Whether the URL names a cluster."""
        return self.scheme.endswith("+cluster") or str(self.own.get("cluster")).lower() in ("1", "true", "yes")

    @property
    def max_connections(self) -> int:
        """The number of connections that calls may use at the same time."""
        return self.client.get("max_connections") or UNLIMITED

    @property
    def service(self) -> str:
        """The service name under which the sentinels monitor the server."""
        return self.path.strip("/").partition("/")[0] or "mymaster"

    @property
    def database(self) -> str:
        """The database's number as text, unchecked."""
        path = self.path.strip("/")
        if self.scheme == "redis+unix":
            path = ""
        elif self.scheme == "redis+sentinel":
            path = path.partition("/")[2]
        return path or str(self.client.get("db", 0))


def parse(url: str, timeout: float, options: dict[str, Any]) -> RedisAddress:
    """Parse a URL and merge the options given beside it. Raises: ConfigurationError."""
    try:
        address = _parse(url, timeout, options)
        _check(address)
    except ConfigurationError:
        raise
    except (ValueError, TypeError) as error:
        text = str(error)
        is_safe = isinstance(error, _UnusableError) or text.startswith("Invalid value for")
        hint = text if is_safe else "check its host, port, database and options"  # other texts may show the password
        raise ConfigurationError(f"{masked(url)} cannot be used: {hint}") from None
    return address


class _UnusableError(ValueError):
    """A part of a URL cannot be used. The message contains nothing secret."""


def _parse(url: str, timeout: float, options: dict[str, Any]) -> RedisAddress:
    parts = urlsplit(url)
    own = {name: _convert_own(name, value) for name, value in parse_qsl(parts.query) if name in _OWN}
    own |= {name: options[name] for name in options if name in _OWN}
    own["timeout"] = checked_timeout(own.get("timeout", timeout))
    hosts = _hosts(parts.netloc.rpartition("@")[2], _PORTS.get(parts.scheme, 6379))
    client = {
        "socket_timeout": own["timeout"],
        "socket_connect_timeout": own["timeout"],
        "protocol": _PROTOCOL,
        **_client_options(parts, hosts),
        **{name: value for name, value in options.items() if name not in _OWN},
    }
    return RedisAddress(parts.scheme, hosts, unquote(parts.path), own, client)


def _convert_own(name: str, value: str) -> Any:
    try:
        return _OWN[name](value)
    except ValueError:
        raise _UnusableError(f"{name} must be a number, not {value!r:.60}") from None


def create_client(address: RedisAddress) -> Any:
    """Create the client. A cluster's client connects at once, any other at its first command.

    Its pools have no limit, because they would raise at once: ``Server`` limits the calls instead.
    """
    options = {**address.client, "max_connections": UNLIMITED}
    if address.clustered:
        return _cluster(address, options)
    options["retry"] = _no_retry()
    if address.scheme == "redis+sentinel":
        shared = {name: value for name, value in options.items() if name.startswith("socket_")}
        login = {name: address.own.get(f"sentinel_{name}") for name in ("username", "password")}
        sentinels: Any = Sentinel(address.hosts, sentinel_kwargs={**shared, **login, "protocol": _PROTOCOL})
        return sentinels.master_for(address.service, **{**options, "db": int(address.database)})
    return redis.Redis(connection_pool=ConnectionPool(**options))


def check_options(address: RedisAddress) -> None:
    """Check, without connecting, that redis-py accepts the client's options. Raises: ConfigurationError."""
    not_of_connections = {"max_connections", *(inspect.signature(RedisCluster).parameters if address.clustered else ())}
    options = {name: value for name, value in address.client.items() if name not in not_of_connections}
    connection_class = options.pop("connection_class", redis.Connection)
    try:
        connection_class(**options)
    except TypeError as error:
        raise ConfigurationError(f"the Redis client does not accept an option of the URL: {error}") from error


def _cluster(address: RedisAddress, options: dict[str, Any]) -> Any:
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
    """Disable redis-py's retries: a command without a reply may have been executed."""
    return Retry(NoBackoff(), 0)


def _client_options(parts: Any, hosts: list[tuple[str, int]]) -> dict[str, Any]:
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name not in _OWN])
    base = {"redis+unix": "unix", "rediss": "rediss", "rediss+cluster": "rediss"}.get(parts.scheme, "redis")
    credentials, at, _ = parts.netloc.rpartition("@")
    host = "" if base == "unix" else f"{hosts[0][0]}:{hosts[0][1]}"
    path = "" if parts.scheme == "redis+sentinel" else parts.path
    return dict(parse_url(f"{base}://{credentials}{at}{host}{path}?{query}"))


def _hosts(netloc: str, default_port: int) -> list[tuple[str, int]]:
    hosts = []
    for each in netloc.split(","):
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(?::(\d+))?", each)
        if match is None or int(match[2] or 1) not in range(1, 65_536):
            raise _UnusableError("hosts and ports must have the form localhost:6379")
        hosts.append((match[1] or "localhost", int(match[2] or default_port)))
    return hosts


def _check(address: RedisAddress) -> None:
    for name, reason in _REFUSED.items():
        if name in address.client:
            raise _UnusableError(f"option {name!r} cannot be set, because {reason}")
    limit = address.client.get("max_connections", UNLIMITED)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise _UnusableError("max_connections must be a number of connections, or 0 for no limit")
    if re.search(r"[{}\s]", str(address.own.get("prefix", ""))):
        raise _UnusableError("the prefix may not contain braces or white space")
    db = address.database
    if not db.isdecimal():
        raise _UnusableError("the database must be a number, such as /0")
    if address.clustered and int(db):
        raise _UnusableError("a Redis cluster has only database 0")
