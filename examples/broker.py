"""A broker made of folders: Kombu's filesystem transport, with messages that appear and are taken as a whole.

Kombu writes a message in place and a consumer may read it half written, which ends the worker with a
``JSONDecodeError``; so here a message is written aside and renamed, and taken by renaming. Good for a demo and for
tests on one machine; a message that a killed worker held is gone, as with Kombu's own.
"""

import fcntl
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):
    """Puts and takes by ``rename``; changes its table of queues under one lock."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        folder = Path(self.data_folder_out)
        name = f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}.msg"
        draft = folder / f".draft-{name}"
        draft.write_text(dumps(payload), encoding="utf-8")
        draft.rename(folder / name)

    def _get(self, queue: str) -> Any:
        folder = Path(self.data_folder_in)
        for name in sorted(each.name for each in folder.iterdir()):
            if name.partition(".")[2] == f"{queue}.msg":
                taken = folder / f".taken-{name}"
                try:
                    (folder / name).rename(taken)
                except FileNotFoundError:
                    continue
                payload = loads(taken.read_text(encoding="utf-8"))
                taken.unlink()
                return payload
        raise Empty

    def get_table(self, exchange: str) -> Any:
        with self._table_locked():
            return super().get_table(exchange)

    def _queue_bind(self, *args: Any) -> None:
        with self._table_locked():
            super()._queue_bind(*args)

    def _delete(self, *args: Any, **kwargs: Any) -> None:
        with self._table_locked():
            super()._delete(*args, **kwargs)

    @contextmanager
    def _table_locked(self) -> Iterator[None]:
        self.control_folder.mkdir(exist_ok=True)
        with (self.control_folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Transport(filesystem.Transport):
    """Named by ``broker_transport = "examples.broker:Transport"``."""

    Channel = Channel


def settings(home: Path) -> dict[str, Any]:
    """Give the app settings for a broker below a folder, which is made."""
    for folder in ("queue", "control"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    return {
        "broker_url": "filesystem://",
        "broker_transport": "examples.broker:Transport",
        "broker_transport_options": {
            "data_folder_in": str(home / "queue"),
            "data_folder_out": str(home / "queue"),
            "control_folder": str(home / "control"),
            "polling_interval": 0.02,
        },
    }
