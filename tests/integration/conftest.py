"""One app, one store and one worker per pool for each pair of broker and store, shared by all integration tests."""

import importlib.util
import os
import sys
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent)]

from outages import outages  # noqa: E402
from postgres_kit import running_postgres  # noqa: E402
from project import Project  # noqa: E402
from rabbitmq import running_rabbitmq  # noqa: E402
from servers import running_redis  # noqa: E402
from workers import Worker  # noqa: E402

PATIENCE = 30.0

PLACES = [
    ("folders-sqlite", "prefork"),
    ("folders-sqlite", "threads"),
    ("folders-sqlite", "solo"),
    ("rabbitmq-redis", "prefork"),
    ("rabbitmq-redis", "threads"),
    ("redis-redis", "prefork"),
    ("redis-redis", "threads"),
    ("folders-sqlite", "gevent"),
]
"""Brokers, stores and pools in which every integration test runs."""

MORE_PLACES = [
    ("rabbitmq-sqlite", "prefork"),
    ("rabbitmq-sqlite", "threads"),
    ("redis-sqlite", "prefork"),
    ("redis-sqlite", "threads"),
    ("rabbitmq-redis", "solo"),
    ("redis-redis", "solo"),
    ("redis-redis", "gevent"),
    ("redis-postgres", "prefork"),
    ("rabbitmq-postgres", "threads"),
    ("redis-postgres", "gevent"),
]
"""More of them, added by ``--full``."""

CORE_FILES = {"test_attempts", "test_completion", "test_outbox", "test_submit"}
CORE_PLACES = [("redis-postgres", "prefork")]
"""Places in which only the tests of these files run without ``--full``."""

SLOW_PLACES = [("folders-sqlite", "prefork"), ("rabbitmq-redis", "prefork"), ("redis-redis", "threads")]
"""The combinations in which slow tests, which wait for the end of a lease, run without ``--full``; the first ones
include each store."""

FAULT_PLACES = [
    ("folders-sqlite", "prefork"),
    ("redis-redis", "threads"),
    ("rabbitmq-redis", "prefork"),
    ("redis-firestore", "prefork"),
]
"""The combinations in which processes, brokers and stores fail; with ``--full`` all of them."""


@contextmanager
def redis_url():
    with running_redis() as server:
        yield server.url


@contextmanager
def postgres_url():
    with running_postgres() as server:
        yield server.url


STARTED = {"postgres": postgres_url, "rabbitmq": running_rabbitmq, "redis": redis_url}


PREFIXES = {"redis": "?prefix={}", "postgres": "?prefix={}_"}
"""The option that distinguishes the settings that share a server."""


class Servers:
    """Servers of one setting, started at first use. Settings share no server, so their queues may have equal names."""

    def __init__(self, stack, start_emulator):
        self._stack = stack
        self._start_emulator = start_emulator
        self._running = {}

    def url(self, kind, home):
        if kind == "folders":
            return "filesystem://"
        if kind == "firestore":
            os.environ["FIRESTORE_EMULATOR_HOST"] = self._start_emulator()
            return f"firestore://test-{uuid.uuid4().hex[:12]}"
        if kind == "sqlite":
            return f"sqlite:///{home}/states.db"
        if kind == "redis1":
            return self.url("redis", home).removesuffix("0") + "1"
        if kind not in self._running:
            self._running[kind] = self._stack.enter_context(STARTED[kind]())
        return self._running[kind]


class Setting:
    """A broker, a store, the app that uses them, and its workers."""

    def __init__(self, name, home, servers):
        broker, store = name.split("-")
        self.home = home
        self.environment = {
            "TRACKED_HOME": str(home),
            "TRACKED_BROKER": servers.url(broker, home),
            "TRACKED_STORE": servers.url(store, home) + PREFIXES.get(store, "").format(name.replace("-", "_")),
        }
        if store == "firestore":
            self.environment["FIRESTORE_EMULATOR_HOST"] = os.environ["FIRESTORE_EMULATOR_HOST"]
            self.environment["TRACKED_STORE_TIMEOUT"] = "5"  # an emulator shares the machine with its clients
        self.tracked = load(self.environment)
        self._workers = {}

    def worker(self, pool):
        if pool not in self._workers:
            self._workers[pool] = Worker(self.environment, pool, pool)
        return self._workers[pool]

    def terminate_workers(self):
        """Terminate all workers at once, because each warm shutdown takes seconds on a polled broker."""
        for worker in self._workers.values():
            worker.process.terminate()

    def close(self):
        self.terminate_workers()
        for worker in self._workers.values():
            worker.stop()
        self.tracked.states.store.close()
        self.tracked.app.close()


def load(environment):
    """Import the app of the tests for one setting, as a module separate from those of other settings."""
    os.environ.update(environment)
    spec = importlib.util.spec_from_file_location("tracked", HERE / "tracked.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def settings(request, tmp_path_factory):
    """Yield a function that returns a setting by name."""
    with ExitStack() as stack:
        created = {}

        def get(name):
            if name not in created:
                servers = Servers(stack, lambda: request.getfixturevalue("emulator_process"))
                created[name] = Setting(name, tmp_path_factory.mktemp(name), servers)
                stack.callback(created[name].close)
            return created[name]

        yield get
        for setting in created.values():
            setting.terminate_workers()


@pytest.fixture
def start_worker(setting, place):
    """Yield a function that starts a worker of the setting on a queue; kill these workers at the end."""
    started = []

    def start(queue, *options, pool=None, **environment):
        started.append(Worker({**setting.environment, **environment}, pool or place[1], queue, *options))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def here(place, tmp_path, key, settings, request):
    """Yield a broker and a store of the place that the test may empty or take away. Its store is in a folder ``key``."""
    home = tmp_path / key
    home.mkdir()
    rabbitmq = lambda: settings("rabbitmq-redis").environment["TRACKED_BROKER"]  # noqa: E731
    with outages(place[0], home, rabbitmq, lambda: request.getfixturevalue("emulator_process")) as here:
        yield here


@pytest.fixture
def load_here(here):
    """Return a function that loads the app of the tests; close it at the end."""
    loaded = []

    def load_here(environment=None):
        loaded.append(load(environment or here.environment))
        return loaded[-1]

    yield load_here
    for each in loaded:
        each.states.store.close()
        each.app.close()


@pytest.fixture(scope="session")
def eager_tracked(tmp_path_factory):
    """Return the module of the app in eager mode, with a store in memory."""
    home = tmp_path_factory.mktemp("eager")
    tracked = load({"TRACKED_HOME": str(home), "TRACKED_BROKER": "memory://", "TRACKED_STORE": "memory://"})
    tracked.app.conf.task_always_eager = True
    return tracked


def pytest_generate_tests(metafunc):
    """Run each test in its places: pairs of a setting and a pool."""
    if "place" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("places")
        places = list(marker.args) if marker else PLACES + MORE_PLACES
        if not metafunc.config.getoption("--full"):
            slow = metafunc.definition.get_closest_marker("slow")
            if marker:
                places = places[: marker.kwargs.get("usual", 1)]
            else:
                places = SLOW_PLACES[: slow.kwargs.get("usual")] if slow else PLACES
                if not slow and Path(metafunc.module.__file__).stem in CORE_FILES:
                    places = places + CORE_PLACES
        metafunc.parametrize("place", places, ids="-".join, scope="session")


@pytest.fixture(scope="session")
def setting(place, settings):
    return settings(place[0])


@pytest.fixture(scope="session")
def pool(place, setting):
    setting.worker(place[1])
    return place[1]


@pytest.fixture(scope="session")
def tracked(setting):
    return setting.tracked


@pytest.fixture
def key():
    """Return a name that is unique to the test, for its notes."""
    return f"note-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def submit(tracked, pool):
    """Return a function that submits tasks to the worker of the tested pool."""

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
def start_configured_worker():
    """Yield a function that starts a worker with a given environment; kill these workers at the end."""
    started = []

    def start(environment, pool, queue, *options):
        started.append(Worker(environment, pool, queue, *options))
        return started[-1]

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()


@pytest.fixture
def eventually():
    """Return a function that polls until a condition is true, and returns its value."""

    def eventually(probe, seconds=PATIENCE):
        deadline = time.monotonic() + seconds
        while not (found := probe()):
            assert time.monotonic() < deadline, f"the condition was not true within {seconds} s"
            time.sleep(0.02)
        return found

    return eventually


@pytest.fixture
def project(tmp_path):
    """Return a function that creates a project of one module; close them at the end."""
    created = []

    def create(text, **others):
        created.append(Project(tmp_path, text, **others))
        return created[-1]

    yield create
    for each in created:
        each.close()
