"""Jobs in a store, and clients of the web application that shows them."""

from __future__ import annotations

import gc
import threading
import uuid

import pytest
from servers import running_redis
from web_kit import PATIENCE, everyone, new_states, serving


@pytest.fixture(scope="session")
def redis_url():
    with running_redis() as server:
        yield server.url


@pytest.fixture
def store_kind():
    """The store of a test; a test overrides it with a parameter of this name."""
    return "sqlite"


@pytest.fixture
def store_url(store_kind, tmp_path, request, monkeypatch):
    if store_kind == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if store_kind == "firestore":
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", request.getfixturevalue("emulator_process"))
        return f"firestore://web-{uuid.uuid4().hex[:12]}"
    if store_kind == "redis":
        return f"{request.getfixturevalue('redis_url')}?prefix={uuid.uuid4().hex}"
    return f"sqlite:///{tmp_path}/states.db"


@pytest.fixture
def states(store_url):
    states = new_states(store_url)
    yield states
    states.store.close()
    states.app.close()


@pytest.fixture
def submit(states):
    """Return a function that submits a job whose messages no worker takes."""

    @states.app.task(shared=False, name="web.work")
    def work(*args):
        return args

    def submit(job_id, rows=4, tags=("scan", "hash"), **options):
        from celery import chain

        members = (chain(*(states.tag(work.si(row), tag) for tag in tags)) for row in range(rows))
        return states.submit(members, job_id=job_id, **options)

    return submit


@pytest.fixture
def client(states):
    """A client of an application that allows everything."""
    with serving(states.web(everyone)) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Check that no thread of a stream outlives its clients."""
    yield
    gc.collect()
    for thread in threading.enumerate():
        if thread.name in {"statemanager-hub", "statemanager-summaries"}:
            thread.join(PATIENCE)
            assert not thread.is_alive()
