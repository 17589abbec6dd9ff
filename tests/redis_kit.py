"""Checks shared by the tests of the Redis store."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import redis

from celery_statemanager import StoreUnavailable


def check_refused_when_full(client: redis.Redis, steps: Iterable[Callable[[], object]]) -> None:
    """Fill the memory of a server, and check that it refuses each step and that no step changes anything."""
    dump = {key: client.dump(key) for key in client.scan_iter()}
    client.config_set("maxmemory", 1)
    for step in steps:
        with pytest.raises(StoreUnavailable, match="is full"):
            step()
    assert {key: client.dump(key) for key in client.scan_iter()} == dump
