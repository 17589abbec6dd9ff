"""Faults for the workers of tests, by name. The app of the tests installs the one named in the environment."""

import os
import signal
import time

from celery.signals import task_success

from celery_statemanager.integration import callbacks
from celery_statemanager.integration.outbox import publisher
from celery_statemanager.testing import FaultyStore

ALWAYS = 1_000_000


def install(name, states, home):
    """Install a fault.

    Raises: KeyError for an unknown name.
    """
    FAULTS[name](states, home)


def die():
    """Kill all processes of the worker, as the loss of its machine does."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def after_deciding(states, _):
    """Die once a write has decided a latch, before its callback is published."""
    states.store = store = FaultyStore(states.store)
    store.at("write", lambda reply: die() if reply.decided else None, after=True, times=ALWAYS)


def after_stage(states, _):
    """Die once the end of a stage of a body is stored, before the next one is decided."""
    states.store = store = FaultyStore(states.store)
    store.at("write", lambda reply: die() if reply.cell.final else None, after=True, times=ALWAYS)


def after_publishing(states, _):
    """Die once a callback has been published, before it is marked."""
    publish = callbacks.publish

    def publish_and_die(*arguments):
        publish(*arguments)
        die()

    callbacks.publish = publish_and_die


def dies_before_publishing(*_):
    """Die once the end of a row has claimed others, before they are published."""
    publisher.publish = lambda *_: die()


def child_dies_before_publishing(*_):
    """Kill the child alone once the end of a row has claimed others, before they are published."""
    publisher.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def dies_after_publishing(*_):
    """Die once a message that the end of a row or of a stage made due has been published."""
    publish = publisher.publish

    def publish_and_die(*arguments):
        publish(*arguments)
        die()

    publisher.publish = publish_and_die


def after_storing_result(states, _):
    """Die once Celery has stored the result of a task, before its end is written."""
    task_success.connect(lambda **_: die(), weak=False)


def child_dies_after_storing_result(states, _):
    """Kill the child alone once Celery has stored the result of its task."""
    task_success.connect(lambda **_: os.kill(os.getpid(), signal.SIGKILL), weak=False)


def child_cut_off(states, home):
    """Make the store unavailable to the worker's children, but not to its main process, while a file exists."""
    main = os.getpid()
    states.store = FaultyStore(states.store, down=lambda: os.getpid() != main and (home / "cut-off").exists())


def clock_ahead(*_):
    """Set the clock of this process an hour ahead of the store's."""
    _skew(3_600)


def clock_behind(*_):
    """Set the clock of this process an hour behind the store's."""
    _skew(-3_600)


def _skew(seconds):
    real = time.time
    time.time = lambda: real() + seconds


FAULTS = {
    each.__name__: each
    for each in (
        after_deciding,
        after_stage,
        after_publishing,
        dies_after_publishing,
        after_storing_result,
        child_dies_after_storing_result,
        child_cut_off,
        child_dies_before_publishing,
        dies_before_publishing,
        clock_ahead,
        clock_behind,
    )
}
