"""One app, one store and one worker per pool for each setting of broker and store, shared by all acceptance tests."""

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
"""Brokers, stores and pools that every acceptance test meets."""

MORE_PLACES = [
    ("rabbitmq-sqlite", "prefork"),
    ("rabbitmq-sqlite", "threads"),
    ("redis-sqlite", "prefork"),
    ("redis-sqlite", "threads"),
    ("rabbitmq-redis", "solo"),
    ("redis-redis", "solo"),
    ("redis-redis", "gevent"),
]
"""Those that ``--full`` adds."""

SLOW_PLACES = [("folders-sqlite", "prefork"), ("rabbitmq-redis", "prefork"), ("redis-redis", "threads")]
"""Where tests that wait for a lease to end are run without ``--full``."""


@contextmanager
def redis_url():
    with running_redis() as server:
        yield server.url


STARTED = {"rabbitmq": running_rabbitmq, "redis": redis_url}


class Servers:
    """Servers of one setting, each started when first asked for: queues of the same name are another setting's elsewhere."""

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
    """A broker and a store, the app that uses them, and its workers."""

    def __init__(self, name, home, servers):
        broker, store = name.split("-")
        self.home = home
        self.environment = {
            "TRACKED_HOME": str(home),
            "TRACKED_BROKER": servers.url(broker, home),
            "TRACKED_STORE": servers.url(store, home) + (f"?prefix={name}" if store == "redis" else ""),
        }
        if store == "firestore":
            self.environment["TRACKED_STORE_TIMEOUT"] = "5"  # an emulator shares the machine with what it serves
        self.tracked = load(self.environment)
        self._workers = {}

    def worker(self, pool):
        if pool not in self._workers:
            self._workers[pool] = Worker(self.environment, pool, pool)
        return self._workers[pool]

    def ask_to_stop(self):
        """Let all workers stop at the same time: a warm shutdown takes some seconds on a polled broker."""
        for worker in self._workers.values():
            worker.process.terminate()

    def close(self):
        self.ask_to_stop()
        for worker in self._workers.values():
            worker.stop()
        self.tracked.states.store.close()
        self.tracked.app.close()


def load(environment):
    """Import the app of the tests for a setting, beside those of the others."""
    os.environ.update(environment)
    spec = importlib.util.spec_from_file_location("tracked", HERE / "tracked.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def settings(request, tmp_path_factory):
    """Give settings by name."""
    with ExitStack() as stack:
        made = {}

        def get(name):
            if name not in made:
                servers = Servers(stack, lambda: request.getfixturevalue("emulator_process"))
                made[name] = Setting(name, tmp_path_factory.mktemp(name), servers)
                stack.callback(made[name].close)
            return made[name]

        yield get
        for setting in made.values():
            setting.ask_to_stop()


@pytest.fixture
def victim(setting, place):
    """Start workers of a test's own, on a queue of their own; what is left of them is killed."""
    started = []

    def start(queue, *options, pool=None, **environment):
        started.append(Worker({**setting.environment, **environment}, pool or place[1], queue, *options))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture(scope="session")
def eager(tmp_path_factory):
    """Give the app in eager mode, on a store in memory."""
    home = tmp_path_factory.mktemp("eager")
    tracked = load({"TRACKED_HOME": str(home), "TRACKED_BROKER": "memory://", "TRACKED_STORE": "memory://"})
    tracked.app.conf.task_always_eager = True
    return tracked


def pytest_generate_tests(metafunc):
    """Give each test its places: all settings and pools that it shall meet."""
    if "place" in metafunc.fixturenames:
        own = metafunc.definition.get_closest_marker("places")
        places = list(own.args) if own else PLACES + MORE_PLACES
        if not metafunc.config.getoption("--full"):
            slow = metafunc.definition.get_closest_marker("slow")
            places = places[: own.kwargs.get("usual", 1)] if own else SLOW_PLACES if slow else PLACES
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
def hired():
    """Start workers of a test's own; none is left."""
    started = []

    def hire(environment, pool, queue, *options):
        started.append(Worker(environment, pool, queue, *options))
        return started[-1]

    yield hire
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()


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
