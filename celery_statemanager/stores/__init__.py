"""The stores of states. ``open_store`` creates the store that a URL names."""

from __future__ import annotations

import importlib
import math
import re
from typing import Any

from celery_statemanager.errors import ConfigurationError, install_hint
from celery_statemanager.stores.base import Store, Watch
from celery_statemanager.stores.capabilities import FullStore, Migratable, Outbox, WorkerRegistry

__all__ = [
    "FullStore",
    "Migratable",
    "Store",
    "Watch",
    "Outbox",
    "WorkerRegistry",
    "checked_timeout",
    "masked",
    "open_store",
]

SCHEMES = {
    "django": "celery_statemanager.contrib.django.store:DjangoStore",
    "firestore": "celery_statemanager.stores.firestore:FirestoreStore",
    "memory": "celery_statemanager.stores.memory:MemoryStore",
    "sqlite": "celery_statemanager.stores.sqlite:SQLiteStore",
    "redis": "celery_statemanager.stores.redis:RedisStore",
    "rediss": "celery_statemanager.stores.redis:RedisStore",
    "redis+unix": "celery_statemanager.stores.redis:RedisStore",
    "redis+cluster": "celery_statemanager.stores.redis:RedisStore",
    "rediss+cluster": "celery_statemanager.stores.redis:RedisStore",
    "redis+sentinel": "celery_statemanager.stores.redis:RedisStore",
    "postgres": "celery_statemanager.stores.postgres:PostgresStore",
    "postgresql": "celery_statemanager.stores.postgres:PostgresStore",
}
"""URL scheme → ``module:Class``. Plugins add schemes by the entry point group ``celery_statemanager.stores``."""

EXTRAS = {
    "django": "django",
    "firestore": "firestore",
    "postgres": "postgres",
    "postgresql": "postgres",
    **{scheme: "redis" for scheme in SCHEMES if scheme.startswith("redis")},
}
"""URL scheme → the extra that installs the required client library."""

MAX_TIMEOUT = 3_600.0
"""Seconds; longer timeouts of a store are reduced to this one."""


def open_store(url: str, *, timeout: float = 5.0, **options: Any) -> FullStore:
    """Return the store that a URL names. Modules of other stores are not imported.

    Args:
        url: ``memory://``, ``memory://name``, ``sqlite:///relative/path.db``, ``sqlite:////absolute/path.db``,
            ``redis://host:6379/0``, ``postgresql://user@host/database``,
            ``firestore://project/collection?database=id``, ``django://alias``; docs/stores.md lists all.
        timeout: seconds after which a call raises ``StoreUnavailable``.
        options: passed to the store, which refuses unknown ones.

    Raises: ConfigurationError.
    """
    if not isinstance(url, str) or not re.match(r"[A-Za-z][A-Za-z0-9+.\-]*://", url):
        raise ConfigurationError(
            f"{masked(str(url))!r} is not the URL of a store; use a URL like 'sqlite:///states.db' or 'memory://'"
        )
    scheme = url.partition("://")[0].lower()
    seconds = checked_timeout(timeout)
    try:
        return _store_class(scheme, url).from_url(url, timeout=seconds, **options)
    except TypeError as error:
        raise ConfigurationError(f"cannot open {masked(url)}: {error}") from error


def checked_timeout(timeout: Any) -> float:
    """Return a store's timeout in seconds, at most ``MAX_TIMEOUT``. Raises: ConfigurationError."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < math.inf:
        raise ConfigurationError(f"a store's timeout must be a number of seconds, not {timeout!r:.60}")
    return float(min(timeout, MAX_TIMEOUT))


def masked(url: str) -> str:
    """Replace the password of a URL, and the values of options that may be secret, by asterisks."""
    # up to the last @: a password may contain one
    shown = re.sub(r"((?:^(?!\w[\w+.\-]*://)|//)[^/@:]*):.*@", r"\1:**@", url)
    return re.sub(r"(?i)([?&][^=&]*(?:password|secret|token|key)[^=&]*)=[^&]*", r"\1=**", shown)


def _store_class(scheme: str, url: str) -> type[FullStore]:
    if scheme in SCHEMES:
        return _load(scheme, url)
    from importlib.metadata import entry_points  # importing it takes as long as importing the rest of the package

    plugins = {point.name: point for point in entry_points(group="celery_statemanager.stores")}
    if scheme in plugins:
        return _with_all_capabilities(plugins[scheme].load(), url)
    import difflib

    known = sorted({*SCHEMES, *plugins})
    near = difflib.get_close_matches(scheme, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(f"no store for scheme {scheme!r} in {masked(url)} (known: {', '.join(known)}){hint}")


def _with_all_capabilities(store_class: type[Store], url: str) -> type[FullStore]:
    if issubclass(store_class, FullStore):
        return store_class
    lacking = [each.__name__ for each in (WorkerRegistry, Outbox, Migratable) if not issubclass(store_class, each)]
    raise ConfigurationError(
        f"cannot open {masked(url)}: {store_class.__module__}.{store_class.__qualname__} is not a FullStore"
        f"{' (it lacks ' + ' and '.join(lacking) + ')' if lacking else ''}, which workers and commands need; derive it "
        "from celery_statemanager.stores.FullStore, or create it yourself and pass it to Manager"
    )


def _load(scheme: str, url: str) -> type[FullStore]:
    module, _, name = SCHEMES[scheme].partition(":")
    try:
        store_class: type[FullStore] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        if scheme not in EXTRAS:
            raise
        hint = install_hint(EXTRAS[scheme])
        raise ConfigurationError(f"{masked(url)} needs a client library ({error}): {hint}") from error
    return store_class
