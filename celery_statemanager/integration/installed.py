"""Which app is tracked by what: the look-up that lets signal handlers find their way without importing it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from celery import Celery
from celery.signals import import_modules

from celery_statemanager.integration.settings import Settings
from celery_statemanager.metrics import Metrics
from celery_statemanager.stores import FullStore


class Tracker(Protocol):
    """What the handlers need of a ``StateManager``."""

    @property
    def app(self) -> Celery:
        """The app that is tracked."""

    @property
    def settings(self) -> Settings:
        """Its settings."""

    @property
    def store(self) -> FullStore:
        """Its store."""

    @property
    def metrics(self) -> Metrics:
        """What measures it."""


AnyTracker = TypeVar("AnyTracker", bound=Tracker)

_ATTRIBUTE = "_celery_statemanager"


def install(app: Celery, tracker: Tracker) -> None:
    """Hang a tracker on its app, with which it goes."""
    setattr(app, _ATTRIBUTE, tracker)


def tracker_of(app: Celery) -> Tracker | None:
    """Give the app's tracker; None for an app without one."""
    return getattr(app, _ATTRIBUTE, None)


def at_start(tracker: AnyTracker, action: Callable[[AnyTracker], object]) -> None:
    """Do something with the tracker as a worker or beat of its app starts; what is raised ends it."""
    mine = weakref.ref(tracker)  # a signal must not keep an app alive

    def act(**_: Any) -> None:
        alive = mine()
        if alive is not None:
            action(alive)

    import_modules.connect(act, sender=tracker.app, weak=False)
