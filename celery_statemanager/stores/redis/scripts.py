"""The scripts, one per atomic step, as they are sent to the server."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import NamedTuple

from celery_statemanager.stores.redis.cells import CELL
from celery_statemanager.stores.redis.jobs import HEAD

_PARTS: dict[str, tuple[str, ...]] = {
    "write": ("EVENTS", "FIELDS", "common", "attempts"),
    "begin": ("EVENTS", "FIELDS", "common", "attempts"),
    "update": ("EVENTS", "FIELDS", "common"),
    "rewrite": ("EVENTS", "FIELDS", "common"),
    "create": ("EVENTS",),
    "cells": ("HEAD",),
    "columns": ("HEAD",),
}
"""What stands before a script's own text: other texts, and lines that are made here."""


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
        made = {
            "EVENTS": f'local EVENTS = "{stream_length}"\n',
            "FIELDS": f"local {', '.join(CELL).upper()} = {', '.join(str(at) for at, _ in enumerate(CELL, 1))}\n",
            "HEAD": f"local HEAD = {{{', '.join(map(json.dumps, HEAD))}}}\n",
        }

        def load(name: str) -> Script:
            source = "".join(made.get(part) or _text(part) for part in (*_PARTS.get(name, ()), name))
            return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

        self.write, self.begin, self.update = map(load, ("write", "begin", "update"))
        self.create, self.detach = map(load, ("create", "detach"))
        self.rewrite, self.adopt = map(load, ("rewrite", "adopt"))
        self.cells, self.columns = map(load, ("cells", "columns"))
        self.touch, self.rest, self.retire, self.worker = map(load, ("touch", "rest", "retire", "worker"))


def _text(name: str) -> str:
    return files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
