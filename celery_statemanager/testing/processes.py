"""Workers killed, paused and continued for real, with all their children. Needs psutil."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

PATIENCE = 10.0
"""Seconds that a killed process may take to be gone."""


def family(pid: int) -> list[psutil.Process]:
    """Give a process and all its living descendants, itself first; empty when it is gone."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def kill(pid: int) -> None:
    """End a process and its descendants by SIGKILL, as a lost machine does, and wait until none of them runs.

    Each stays a zombie until its parent has waited for it. Raises: AssertionError.
    """
    killed = family(pid)
    for process in killed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + PATIENCE
    while left := [each for each in killed if _runs(each)]:
        assert time.monotonic() < deadline, f"still there {PATIENCE} s after SIGKILL: {left}"
        time.sleep(0.01)


def pause(pid: int) -> None:
    """Stop a process and its descendants (SIGSTOP), as a frozen machine does."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.suspend()


def resume(pid: int) -> None:
    """Let a paused process and its descendants go on (SIGCONT)."""
    for process in family(pid):
        with suppress(psutil.NoSuchProcess):
            process.resume()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Pause a process and its descendants for as long as the block lasts."""
    pause(pid)
    try:
        yield
    finally:
        resume(pid)
