"""What the Firestore store says of what cannot be: one clear error, soon."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulator import free_port
from firestore_kit import Spy

from celery_statemanager import ConfigurationError, Manager, StoreError, StoreUnavailable, open_store
from celery_statemanager.stores.firestore import Address, FirestoreStore
from celery_statemanager.testing.kit import Grid


@pytest.fixture
def spy() -> Spy:
    return Spy()


@pytest.fixture
def store(firestore_emulator: str, spy: Spy) -> Iterator[FirestoreStore]:
    with spy.store(Address(f"test-{uuid.uuid4().hex[:12]}")) as store:
        yield store


def test_a_dead_server_costs_no_more_than_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    with open_store("firestore://test-down", timeout=1.0) as store:
        for use in (
            lambda: Manager.create(store, "job", num_tasks=1),
            lambda: Manager.open(store, "job"),
            lambda: store.put_worker("w", "", 1),
            store.now,
        ):
            since = time.monotonic()
            with pytest.raises(StoreUnavailable, match="gave up after 1 s") as down:
                use()
            assert time.monotonic() - since < 3
            assert down.value.__cause__ is not None


def test_no_credentials_are_told_with_the_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    since = time.monotonic()
    with open_store("firestore://some-project") as store, pytest.raises(StoreError, match="gcloud auth"):
        Manager.open(store, "job")
    assert time.monotonic() - since < 10


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("firestore://", "project"),
        ("firestore://BadProject", "lower-case"),
        ("firestore://p/a/b", "collection"),
        ("firestore://p/__x__", "collection"),
        ("firestore://p?database=BAD", "database"),
        ("firestore://p?databse=x", "option"),
    ],
)
def test_a_bad_url_is_told_without_connecting(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        open_store(url)


def test_urls_name_collection_and_database() -> None:
    assert repr(open_store("firestore://my-project")) == "<FirestoreStore firestore://my-project/jobs>"
    assert repr(open_store("firestore://my-project/etl?database=other")) == (
        "<FirestoreStore firestore://my-project/etl?database=other>"
    )


def test_what_is_too_large_for_a_document_is_told_before_it_is_sent(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 1)
    spy.clear()
    with pytest.raises(StoreError, match="Firestore allows 1000000"):
        grid.write("a", 0, 5, message="x" * 1_000_001)
    with pytest.raises(StoreError, match="Firestore allows 1500"):
        grid.write("x" * 1_501, 0, 5)
    assert spy.calls["Commit"] == 0
