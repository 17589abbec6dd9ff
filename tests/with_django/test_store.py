"""The store ``django://alias`` (rule R27)."""

import sqlite3
import time
from contextlib import closing

import pytest
from django.db import connection, transaction
from django.test import override_settings
from django_kit import SQLITE, at_file, rolled_back, use
from sqlite_kit import forked

from celery_statemanager import ConfigurationError, Manager, StatefulTask, StoreUnavailable, open_store
from celery_statemanager.contrib.django.store import PREFIX


@pytest.fixture
def store(database):
    with open_store("django://default", timeout=2.0) as store:
        yield store


@pytest.fixture
def manager(store):
    return Manager.create(store, "etl", num_tasks=2, task_index=0)


BOTH = pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)


@BOTH
def test_states_inside_a_transaction_are_visible_at_once_and_survive_a_rollback(store, manager):
    with rolled_back():
        manager.set_state("load", 10)
        with open_store("django://default") as other:
            assert Manager.open(other, "etl").get_state("load", 0).status == 10
    assert manager.get_state("load", 0).status == 10


def test_a_write_does_not_wait_long_for_the_lock_of_its_own_thread(store, manager, orders):
    with transaction.atomic():
        orders.create(title="takes the lock")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="using='default'"):
            manager.set_state("load", 10)
        assert time.monotonic() - began < 1.5
        assert manager.get_state("load", 0).status == 0  # readers do not wait
    manager.set_state("load", 10)


def test_a_task_whose_transaction_has_written_runs_on(new_app, database, orders):
    states = new_app(task_always_eager=True, statemanager_progress_interval=0.0)

    @states.app.task(base=StatefulTask, bind=True, tag="write", shared=False)
    def write(self):
        with transaction.atomic():
            orders.create(title="takes the lock")
            for step in range(5):
                self.state.progress(step, 5)

    began = time.monotonic()
    job = states.submit([write.s()])
    assert job.wait(30).finished == 1
    assert time.monotonic() - began < 10
    assert orders.count() == 1


def test_the_tables_of_the_application_stay_as_they_are(database, store, manager, orders):
    manager.set_state("load", 10)
    orders.create(title="books")
    with closing(sqlite3.connect(database.settings_dict["NAME"])) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")}
        assert db.execute("SELECT count(*) FROM job").fetchone() == (0,)
        assert db.execute("PRAGMA application_id").fetchone() == (0,)
        assert db.execute("PRAGMA user_version").fetchone() == (0,)
    others = {name for name in tables if not name.startswith(PREFIX)}
    assert others == {"job", "shop_order"}
    assert f"{PREFIX}cell_status" in tables
    assert orders.count() == 1


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_on_postgresql_states_are_visible_although_the_transaction_has_written(store, manager, orders):
    with rolled_back():
        orders.create(title="locks a row")
        manager.set_state("load", 10)
        with open_store("django://default") as other:
            assert Manager.open(other, "etl").get_state("load", 0).status == 10
    assert manager.get_state("load", 0).status == 10


def test_the_store_follows_the_settings_of_the_database(store, manager, tmp_path, new_postgres):
    (tmp_path / "test").mkdir()
    at_file("default", tmp_path / "test")
    assert store.list_jobs().jobs == []
    use("default", **new_postgres)
    assert store.list_jobs().jobs == []
    use("default", ENGINE=SQLITE, NAME=f"file:{tmp_path / 'default.sqlite3'}")
    assert [job.job_id for job in store.list_jobs().jobs] == ["etl"]


def test_options_of_django_are_no_parameters_of_the_server(store, new_postgres):
    options = {"assume_role": "postgres", "server_side_binding": True, "sslmode": "disable", "connect_timeout": 3}
    use("default", **new_postgres, OPTIONS=options)
    try:
        assert store.list_jobs().jobs == []
    finally:
        use("default", OPTIONS={})


def test_a_server_that_cannot_be_reached_is_an_error(store, new_postgres):
    use("default", **{**new_postgres, "PORT": "1", "PASSWORD": "secret"})
    with pytest.raises(StoreUnavailable) as raised:
        store.list_jobs()
    use("default", PASSWORD="")
    assert "secret" not in str(raised.value)


def test_a_database_of_a_newer_release_is_refused(database, store):
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {PREFIX}schema SET version = 99")
    with pytest.raises(ConfigurationError, match="newer release"):
        store.list_jobs()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("django://missing", r"no database 'missing' \(known: 'default', 'other', 'memory', 'dummy'\)"),
        ("django://dummy", "SQLite or PostgreSQL; name another alias"),
        ("django://", "must name one alias"),
        ("django://default/path", "must name one alias"),
        ("django://default?timeout=3", "must name one alias"),
    ],
)
def test_a_url_that_cannot_be_used(database, url, reason):
    with pytest.raises(ConfigurationError, match=reason):
        open_store(url)


def test_a_database_in_memory_cannot_be_used(database):
    with pytest.raises(ConfigurationError, match="memory://"):
        open_store("django://memory")


def test_the_store_can_be_used_after_a_fork(store, manager):
    manager.set_state("load", 10)
    wait = forked(lambda: Manager.open(store, "etl", task_index=1).set_state("load", 20))
    wait()
    assert manager.get_state("load", 1).status == 20


def test_an_app_that_is_not_installed_is_logged(database, caplog):
    with override_settings(INSTALLED_APPS=[]):
        open_store("django://default").close()
    assert "is not in INSTALLED_APPS" in caplog.text


def test_unknown_options_are_refused(database):
    with pytest.raises(ConfigurationError, match="surprise"):
        open_store("django://default", surprise=True)


def test_the_file_gets_a_write_ahead_log_when_no_connection_prevents_it(database, orders):
    def mode(wanted=""):
        with closing(sqlite3.connect(database.settings_dict["NAME"])) as db:
            return db.execute(f"PRAGMA journal_mode {wanted}").fetchone()[0]

    assert mode() == "wal"
    database.close()
    assert mode("= DELETE") == "delete"
    with open_store("django://default", timeout=0.2) as store, transaction.atomic():
        orders.count()  # a reader
        assert store.list_jobs().jobs == []
        assert mode() == "delete"
    with open_store("django://default") as store:
        store.list_jobs()
    assert mode() == "wal"
