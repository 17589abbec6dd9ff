"""PostgreSQL: what a user gets wrong raises one clear error within the timeout, without the password."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from postgres_kit import PostgresServer, running_postgres

from celery_statemanager import ConfigurationError, StoreError, StoreUnavailable, open_store
from celery_statemanager.records import new_job
from celery_statemanager.stores.postgres import setup
from celery_statemanager.stores.postgres.address import PostgresAddress, parse
from celery_statemanager.stores.postgres.names import Names
from celery_statemanager.stores.postgres.schema import VERSION, create_statements, drop_statements

SECRET = "very-secret"
HBA = """
hostnossl all needs_ssl 127.0.0.1/32 reject
hostssl all needs_ssl 127.0.0.1/32 trust
host all needs_password 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
local all all trust
"""


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Run a server that asks for passwords and encryption."""
    with running_postgres() as server:
        server.stop()
        (server.data / "pg_hba.conf").write_text(HBA)
        server.start()
        server.execute(f"CREATE ROLE needs_password LOGIN PASSWORD '{SECRET}'")
        server.execute("CREATE ROLE needs_ssl LOGIN")
        server.execute("CREATE ROLE weak LOGIN")
        yield server


def error_of(call: Callable[[], object]) -> StoreError:
    with pytest.raises(StoreError) as caught:
        call()
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__)
    return caught.value


def failing(url: str, **options: object) -> StoreError:
    with open_store(url, **options) as store:  # type: ignore[arg-type]
        return error_of(store.now)


def test_a_wrong_password(strict: PostgresServer) -> None:
    error = failing(strict.url_of(user="needs_password", password=SECRET + "x"))
    assert "refused the user name or password" in str(error)
    assert not isinstance(error, StoreUnavailable)
    with open_store(strict.url_of(user="needs_password", password=SECRET)) as store:
        assert "does not permit" in str(error_of(store.now)) or store.now()
        assert SECRET not in repr(store)


def test_an_unknown_user_and_an_unknown_database(strict: PostgresServer) -> None:
    assert "refused the user name or password" in str(failing(strict.url_of(user="nobody")))
    assert "has no database of this name" in str(failing(strict.url_of("missing")))


def test_a_parameter_that_the_client_refuses(strict: PostgresServer) -> None:
    error = failing(f"{strict.url}?connect_timeout=soon")
    assert "'soon'" in str(error)
    assert not isinstance(error, StoreUnavailable)


def test_a_server_that_requires_encryption_and_one_that_has_none(strict: PostgresServer) -> None:
    for url in (strict.url_of(user="needs_ssl"), f"{strict.url}?sslmode=require"):
        error = failing(url)
        assert "do not agree on encryption" in str(error)
        assert not isinstance(error, StoreUnavailable)


def test_a_user_without_rights_needs_existing_tables(strict: PostgresServer) -> None:
    strict.execute("CREATE SCHEMA states")
    weak = strict.url_of(user="weak") + "?schema=states"
    assert "does not permit" in str(failing(weak))
    strict.execute("GRANT USAGE ON SCHEMA states TO weak")
    with open_store(f"{strict.url}?schema=states") as owner:
        owner.create_tables()
        owner.create_tables()
    assert "does not permit" in str(failing_create(weak))
    strict.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA states TO weak")
    with open_store(weak) as store:
        store.create_tables()
        job = store.create_job(new_job("job", 3))
        assert store.get_job(job.key) == job


def failing_create(url: str) -> StoreError:
    with open_store(url) as store:
        return error_of(lambda: store.create_job(new_job("job", 3)))


def test_tables_of_another_release(strict: PostgresServer) -> None:
    url = f"{strict.url}?schema=other_release"
    with open_store(url) as store:
        store.now()
    for version, hint in ((VERSION + 1, "newer release"), (VERSION - 1, "run celery migrate-state --schema")):
        strict.execute(f"UPDATE other_release.statemanager_meta SET version = {version}")
        error = failing(url)
        assert hint in str(error)
        assert not isinstance(error, StoreUnavailable)


def test_a_server_that_is_too_old_or_has_another_encoding(strict: PostgresServer) -> None:
    address = PostgresAddress({"host": "db", "dbname": "x"})
    with pytest.raises(StoreError, match="PostgreSQL 12, which is too old: version 13"):
        setup._check_server(address, 120_009, "UTF8")
    strict.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    assert "LATIN1: create one with the encoding UTF8" in str(failing(strict.url_of("latin")))


def test_a_server_that_is_not_there_or_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        error = failing(f"postgresql://u:{SECRET}@127.0.0.1:{port}/x", timeout=1.0)
        assert "did not answer within 1 s" in str(error)
        assert time.monotonic() - start < 10
    error = failing(f"postgresql://u:{SECRET}@127.0.0.1:{port}/x")
    assert isinstance(error, StoreUnavailable)
    assert "cannot be reached" in str(error)


@pytest.mark.parametrize(
    "query", ["schema=a-b", "prefix=a b", "schema=" + 41 * "x", "unknown=1", "timeout=-1", "timeout=x"]
)
def test_a_bad_option(query: str) -> None:
    url = f"postgresql://u:{SECRET}@h/db?{query}"
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert SECRET not in str(caught.value)


def test_options_are_parsed_from_the_url_and_beside_it() -> None:
    address = parse(f"postgres://u:{SECRET}@h:5433/db?schema=s&sslmode=require", 3.0, {"prefix": "p_", "timeout": 2})
    assert (address.schema, address.prefix, address.timeout) == ("s", "p_", 2.0)
    assert (address.shown, address.parameters["sslmode"]) == ("postgresql://u@h:5433/db", "require")
    assert SECRET not in repr(address)
    assert "s3" in parse("postgresql:///db?host=/run/postgresql", 3.0, {"schema": "s3"}).schema  # type: ignore[operator]


def test_processes_create_the_tables_at_the_same_time(strict: PostgresServer) -> None:
    stores = [open_store(f"{strict.url}?schema=together") for _ in range(6)]
    failed: list[BaseException] = []

    def use(store: object) -> None:
        try:
            store.now()  # type: ignore[attr-defined]
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    threads = [threading.Thread(target=use, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread, store in zip(threads, stores):
        thread.join()
        store.close()
    assert failed == []


def test_the_statements_of_a_schema_can_be_run_and_reverted_by_a_migration(strict: PostgresServer) -> None:
    for names in (Names(), Names("public", 'odd"prefix_')):
        with strict.connect() as db, db.transaction():
            for statement in (*create_statements(names), *drop_statements(names)):
                db.execute(statement)
    left = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'statemanager%' AND schemaname = 'public'"
    assert strict.execute(left) == [(0,)]
