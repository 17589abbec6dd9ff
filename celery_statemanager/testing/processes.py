"""Kill, pause and resume workers with all their children by real signals. Requires psutil."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

PATIENCE = 10.0
"""Seconds within which a signal must take effect."""

GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its living descendants, itself first. Empty if the process has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def kill(pid: int) -> None:
    """Kill a process and its descendants (SIGKILL), as a lost machine does, and wait until none of them runs.

    Each remains a zombie until its parent has waited for it. Raises: AssertionError.
    """
    killed = family(pid)
    for process in killed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_while(killed, lambda status: status not in GONE, "SIGKILL")


def pause(pid: int) -> None:
    """Stop a process and its descendants (SIGSTOP), as a frozen machine does, and wait until all are stopped.

    Raises: AssertionError.
    """
    stopped = family(pid)
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    _wait_while(stopped, lambda status: status not in {*GONE, psutil.STATUS_STOPPED}, "SIGSTOP")


def resume(pid: int) -> None:
    """Resume a paused process and its descendants (SIGCONT), and wait until they run. Raises: AssertionError."""
    continued = family(pid)
    for process in continued:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    _wait_while(continued, lambda status: status == psutil.STATUS_STOPPED, "SIGCONT")


def _wait_while(signalled: list[psutil.Process], still: Callable[[str], bool], signal: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := [each for each in signalled if still(_status(each))]:
        assert time.monotonic() < deadline, f"no effect {PATIENCE} s after {signal}: {left}"
        time.sleep(0.01)


def _status(process: psutil.Process) -> str:
    try:
        return process.status() if process.is_running() else psutil.STATUS_DEAD
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Pause a process and its descendants inside the block."""
    pause(pid)
    try:
        yield
    finally:
        resume(pid)
