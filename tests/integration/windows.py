"""Faults for the workers of tests, by name: the app of the tests lays one in where the environment asks for it."""

import os
import signal
import time

from celery.signals import after_task_publish

from celery_statemanager.testing import FaultyStore

ALWAYS = 1_000_000


def lay(name, states, home):
    """Lay in a fault. Raises: KeyError."""
    FAULTS[name](states, home)


def die():
    """Take the whole worker along, as a machine that is lost does."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def after_deciding(states, _):
    """Die once a write has decided a latch, before its callback is published."""
    states.store = store = FaultyStore(states.store)
    store.at("write", lambda reply: die() if reply.decided else None, after=True, times=ALWAYS)


def after_publishing(states, _):
    """Die once a callback was published, before it is marked."""

    def publishing(headers, **_):
        if headers["id"].endswith((".success", ".failure", ".settled")):
            die()

    after_task_publish.connect(publishing, weak=False)


def child_cut_off(states, home):
    """Keep the store from the worker's children, not from its main process, while a file is there."""
    main = os.getpid()
    states.store = FaultyStore(states.store, down=lambda: os.getpid() != main and (home / "cut-off").exists())


def clock_ahead(*_):
    """Let this host's clock be an hour ahead of the store's."""
    _skew(3_600)


def clock_behind(*_):
    """Let this host's clock be an hour behind the store's."""
    _skew(-3_600)


def _skew(seconds):
    real = time.time
    time.time = lambda: real() + seconds


FAULTS = {each.__name__: each for each in (after_deciding, after_publishing, child_cut_off, clock_ahead, clock_behind)}
