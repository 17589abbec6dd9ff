"""One app, one store and one worker per pool, shared by all acceptance tests."""

import importlib
import os
import sys
import time
import uuid
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from workers import Worker  # noqa: E402

POOLS = ("prefork", "threads", "solo")
PATIENCE = 30.0


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("tracked")
    os.environ.update(
        TRACKED_HOME=str(home), TRACKED_BROKER="filesystem://", TRACKED_STORE=f"sqlite:///{home}/states.db"
    )
    return home


@pytest.fixture(scope="session")
def tracked(home):
    module = importlib.import_module("tracked")
    yield module
    module.states.store.close()


@pytest.fixture(scope="session")
def workers(home, tracked):
    """Give workers by pool, each started when first asked for."""
    started = {}

    def get(pool):
        if pool not in started:
            started[pool] = Worker(home, pool, pool)
        return started[pool]

    yield get
    for worker in started.values():
        worker.stop()


@pytest.fixture(params=POOLS)
def pool(request, workers):
    workers(request.param)
    return request.param


@pytest.fixture
def key():
    """A name of this test's own, for its notes."""
    return f"note-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def submit(tracked, pool):
    """Submit to the worker of the pool under test."""

    def submit(members, **options):
        routed = [route(member, pool) for member in members]
        callbacks = {name: route(options.pop(name), pool) for name in list(options) if name.startswith("on_")}
        return tracked.states.submit(routed, **callbacks, **options)

    return submit


def route(signature, queue):
    for each in signature.kwargs["tasks"] if signature.subtask_type == "chain" else [signature]:
        each.options.setdefault("queue", queue)
    return signature


@pytest.fixture
def eventually():
    """Wait until something the test cannot be told of holds; give what it gave."""

    def eventually(probe, seconds=PATIENCE):
        deadline = time.monotonic() + seconds
        while not (found := probe()):
            assert time.monotonic() < deadline, f"did not come true within {seconds} s"
            time.sleep(0.02)
        return found

    return eventually
