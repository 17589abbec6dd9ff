"""Translation of redis-py's errors into ``StoreError`` and ``StoreUnavailable``, with a hint on what to do."""

from __future__ import annotations

import re

from redis import exceptions

from celery_statemanager.errors import StoreError, StoreUnavailable

CLIENT_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError)

_REFUSALS = {
    "OOM": "is full, nothing was written: increase its maxmemory or delete jobs",
    "PASSWORD": "refused the user name or password: correct them in the URL",
    "NOPERM": "does not permit the user a required command: allow EVALSHA, EVAL and those on hashes, sets and streams",
    "WRONGTYPE": "holds other data under this prefix: choose another prefix with ?prefix=",
    "SENTINEL": "is not a sentinel: list hosts and ports of the sentinels, or use redis:// without sentinels",
    "UNKNOWN": "does not support a required command: use Redis 5 or newer with EVAL and streams enabled",
    "DATABASE": "has no database of this number: change the number in the URL",
    "FOREIGN": "is not a Redis server, or expects TLS: check host and port, or use rediss://",
    "CLUSTERED": "is part of a cluster: use redis+cluster:// or ?cluster=true",
    "SINGLE": "is not part of a cluster: remove cluster from the URL",
    "TLS": "failed the TLS handshake: check the certificates, or use redis:// for a server without TLS",
    "MISCONF": "refuses writes because it cannot save to its disk: check the disk and the server's log",
}

_CLASSES: dict[type[Exception], str] = {
    exceptions.OutOfMemoryError: "OOM",
    exceptions.AuthenticationError: "PASSWORD",
    exceptions.AuthenticationWrongNumberOfArgsError: "PASSWORD",
    exceptions.AuthorizationError: "NOPERM",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.InvalidResponse: "FOREIGN",
}

_TEXTS = (
    (r"\bOOM\b", "OOM"),
    (r"NOAUTH|WRONGPASS|invalid username-password|invalid password|Authentication required", "PASSWORD"),
    (r"NOPERM", "NOPERM"),
    (r"WRONGTYPE", "WRONGTYPE"),
    (r"unknown command .?SENTINEL", "SENTINEL"),
    (r"unknown command|Unknown Redis command|attempt to index global 'cmsgpack'", "UNKNOWN"),
    (r"DB index|invalid DB|SELECT is not allowed in cluster", "DATABASE"),
    (r"Protocol Error", "FOREIGN"),
    (r"Cluster mode is not enabled|cluster support disabled", "SINGLE"),
    (r"certificate|SSL|TLS", "TLS"),
    (r"MISCONF", "MISCONF"),
    (r"^(MOVED|ASK) \d", "CLUSTERED"),
)

_TRANSIENT = re.compile(r"READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|\bBUSY\b|UNBLOCKED")

_UNAVAILABLE: tuple[type[Exception], ...] = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.ClusterError,
    exceptions.TryAgainError,
    exceptions.RedisClusterException,
    OSError,
)


class translate_errors:  # noqa: N801 - used like a function
    """A context manager that raises redis-py's errors as ``StoreError`` or ``StoreUnavailable``.

    Args:
        shown: the server's URL without its password.
    """

    __slots__ = ("_shown",)

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CLIENT_ERRORS):
            raise translate(error, self._shown) from error


def translate(error: Exception, shown: str) -> StoreError:
    """Create the store's exception for an error of redis-py."""
    code = _code(error)
    if code is not None:
        return StoreError(f"{shown} {_REFUSALS[code]} ({_first_line(error)})")
    if isinstance(error, _UNAVAILABLE) or _TRANSIENT.search(str(error)):
        return StoreUnavailable(f"{shown} cannot be reached or does not answer ({_first_line(error)})")
    return StoreError(f"{shown} refused a call ({_first_line(error)})")


def _code(error: Exception) -> str | None:
    for kind, code in _CLASSES.items():
        if isinstance(error, kind):
            return code
    if isinstance(error, exceptions.AskError):
        return "CLUSTERED"
    return next((code for pattern, code in _TEXTS if re.search(pattern, str(error))), None)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
