"""``statemanager_*`` keys of ``app.conf``, read once into one frozen value."""

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
from celery_statemanager.limits import MAX_STATE_BYTES
from celery_statemanager.migrations import STEPS
from celery_statemanager.retention import Ages

logger = logging.getLogger(__name__)

PREFIX = "statemanager_"
POLICIES = ("auto", "mark", "requeue")


@dataclass(frozen=True)
class Settings:
    """What ``app.conf`` says; under ``namespace="CELERY"`` the keys are ``CELERY_STATEMANAGER_…``.

    Attributes:
        store_url: where states are kept; a relative path is the process's own folder: workers and submitters must
            agree.
        store_timeout: seconds after which a store call gives up.
        store_options: further options of ``open_store``.
        lease: seconds for which a worker counts as alive without another sign of it.
        sweep_interval: seconds between two looks for lost workers and unpublished callbacks.
        on_lost: what becomes of an attempt whose worker is gone: ``mark`` it LOST, ``requeue`` its message, or
            ``auto``: requeue where the task is ``acks_late``, since its author says that it may run twice.
        max_lost: losses with a worker at which a cell is LOST whatever the policy.
        progress_interval: seconds between two progress writes of one task; 0 writes all.
        on_store_error: ``log`` lets a task go on while the store is down, its states are written later; ``raise``
            makes a failing write of ``self.state`` the task's failure.
        max_state_bytes: limit of message and payload together, encoded.
        gc_schedule: when beat has garbage collected: seconds, a timedelta or a crontab; None for never.
        gc_tombstone_age: how long a job is idle until it is hidden: a text such as ``30d``, seconds or a timedelta.
        gc_delete_age: how long a job is idle until it is deleted; longer, and set together with the other.
        sweep_schedule: when beat has a worker sweep, beside what beat and every worker do by themselves.
        migrate_target: the schema that beat has jobs of earlier releases brought to; None for never.
        migrate_schedule: when beat has them brought there, if at all: seconds, a timedelta or a crontab.
        metrics: whether to measure with OpenTelemetry, where ``opentelemetry-api`` is installed.
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
    gc_schedule: Any = None
    gc_tombstone_age: Any = None
    gc_delete_age: Any = None
    sweep_schedule: Any = None
    migrate_target: int | None = None
    migrate_schedule: Any = 3_600.0
    metrics: bool = True

    @classmethod
    def from_app(cls, app: Celery) -> Settings:
        """Read and check an app's settings. Raises: ConfigurationError – naming the key and the mend."""
        given = {each.name: app.conf.get(PREFIX + each.name) for each in fields(cls)}
        settings = cls(**{name: value for name, value in given.items() if value is not None})
        settings._check()
        for key in _unknown(app, known={each.name for each in fields(cls)}):
            _tell_once(app.main, key)
        return settings

    def _check(self) -> None:
        for name in ("store_timeout", "lease", "sweep_interval"):
            self._number(name, "a number above 0", lambda value: value > 0)
        for name in ("max_lost", "max_state_bytes"):
            self._number(name, "a whole number above 0", lambda value: value > 0 and isinstance(value, int))
        self._number("progress_interval", "a number, 0 or more", lambda value: value >= 0)
        self._choice("on_lost", POLICIES)
        self._choice("on_store_error", ("log", "raise"))
        self._choice("metrics", (True, False))
        for name in ("gc_schedule", "sweep_schedule", "migrate_schedule"):
            self._schedule(name)
        self._ages()
        self._target()
        if not isinstance(self.store_url, str):
            raise ConfigurationError(f"{PREFIX}store_url is a URL, not {self.store_url!r}")

    def _number(self, name: str, kind: str, is_one: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not valid or not is_one(value):
            raise ConfigurationError(f"{PREFIX}{name} is {kind}, not {value!r}")

    def _schedule(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, (int, float, timedelta)):
            seconds = value.total_seconds() if isinstance(value, timedelta) else value
            valid = not isinstance(value, bool) and math.isfinite(seconds) and seconds > 0
        else:
            valid = value is None or isinstance(value, BaseSchedule)
        if not valid:
            raise ConfigurationError(
                f"{PREFIX}{name} is a number of seconds above 0, a timedelta or a crontab, not {value!r}"
            )

    def _ages(self) -> None:
        given = (self.gc_tombstone_age, self.gc_delete_age)
        if given == (None, None) and self.gc_schedule is None:
            return
        if None in given:
            raise ConfigurationError(
                f"{PREFIX}gc_tombstone_age and {PREFIX}gc_delete_age go together, and with {PREFIX}gc_schedule: "
                f"say both, such as '30d' and '90d'; they are {given[0]!r} and {given[1]!r}"
            )
        Ages.parse(*given)

    def _target(self) -> None:
        if self.migrate_target is None:
            return
        try:
            STEPS.checked(self.migrate_target)
        except ConfigurationError as error:
            raise ConfigurationError(f"{PREFIX}migrate_target: {error}") from None

    def _choice(self, name: str, choices: tuple[object, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ConfigurationError(f"{PREFIX}{name} is one of {', '.join(map(str, choices))}, not {value!r}")


def _unknown(app: Celery, known: set[str]) -> Iterator[str]:
    """Give what is written like a setting of ours and is none: it would be passed over in silence."""
    namespace = f"{app.namespace}_".lower() if app.namespace else ""  # type: ignore[attr-defined] # incomplete stubs
    for key in map(str.lower, filter(lambda key: isinstance(key, str), app.conf)):
        name = key.removeprefix(namespace)
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known:
            yield name


@lru_cache(maxsize=1_000)
def _tell_once(app: str | None, key: str) -> None:
    near = difflib.get_close_matches(key, [PREFIX + each.name for each in fields(Settings)], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    logger.warning("app %r: %s is no setting of this release and does nothing%s", app, key, hint)
