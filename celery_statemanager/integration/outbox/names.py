"""The names under which a process claims messages. Each claim replaces the earlier one of its name."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from celery_statemanager.errors import AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound
from celery_statemanager.integration import requests

REFUSALS = (AttemptSuperseded, BeginRefused, JobCancelled, JobNotFound)
"""The errors by which a store refuses a write."""

_free: list[int] = []
_numbers = itertools.count()


def process_name() -> str:
    """Return the prefix of the names of this process. A sweep finds the worker record of the process by it."""
    return f"{requests.process_id()}/{os.getpid()}"


@dataclass
class PublisherName:
    """A name that one thread or greenlet uses at a time.

    Attributes:
        leaves_claim: whether its last claim may be left to a sweep. The name is then not used again, because its next
            claim would replace that one.
    """

    text: str
    leaves_claim: bool = False


@contextmanager
def publisher_name() -> Iterator[PublisherName]:
    """Yield a free name of this process. After an error that may hide a claim, the name is not used again."""
    try:
        number = _free.pop()
    except IndexError:
        number = next(_numbers)
    name = PublisherName(f"{process_name()}.{number}")
    try:
        yield name
    except REFUSALS:
        _free.append(number)
        raise
    if not name.leaves_claim:
        _free.append(number)
