"""The cells whose writes wait in a worker's children, told to its main process: it lists them in its lease.

By files in a folder of the worker's own, which exists only while something waits: children may be forked or spawned,
and one that is killed takes its word with it, since its file counts only while it lives.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from celery_statemanager.integration import worker_requests

logger = logging.getLogger(__name__)


def tell(names: Sequence[str]) -> None:
    """Say which cells wait in this process, if it is a worker's child."""
    with _telling() as mine:
        if mine is None:
            return
        if not names:
            mine.unlink(missing_ok=True)
            return
        draft = _made(mine).with_suffix(".draft")
        draft.write_text("".join(map(_line, names)), encoding="utf-8")
        draft.replace(mine)


def tell_more(name: str) -> None:
    """Say that one more waits; costs the same however many do."""
    with _telling() as mine:
        if mine is not None:
            with _made(mine).open("a", encoding="utf-8") as file:
                file.write(_line(name))


def told() -> list[str]:
    """Give the cells that wait in this worker's living children."""
    names: set[str] = set()
    for file in _folder().glob("*[0-9]"):
        if not _lives(int(file.name)):
            file.unlink(missing_ok=True)
            continue
        with suppress(FileNotFoundError):  # written by now
            whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")  # the last may be on its way
            names.update(map(json.loads, whole.splitlines()))
    return sorted(names)


@contextmanager
def _telling() -> Iterator[Path | None]:
    """Give the file of a worker's child, None in any other process; a disk that takes nothing is no task's trouble."""
    try:
        yield _folder() / str(os.getpid()) if worker_requests.is_child() else None
    except OSError as error:
        logger.warning("the main process is not told which states wait here, a sweep may take them for lost: %s", error)


def _made(mine: Path) -> Path:
    mine.parent.mkdir(mode=0o700, exist_ok=True)
    return mine


def _line(name: str) -> str:
    return json.dumps(name) + "\n"


def close() -> None:
    """Remove the folder, once the children are gone."""
    shutil.rmtree(_folder(), ignore_errors=True)


def _folder() -> Path:
    return Path(tempfile.gettempdir(), f"statemanager-{worker_requests.worker_id().replace(':', '-')}")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
