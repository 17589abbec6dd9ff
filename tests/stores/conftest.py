"""The fixtures that run a test on every store. To add a store, add an entry to ``FACTORIES``."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from postgres_kit import PostgresServer, running_postgres
from servers import RedisServer, running_cluster, running_redis

from celery_statemanager import Store, open_store
from celery_statemanager.stores.firestore.timings import Timings
from celery_statemanager.stores.redis.keys import ref_of
from celery_statemanager.testing import CoreContract, StoreFactory

if TYPE_CHECKING:  # gRPC installs fork handlers, so tests of other stores do not import it
    from firestore_kit import Spy
    from redis import Redis

    from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
    from celery_statemanager.stores.redis import RedisStore

QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile("quick", max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=QUIET)
settings.register_profile("full", max_examples=300, stateful_step_count=80, deadline=None, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def memory(request: pytest.FixtureRequest) -> StoreFactory:
    return StoreFactory(lambda **options: open_store("memory://", **options), takes_clock=True)


def sqlite(request: pytest.FixtureRequest) -> StoreFactory:
    path: Path = request.getfixturevalue("tmp_path")
    url = f"sqlite:///{path / 'states.db'}"
    return StoreFactory(lambda **options: open_store(url, **options), url, takes_clock=True)


def django(request: pytest.FixtureRequest) -> StoreFactory:
    """Return a factory of stores in a file of Django, which has other tables."""
    from django_kit import at_file, set_up_django

    set_up_django()
    at_file("default", request.getfixturevalue("tmp_path"))
    return StoreFactory(lambda **options: open_store("django://default", **options), takes_clock=True)


def firestore(request: pytest.FixtureRequest) -> StoreFactory:
    """Return a factory with a project of its own, which the emulator creates at its first use."""
    return _firestore(request)


def firestore_rest(request: pytest.FixtureRequest) -> StoreFactory:
    function = getattr(request.function, "__func__", request.function)
    if function is CoreContract.test_different_names_never_share_a_cell_or_a_job:
        pytest.skip("the emulator treats a colon in a document name as the end of the URL, even if it is escaped")
    return _firestore(request, transport="rest")


def _firestore(request: pytest.FixtureRequest, **chosen: Any) -> StoreFactory:
    request.getfixturevalue("firestore_emulator")
    chosen["timings"] = request.getfixturevalue("timings")
    url = f"firestore://test-{uuid.uuid4().hex[:8]}-{next(_numbers)}"
    return StoreFactory(lambda **options: open_store(url, **chosen, **options), url)


def redis(request: pytest.FixtureRequest) -> StoreFactory:
    return _redis(request, request.getfixturevalue("redis_server").url)


def redis_cluster(request: pytest.FixtureRequest) -> StoreFactory:
    return _redis(request, request.getfixturevalue("redis_nodes")[0].url + "?cluster=true")


def _redis(request: pytest.FixtureRequest, url: str) -> StoreFactory:
    """Return a factory with a prefix of its own; check afterwards that deleted jobs leave no key."""
    prefix = f"test-{next(_numbers)}"
    url += f"{'&' if '?' in url else '?'}prefix={prefix}"
    request.addfinalizer(lambda: assert_no_keys_left(url, prefix))
    return StoreFactory(lambda **options: open_store(url, **options), url)


def postgres(request: pytest.FixtureRequest) -> StoreFactory:
    """Return a factory with a schema of its own, which its first store creates."""
    url = f"{request.getfixturevalue('postgres_server').url}?schema=test_{next(_numbers)}"
    return StoreFactory(lambda **options: open_store(url, **options), url)


FACTORIES: dict[str, Callable[[pytest.FixtureRequest], StoreFactory]] = {
    "memory": memory,
    "sqlite": sqlite,
    "django": django,
    "firestore": firestore,
    "firestore-rest": firestore_rest,
    "redis": redis,
    "redis-cluster": redis_cluster,
    "postgres": postgres,
}
_numbers = itertools.count()


@pytest.fixture(params=FACTORIES)
def store_factory(request: pytest.FixtureRequest) -> StoreFactory:
    """Return the factory of one store."""
    return FACTORIES[request.param](request)


@pytest.fixture
def firestore_emulator(emulator_process: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the client libraries at the emulator."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", emulator_process)
    return emulator_process


@pytest.fixture
def timings() -> Timings:
    """Return the periods of a test's Firestore stores. A test overrides them with a parameter of this name.

    About one stream in a thousand of the emulator stops in the middle of its first snapshot and stays silent.
    """
    return Timings(poll_every=0.05, first_silence=5.0, silence=5.0, stream_check=0.5)


@pytest.fixture
def spy() -> Spy:
    """Return a spy that counts and changes calls to Firestore."""
    from firestore_kit import Spy

    return Spy()


@pytest.fixture
def address(firestore_emulator: str) -> FirestoreAddress:
    """Return the address of an empty Firestore database."""
    from celery_statemanager.stores.firestore import FirestoreAddress

    return FirestoreAddress(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def spied(address: FirestoreAddress, spy: Spy, timings: Timings) -> Iterator[FirestoreStore]:
    """Yield a Firestore store whose calls pass through ``spy``."""
    with spy.store(address, timings=timings) as store:
        yield store


@pytest.fixture
def other(address: FirestoreAddress) -> Iterator[FirestoreStore]:
    """Yield the Firestore store of another process."""
    from celery_statemanager.stores.firestore import FirestoreStore

    with FirestoreStore(address, timeout=10.0) as other:
        yield other


@pytest.fixture
def store(store_factory: StoreFactory) -> Iterator[Store]:
    """Yield an empty store."""
    with store_factory.make() as store:
        yield store


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Run a redis-server, shared by all tests that do not disturb it."""
    with running_redis() as server:
        yield server


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Redis]:
    """Yield a client of the shared redis-server."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def prefix() -> str:
    """Return a prefix of keys that only this test uses."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def redis_store(redis_server: RedisServer, prefix: str) -> Iterator[RedisStore]:
    """Yield an empty store on the shared redis-server."""
    with open_store(redis_server.url, prefix=prefix) as store:
        yield store


@pytest.fixture(scope="session")
def redis_nodes() -> Iterator[list[RedisServer]]:
    """Run a Redis cluster of three nodes, shared by all tests that do not disturb it."""
    with running_cluster() as servers:
        yield servers


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Run a PostgreSQL server, shared by all tests of this process that do not disturb it."""
    with running_postgres() as server:
        yield server


def assert_no_keys_left(url: str, prefix: str) -> None:
    """Delete every job, draft and worker of a store and check that no key of its prefix is left."""
    with open_store(url) as store:
        for entry, _ in store._registry.page(store._registry.keys.drafts, None, 1_000):
            store.drop_draft(ref_of(entry))
        while jobs := store.list_jobs().jobs:
            for job in jobs:
                store.delete_job(job)
        while store.purge():
            pass
        for worker in store.list_workers():
            store.drop_worker(worker.worker_id)
        assert list(store._server.client.scan_iter(f"{prefix}:*")) == []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many examples the state machines ran."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        counts = dict(report.user_properties)
        if report.when == "call" and "examples" in counts:
            terminalreporter.write_line(f"{report.nodeid}: {counts['examples']} examples, {counts['steps']} steps")
