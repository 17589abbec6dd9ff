"""Which app is tracked by what: the look-up that lets signal handlers find their way without importing it."""

from __future__ import annotations

from typing import Protocol

from celery import Celery

from celery_statemanager.integration.settings import Settings
from celery_statemanager.metrics import Metrics
from celery_statemanager.stores import Store


class Tracker(Protocol):
    """What the handlers need of a ``StateManager``."""

    @property
    def app(self) -> Celery:
        """The app that is tracked."""

    @property
    def settings(self) -> Settings:
        """Its settings."""

    @property
    def store(self) -> Store:
        """Its store."""

    @property
    def metrics(self) -> Metrics:
        """What measures it."""


_ATTRIBUTE = "_celery_statemanager"


def install(app: Celery, tracker: Tracker) -> None:
    """Hang a tracker on its app, with which it goes."""
    setattr(app, _ATTRIBUTE, tracker)


def tracker_of(app: Celery) -> Tracker | None:
    """Give the app's tracker; None for an app without one."""
    return getattr(app, _ATTRIBUTE, None)
