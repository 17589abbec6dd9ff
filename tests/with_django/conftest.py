"""An app of Celery whose states are in a database of Django, with a file for each test."""

import itertools
import sys
from pathlib import Path

import pytest
from celery import Celery
from django_kit import at_file, new_database, set_up_django, use
from postgres_kit import running_postgres

set_up_django()
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from django.db import connection, connections, models  # noqa: E402

from celery_statemanager import StatefulTask, StateManager  # noqa: E402
from celery_statemanager.contrib.django.store import DjangoStore  # noqa: E402

_numbers = itertools.count()


class Order(models.Model):
    """A row of the application."""

    title = models.CharField(max_length=100)

    class Meta:
        app_label = "shop"

    def __str__(self):
        return self.title


@pytest.fixture(scope="session")
def postgres_server():
    with running_postgres() as server:
        yield server


@pytest.fixture
def new_postgres(postgres_server):
    """Return the settings of Django for a new database."""
    return new_database(postgres_server, f"shop_{next(_numbers)}")


@pytest.fixture
def engine(request):
    """The engine of the database of a test; a test overrides it with a parameter."""
    return getattr(request, "param", "sqlite")


@pytest.fixture
def empty_database(engine, tmp_path, request):
    """Point the aliases of Django to databases of this test."""
    for alias in ("default", "other"):
        at_file(alias, tmp_path)
    if engine == "postgresql":
        use("default", **request.getfixturevalue("new_postgres"))
    with connection.schema_editor() as editor:
        editor.create_model(Order)
    yield connection
    for alias in ("default", "other"):
        connections[alias].close()


@pytest.fixture
def database(empty_database):
    """Create the tables of states, as a migration does."""
    store = DjangoStore("default")
    store.create_tables()
    store.close()
    return empty_database


@pytest.fixture
def new_app(empty_database):
    """Yield a function that creates an app and its StateManager; close their stores at the end."""
    created = []

    def create(store="django://default", **conf):
        app = Celery(f"shop{next(_numbers)}", broker="memory://", set_as_current=False)
        app.conf.update(
            {
                "statemanager_store_url": store,
                "statemanager_store_timeout": 2.0,
                "task_default_queue": app.main,
                "task_ignore_result": True,
                **conf,
            }
        )

        @app.task(base=StatefulTask, name="pack", tag="pack", shared=False)
        def pack(number, fails=False):
            if fails:
                raise OSError("no box left")
            return number

        states = StateManager(app)
        states.pack = pack
        created.append(states)
        return states

    yield create
    for states in created:
        if "store" in vars(states):
            states.store.close()
        states.app.close()


@pytest.fixture
def states(database, new_app):
    return new_app()


@pytest.fixture
def make_default():
    """Yield a function that makes an app the current one of all threads, as that of a project is."""

    def make_default(states):
        states.app.set_current()
        states.app.set_default()
        return states

    yield make_default
    Celery("unused").set_default()


@pytest.fixture
def orders(empty_database):
    return Order.objects


def published(states):
    """Return how many messages wait in the queue of the broker in memory."""
    with states.app.connection_for_read() as broker:
        return broker.default_channel.queue_declare(states.app.main, passive=False).message_count


@pytest.fixture(name="published")
def published_fixture():
    return published
