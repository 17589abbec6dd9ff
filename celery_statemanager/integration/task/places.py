"""Where the body of a task stands: the file, the line and the function, read from another thread."""

from __future__ import annotations

import sys
import sysconfig
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from celery_statemanager.greenlets import has_green_threads

_OWN = str(Path(__file__).parents[2]) + "/"
_LIBRARIES = tuple(
    {f"{folder}/" for name, folder in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))} | {"<"}
)
_TRACE = "celery.app.trace"
_LONGEST = 300


class Body:
    """The thread, or the greenlet, that runs a body. Create it there."""

    def __init__(self, task: Any) -> None:
        self._package = str(getattr(task, "__module__", "")).partition(".")[0]
        self._thread, self._greenlet = _native_thread(), _greenlet()

    def stands_in(self) -> str | None:
        """Return the innermost line of the application that runs, as ``file.py:88 function``; None if unknown.

        Lines of libraries are skipped, unless the body consists of nothing else.
        """
        frame = self._frame()
        innermost = None
        while frame is not None and frame.f_globals.get("__name__") != _TRACE:
            file = frame.f_code.co_filename
            if not file.startswith(_OWN):
                innermost = innermost or frame
                if self._is_of_application(frame, file):
                    innermost = frame
                    break
            frame = frame.f_back
        return None if innermost is None else _describe(innermost)

    def _is_of_application(self, frame: FrameType, file: str) -> bool:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        return package == self._package or not (file.startswith(_LIBRARIES) or "/site-packages/" in file)

    def _frame(self) -> FrameType | None:
        """Return the innermost frame; a greenlet that runs has none of its own, but is on top of its thread."""
        frame: FrameType | None = None if self._greenlet is None else self._greenlet.gr_frame
        return sys._current_frames().get(self._thread) if frame is None else frame


def _describe(frame: FrameType) -> str:
    text = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
    return text[:_LONGEST]


def _native_thread() -> int:
    """Return the key of this thread in ``sys._current_frames``. A patched ``get_ident`` returns that of a greenlet."""
    gevent: Any = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return int(gevent.get_original("_thread", "get_ident")())
    if has_green_threads():
        return int(sys.modules["eventlet.patcher"].original("threading").get_ident())
    return threading.get_ident()


def _greenlet() -> Any:
    """Return this greenlet; None in a thread without greenlets."""
    if not has_green_threads():
        return None
    greenlet: Any = sys.modules["greenlet"]
    return greenlet.getcurrent()
