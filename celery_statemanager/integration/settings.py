"""The ``statemanager_*`` keys of ``app.conf``, read once and checked."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import lru_cache
from typing import Any

from celery import Celery
from celery.schedules import BaseSchedule

from celery_statemanager.errors import ConfigurationError
from celery_statemanager.limits import MAX_BODY_BYTES, MAX_RESULT_BYTES, MAX_STATE_BYTES, MAX_VALUE_BYTES
from celery_statemanager.migrations import STEPS
from celery_statemanager.retention import Ages

logger = logging.getLogger(__name__)

PREFIX = "statemanager_"
SHORTEST_SECRET = 16
POLICIES = ("auto", "mark", "requeue")

_of_framework: dict[str, Callable[[], Any]] = {}


def set_default(name: str, compute: Callable[[], Any]) -> None:
    """Set a default of a setting for the apps of this process. It is computed when an app reads its settings.

    The packages for frameworks call this at their start.
    """
    _of_framework[name] = compute


@dataclass(frozen=True)
class Settings:
    """The settings of an app; with ``namespace="CELERY"`` the keys are ``CELERY_STATEMANAGER_…``.

    Attributes:
        store_url: the store's URL; a relative SQLite path is resolved in each process's working directory, so workers
            and submitters must use the same one.
        store_timeout: seconds after which a store call fails.
        store_options: further options of ``open_store``.
        lease: seconds for which a worker counts as alive after its last renewal.
        sweep_interval: seconds between two sweeps for lost workers and unpublished callbacks.
        on_lost: the fate of an attempt whose worker is lost: ``mark`` ends it as LOST, ``requeue`` publishes its
            message again, ``auto`` requeues tasks with ``acks_late`` and marks the others.
        max_lost: number of losses at which a cell ends as LOST under every policy.
        progress_interval: seconds between two progress writes of one task; 0 writes every call.
        on_store_error: ``log`` keeps tasks running while the store is unavailable and writes their states later;
            ``raise`` lets a failed write of ``self.state`` fail the task.
        max_state_bytes: maximum size of message and payload together, encoded.
        max_result_bytes: maximum size of a result that a job keeps, encoded as JSON.
        max_body_bytes: maximum size of the list of results that the body of a chord takes, encoded as JSON.
        gc_schedule: when beat collects garbage: seconds, a timedelta or a crontab; None for never.
        gc_tombstone_age: idle time after which a job is hidden: a text such as ``30d``, seconds or a timedelta.
        gc_delete_age: idle time after which a job is deleted; must be longer than
            ``statemanager_gc_tombstone_age``, and both are set together.
        sweep_schedule: when beat asks a worker to sweep, in addition to the sweeps of beat and of every worker.
        migrate_target: schema version to which beat migrates jobs of earlier releases; None for never.
        migrate_schedule: when beat migrates jobs, if ``statemanager_migrate_target`` is set: seconds, a timedelta or a
            crontab.
        metrics: whether stores are measured when ``opentelemetry-api`` is installed.
        web_secret: signs the links of ``states.web_token`` and the cursors of lists on the web; at least 16 characters,
            the same in all processes. Without it each process uses a random one, so that links end with the process.
        web_authorize: who may do what on the pages of ``contrib.django``: a function ``(request, action, job)``, or its
            dotted path; see ``StateManager.web``. None for members of the staff, with permissions for changes.
    """

    store_url: str = "sqlite:///celery-statemanager.db"
    store_timeout: float = 5.0
    store_options: dict[str, Any] = field(default_factory=dict)
    lease: float = 30.0
    sweep_interval: float = 15.0
    on_lost: str = "auto"
    max_lost: int = 3
    progress_interval: float = 1.0
    on_store_error: str = "log"
    max_state_bytes: int = MAX_STATE_BYTES
    max_result_bytes: int = MAX_RESULT_BYTES
    max_body_bytes: int = MAX_BODY_BYTES
    gc_schedule: Any = None
    gc_tombstone_age: Any = None
    gc_delete_age: Any = None
    sweep_schedule: Any = None
    migrate_target: int | None = None
    migrate_schedule: Any = 3_600.0
    metrics: bool = True
    web_secret: str | None = field(default=None, repr=False)
    web_authorize: Any = None

    @classmethod
    def from_app(cls, app: Celery) -> Settings:
        """Read and check an app's settings. Raises: ConfigurationError – with the key and what to write instead."""
        given = {each.name: app.conf.get(PREFIX + each.name) for each in fields(cls)}
        given |= {name: compute() for name, compute in _of_framework.items() if given[name] is None}
        settings = cls(**{name: value for name, value in given.items() if value is not None})
        settings._check()
        for key in _unknown(app, known={each.name for each in fields(cls)}):
            _warn_unknown(app.main, key)
        return settings

    def _check(self) -> None:
        for name in ("store_timeout", "lease", "sweep_interval"):
            self._number(name, "a number above 0", lambda value: value > 0)
        for name in ("max_lost", "max_state_bytes", "max_result_bytes", "max_body_bytes"):
            self._number(name, "a whole number above 0", lambda value: value > 0 and isinstance(value, int))
        largest = MAX_VALUE_BYTES - 1  # the text has a first character of its own
        self._number("max_result_bytes", f"at most {largest:,}", lambda value: value <= largest)
        self._number("progress_interval", "a number, 0 or more", lambda value: value >= 0)
        self._choice("on_lost", POLICIES)
        self._choice("on_store_error", ("log", "raise"))
        self._choice("metrics", (True, False))
        for name in ("gc_schedule", "sweep_schedule", "migrate_schedule"):
            self._schedule(name)
        self._ages()
        self._target()
        self._secret()
        if not isinstance(self.store_url, str):
            raise ConfigurationError(f"{PREFIX}store_url must be a URL, not {self.store_url!r}")

    def _number(self, name: str, kind: str, is_one: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not valid or not is_one(value):
            raise ConfigurationError(f"{PREFIX}{name} must be {kind}, not {value!r}")

    def _schedule(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, (int, float, timedelta)):
            seconds = value.total_seconds() if isinstance(value, timedelta) else value
            valid = not isinstance(value, bool) and math.isfinite(seconds) and seconds > 0
        else:
            valid = value is None or isinstance(value, BaseSchedule)
        if not valid:
            raise ConfigurationError(
                f"{PREFIX}{name} must be a number of seconds above 0, a timedelta or a crontab, not {value!r}"
            )

    def _ages(self) -> None:
        given = (self.gc_tombstone_age, self.gc_delete_age)
        if given == (None, None) and self.gc_schedule is None:
            return
        if None in given:
            raise ConfigurationError(
                f"{PREFIX}gc_tombstone_age and {PREFIX}gc_delete_age must be set together, and with "
                f"{PREFIX}gc_schedule: set both, such as '30d' and '90d', instead of {given[0]!r} and {given[1]!r}"
            )
        Ages.parse(*given)

    def _target(self) -> None:
        if self.migrate_target is None:
            return
        try:
            STEPS.checked(self.migrate_target)
        except ConfigurationError as error:
            raise ConfigurationError(f"{PREFIX}migrate_target: {error}") from None

    def _secret(self) -> None:
        secret = self.web_secret
        if secret is not None and not (isinstance(secret, str) and len(secret) >= SHORTEST_SECRET and secret.isascii()):
            raise ConfigurationError(
                f"{PREFIX}web_secret must be a text of at least {SHORTEST_SECRET} ASCII characters; create one with: "
                "python -c 'import secrets; print(secrets.token_urlsafe())'"
            )

    def _choice(self, name: str, choices: tuple[object, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ConfigurationError(f"{PREFIX}{name} must be one of {', '.join(map(str, choices))}, not {value!r}")


def _unknown(app: Celery, known: set[str]) -> Iterator[str]:
    """Yield the keys with our prefix that are no setting of this release, such as mistyped ones."""
    namespace = f"{app.namespace}_".lower() if app.namespace else ""  # type: ignore[attr-defined] # incomplete stubs
    for key in map(str.lower, filter(lambda key: isinstance(key, str), app.conf)):
        name = key.removeprefix(namespace)
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known:
            yield name


@lru_cache(maxsize=1_000)
def _warn_unknown(app: str | None, key: str) -> None:
    near = difflib.get_close_matches(key, [PREFIX + each.name for each in fields(Settings)], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    logger.warning("app %r: unknown setting %s has no effect%s", app, key, hint)
