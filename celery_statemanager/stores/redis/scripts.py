"""The scripts, one per atomic step, as they are sent to the server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.resources import files
from typing import NamedTuple

from celery_statemanager.stores.redis.cells import CELL
from celery_statemanager.stores.redis.jobs import HEAD

_PARTS = {"write": ("common", "attempts"), "begin": ("common", "attempts"), "update": ("common",)}
"""What stands before a script's own text."""


class Script(NamedTuple):
    """A script's text and the digest by which the server remembers it."""

    source: str
    digest: str


class Scripts:
    """All scripts of a store.

    Args:
        stream_length: after how many changes, about, the oldest ones leave a job's stream.
    """

    def __init__(self, stream_length: int) -> None:
        names = f"local CELL = {_table(CELL)}\nlocal HEAD = {_table(HEAD)}\nlocal EVENTS = {stream_length}\n"

        def load(name: str) -> Script:
            source = names + "".join(map(_text, (*_PARTS.get(name, ()), name)))
            return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

        self.write, self.begin, self.update = map(load, _PARTS)
        self.create, self.detach = load("create"), load("detach")
        self.cells, self.columns = load("cells"), load("columns")
        self.touch, self.rest, self.retire, self.worker = map(load, ("touch", "rest", "retire", "worker"))


def _text(name: str) -> str:
    return files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


def _table(names: Iterable[str]) -> str:
    return "{" + ", ".join(map(json.dumps, names)) + "}"
