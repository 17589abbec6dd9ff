"""Files by which a worker's children report to its main process which cells have writes that wait for the store."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from celery_statemanager.integration import requests

logger = logging.getLogger(__name__)

_numbers = itertools.count()

_RISK = "if the store fails, a sweep may mark their tasks as LOST before they are written"


class PendingFiles:
    """The files of one ``StateManager``: one for each child of the worker, in a folder of the worker's own.

    Only a worker's child writes. In any other process ``replace`` and ``add`` do nothing.

    Args:
        app: the name of the manager's app. Processes of one worker share the files of apps of the same name.
        kind: distinguishes files with other reports.
    """

    def __init__(self, app: str | None, kind: str = "") -> None:
        self._app = f"{zlib.crc32((app or '').encode()):08x}{kind}"
        self._number = next(_numbers)
        self._is_failing = False

    def replace(self, names: Sequence[str]) -> None:
        """Report that the writes of these cells wait in this process, and no others."""
        with self._own_file() as mine:
            if mine is None:
                return
            if not names:
                mine.unlink(missing_ok=True)
                return
            draft = _with_folder(mine).with_suffix(".draft")
            draft.write_text("".join(map(_line, names)), encoding="utf-8")
            draft.replace(mine)

    def add(self, name: str) -> None:
        """Report one more cell, at a cost that does not depend on the number of those that wait."""
        with self._own_file() as mine:
            if mine is not None:
                with _with_folder(mine).open("a", encoding="utf-8") as file:
                    file.write(_line(name))

    def of_children(self) -> list[str]:
        """Return the cells whose writes wait in the living children of this worker."""
        names: set[str] = set()
        folder = find_folder()
        for file in folder.glob(f"{self._app}-*[0-9]") if folder else ():
            if not _is_alive(int(file.name.split("-")[1])):
                file.unlink(missing_ok=True)
                continue
            with suppress(FileNotFoundError):  # the child has written its states
                whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")  # the last line may be incomplete
                names.update(map(json.loads, whole.splitlines()))
        return sorted(names)

    @contextmanager
    def _own_file(self) -> Iterator[Path | None]:
        """Yield the file of this child, None in any other process.

        Log a failure of the disk, once until it recovers, instead of raising it.
        """
        folder = find_folder() if requests.is_child() else None
        try:
            yield folder and folder / f"{self._app}-{os.getpid()}-{self._number}"
        except OSError as error:
            if not self._is_failing:
                logger.warning("cannot report which writes wait in this process: %s; %s", error, _RISK)
            self._is_failing = True
        else:
            self._is_failing = False


def find_folder() -> Path | None:
    """Return the folder of this worker; None if no folder for temporary files is writable, which is logged once.

    The main process calls it before it creates children, which then do not log it again.
    """
    return _find_folder(requests.worker_id())


@lru_cache(maxsize=8)
def _find_folder(worker_id: str) -> Path | None:
    try:
        return Path(tempfile.gettempdir(), f"statemanager-{worker_id.replace(':', '-')}")
    except OSError as error:
        if not requests.is_child():
            hint = "set TMPDIR to a writable folder, such as a volume in memory"
            logger.warning("the children cannot report which writes wait in them: %s; %s; %s", error, _RISK, hint)
        return None


def remove_folder() -> None:
    """Remove the folder of this worker after its children have ended."""
    folder = find_folder()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _with_folder(file: Path) -> Path:
    file.parent.mkdir(mode=0o700, exist_ok=True)
    return file


def _line(name: str) -> str:
    return json.dumps(name) + "\n"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
