"""Translation of redis-py's errors into ``StoreError`` and ``StoreUnavailable``, with a hint on what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from redis import exceptions

from celery_statemanager.errors import StoreError, StoreUnavailable

CLIENT_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError)

NEVER, PASSES = StoreError, StoreUnavailable
"""Distinguish errors that need a correction from errors that pass, for example when the server recovers."""


class _Rule(NamedTuple):
    """A kind of error.

    Attributes:
        pattern: matches ``"ClassName: text"`` of an error of redis-py. Its classes replace some of the server's codes.
        raised: ``NEVER`` or ``PASSES``.
        hint: what is wrong, after the server's URL, and what to do.
    """

    pattern: str
    raised: type[StoreError]
    hint: str


_LOGIN = (
    r"^(MasterNotFoundError.*)?AuthenticationError|^AuthenticationWrongNumberOfArgsError|NOAUTH|WRONGPASS|"
    r"unauthenticated (multi)?bulk|invalid username-password|invalid password|Authentication required|"
    r"HELLO must be called with"
)
_REPLICA = r"^ReadOnlyError|READONLY|previous master is now a"
_EVICTED = r"statemanager:evicted (.*?)(,| script:|$)"
_EVICTED_HINT = (
    "has evicted or lost a key of this job, so its states are incomplete: set its maxmemory-policy to noeviction, and "
    "submit the job again"
)
_RULES = (
    # The first one that matches applies. Those that look at more than the beginning of the text come last.
    _Rule(
        _LOGIN, NEVER, "refused the user name or password: correct them in the URL (of sentinels: sentinel_password)"
    ),
    _Rule(
        r"^AuthorizationError|^NoPermissionError|NOPERM|user executing the script can't",
        NEVER,
        "does not permit the user a required command: allow EVALSHA, EVAL, TIME and those on hashes, sets, sorted "
        "sets, bitmaps and streams",
    ),
    _Rule(
        r"DENIED Redis is running in protected mode",
        NEVER,
        "accepts only clients on its own machine: set a password on the server, or its options bind and protected-mode",
    ),
    _Rule(
        r"unknown command .?HELLO|NOPROTO|unsupported protocol version",
        NEVER,
        "does not support version 3 of the protocol: use protocol=2 (the default of a URL), or Redis 6 or newer",
    ),
    _Rule(
        r"unknown command .?SENTINEL",
        NEVER,
        "is not a sentinel: list hosts and ports of the sentinels, or use redis:// without sentinels",
    ),
    _Rule(
        r"(unknown|unsupported) (sub|redis )?command|attempt to index global 'cmsgpack'",
        NEVER,
        "does not support a required command: use Redis 5 or newer with EVAL and streams enabled",
    ),
    _Rule(
        r"SELECT is not allowed in cluster",
        NEVER,
        "is part of a cluster, which has only database 0: use redis+cluster:// without a database "
        "(rediss+cluster:// for TLS)",
    ),
    _Rule(
        r"^(Moved|Ask|ClusterCrossSlot)Error|: (MOVED|ASK) \d|CROSSSLOT",
        NEVER,
        "is part of a cluster: use redis+cluster:// or ?cluster=true (rediss+cluster:// for TLS)",
    ),
    _Rule(
        r"Cluster mode is not enabled|cluster support disabled",
        NEVER,
        "is not part of a cluster: use redis://, or remove cluster from the URL",
    ),
    _Rule(r"DB index|invalid DB", NEVER, "has no database with this number: change the number in the URL"),
    _Rule(r"WRONGTYPE", NEVER, "holds other data under this prefix: choose another prefix with ?prefix="),
    _Rule(
        r"^InvalidResponse|Protocol Error",
        NEVER,
        "is not a Redis server, or expects TLS: check host and port, or use rediss://",
    ),
    _Rule(
        r"unix socket.*Permission denied", NEVER, "does not let this user connect: change the socket's mode or group"
    ),
    _Rule(
        r"^OutOfMemoryError|\bOOM\b|\bout of memory\b",
        PASSES,
        "is full, nothing was written: increase its maxmemory or delete jobs",
    ),
    _Rule(r"MISCONF", PASSES, "refuses writes because it cannot save to its disk: check the disk and its log"),
    _Rule(
        _REPLICA,
        PASSES,
        "is a read-only replica: wait for the failover, or connect to the master",
    ),
    _Rule(
        r"NOREPLICAS",
        PASSES,
        "refuses writes while fewer replicas are connected than min-replicas-to-write: check the replicas",
    ),
    _Rule(r"^BusyLoadingError|LOADING", PASSES, "is loading its data: wait"),
    _Rule(r"^MasterDownError|MASTERDOWN", PASSES, "is a replica that lost its master: wait, or connect to the master"),
    _Rule(
        r"\bBUSY\b|Script killed",
        PASSES,
        "is busy with a script of another client: find it with SLOWLOG GET on the server",
    ),
    _Rule(
        r"^(ClusterDown|SlotNotCovered|TryAgain|Cluster)Error|CLUSTERDOWN|TRYAGAIN|not all slots are covered",
        PASSES,
        "does not serve all slots of the cluster: check it with CLUSTER INFO",
    ),
    _Rule(
        r"max number of clients|max concurrent connections",
        PASSES,
        "has no room for another client: increase its maxclients, or set max_connections in the URL",
    ),
    _Rule(
        r"^MaxConnectionsError|Too many connections|No connection available",
        PASSES,
        "cannot be called, because all connections of the client are in use: increase its max_connections",
    ),
    _Rule(
        r"^MasterNotFoundError",
        PASSES,
        "has sentinels that do not answer or do not know a master: check them, and the name of the service in the URL",
    ),
    _Rule(
        r"EOF occurred in violation|handshake operation timed out",
        PASSES,
        "did not complete the TLS handshake: check its log, or use redis:// for a server without TLS",
    ),
    _Rule(
        r"certificate|\bSSL\b|\bTLS\b",
        NEVER,
        "failed the TLS handshake: check the certificates, or use redis:// for a server without TLS",
    ),
    _Rule(
        r"UNBLOCKED|no upstream host|upstream (failure|disconnected)|server is unavailable",
        PASSES,
        "cannot be reached or does not answer",
    ),
)

_UNREACHABLE = _RULES[-1]
"""The rule of all other errors of these classes."""
_CONNECTION_ERRORS = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.RedisClusterException, OSError)

_SECRETS = re.compile(r",? with args beginning with.*|<redis\.client\.Redis\(.*?\)> - ", re.DOTALL)
"""Parts of a text that may contain a password: arguments of a call, and clients of sentinels as text."""

_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
"""The part of redis-py's text that repeats a command, which may contain names of jobs and tags."""

_SCRIPT_LINE = re.compile(r"command.*@user_script:\s*(\d+)")
_SCRIPT_CALL = re.compile(r'redis\.call\(\s*"(\w+)"')


class ErrorTranslator:
    """A context manager that raises redis-py's errors as ``StoreError`` or ``StoreUnavailable``.

    Args:
        shown: the server's URL without its password.
        leave_replica: called when the server turns out to be a replica, to which no connection may stay open.
    """

    def __init__(self, shown: str, leave_replica: Callable[[], object]) -> None:
        self._shown = shown
        self._leave_replica = leave_replica

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CLIENT_ERRORS):
            raise self.translate(error) from error

    def translate(self, error: Exception, source: str = "") -> StoreError:
        """Create the store's exception for an error; see ``translate``."""
        if re.search(_REPLICA, _subject(error, str(error))):
            self._leave_replica()
        return translate(error, self._shown, source)


def translate(error: Exception, shown: str, source: str = "") -> StoreError:
    """Create the store's exception for an error of redis-py. Removes secrets from the error itself.

    Args:
        source: the script that was run.
    """
    text = str(error)
    if _SECRETS.search(text):
        text = _SECRETS.sub("", text)
        error.args = (text,)
    text = _PIPELINE.sub("", text)
    gone = re.search(_EVICTED, text)
    if gone:
        return evicted(gone[1], shown)
    rule = _rule_of(error, text)
    line = (text.strip() or type(error).__name__).splitlines()[0][:300] + _command_of(text, source)
    if rule is None:
        return StoreError(f"{shown} refused a call ({line})")
    return rule.raised(f"{shown} {rule.hint} ({line})")


def evicted(key: str, shown: str) -> StoreError:
    """Create the exception for a key that must exist but does not."""
    return StoreError(f"{shown} {_EVICTED_HINT} ({key[:200]})")


def _rule_of(error: Exception, text: str) -> _Rule | None:
    subject = _subject(error, text)
    rule = next((each for each in _RULES if re.search(each.pattern, subject, re.IGNORECASE)), None)
    if rule is None and isinstance(error, _CONNECTION_ERRORS):
        return _UNREACHABLE
    return rule


def _subject(error: Exception, text: str) -> str:
    """Return what the patterns of rules are matched against."""
    if isinstance(error, exceptions.TimeoutError):
        text += f" ({error.__context__})"  # names the handshake, which redis-py's text does not
    return f"{type(error).__name__}: {text}"


def _command_of(text: str, source: str) -> str:
    """Return the command that failed inside a script, if the server's text names its line."""
    line = _SCRIPT_LINE.search(text)
    if line is None or not source:
        return ""
    command = _SCRIPT_CALL.search("\n".join(source.splitlines()[int(line[1]) - 1 :]))
    return f" {command[1]}" if command else ""
