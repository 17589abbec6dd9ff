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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from celery_statemanager.integration import worker_requests

logger = logging.getLogger(__name__)


def tell(names: Sequence[str]) -> None:
    """Say which cells wait in this process, if it is a worker's child."""
    if not worker_requests.is_child():
        return
    try:
        _write(names)
    except OSError as error:
        logger.warning("the main process is not told which states wait here, a sweep may take them for lost: %s", error)


def _write(names: Sequence[str]) -> None:
    folder = _folder()
    mine = folder / str(os.getpid())
    if not names:
        mine.unlink(missing_ok=True)
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    draft = folder / f"{os.getpid()}.draft"
    draft.write_text(json.dumps(names), encoding="utf-8")
    draft.replace(mine)


def told() -> list[str]:
    """Give the cells that wait in this worker's living children."""
    names: set[str] = set()
    for file in _folder().glob("*[0-9]"):
        if not _lives(int(file.name)):
            file.unlink(missing_ok=True)
            continue
        with suppress(FileNotFoundError):  # written by now
            names.update(json.loads(file.read_text(encoding="utf-8")))
    return sorted(names)


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
