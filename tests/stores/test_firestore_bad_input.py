"""The Firestore store reports invalid input and unusable projects quickly, with one clear error."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from firestore_kit import Spy

from celery_statemanager import ConfigurationError, Manager, StoreError, StoreUnavailable, open_store
from celery_statemanager.stores.firestore import FirestoreStore
from celery_statemanager.testing.kit import Grid
from celery_statemanager.testing.ports import free_port


@pytest.fixture
def store(spied: FirestoreStore) -> FirestoreStore:
    return spied


def test_a_dead_server_takes_no_longer_than_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    with open_store("firestore://test-unavailable", timeout=1.0) as store:
        for use in (
            lambda: Manager.create(store, "job", num_tasks=1),
            lambda: Manager.open(store, "job"),
            lambda: store.put_worker("w", "", 1),
            store.now,
        ):
            since = time.monotonic()
            with pytest.raises(StoreUnavailable, match="gave up after 1 s") as caught:
                use()
            assert time.monotonic() - since < 10
            assert caught.value.__cause__ is not None


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_an_unavailable_emulator_is_named(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    host = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", host)
    with open_store("firestore://test-unavailable", timeout=0.2, transport=transport) as store:
        with pytest.raises(
            StoreUnavailable, match=rf"is the emulator at {host} running\? FIRESTORE_EMULATOR_HOST names it"
        ):
            Manager.open(store, "job")


@pytest.mark.parametrize(
    ("code", "details", "hint"),
    [
        ("PERMISSION_DENIED", "Permission denied on resource project p.", "roles/datastore.user"),
        ("PERMISSION_DENIED", "Cloud Firestore API has not been used in project p before", "firestore-init"),
        ("NOT_FOUND", "The database (default) does not exist for project p", "firestore-init"),
        ("FAILED_PRECONDITION", "The query requires an index.", "firestore-indexes"),
        (
            "FAILED_PRECONDITION",
            "The Cloud Firestore API is not available for Firestore in Datastore Mode database",
            "native mode",
        ),
    ],
)
def test_a_wrong_project_is_reported_at_once_with_a_hint(
    store: FirestoreStore, spy: Spy, code: str, details: str, hint: str
) -> None:
    grid = Grid.create(store)
    spy.clear()
    spy.fault = lambda method, request: ("before", grpc.StatusCode[code], details)
    uses = [lambda: Grid.create(store, job_id="other"), lambda: grid.write("a", 0, 5), grid.manager]
    for use in uses:
        with pytest.raises(StoreError, match=hint) as caught:
            use()
        assert details in str(caught.value)
        assert not isinstance(caught.value, StoreUnavailable)
    assert spy.total == len(uses), "a permanent error must not be retried"


@pytest.mark.firestore
def test_missing_credentials_are_reported_when_the_metadata_server_does_not_respond(tmp_path: Path) -> None:
    code = "from celery_statemanager import *; Manager.open(open_store('firestore://some-project'), 'job')"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "GCE_METADATA_IP": host,
            "GCE_METADATA_HOST": host,
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False
        )
        silent.setblocking(False)
        with contextlib.closing(silent.accept()[0]), pytest.raises(BlockingIOError):
            silent.accept()  # asked once, not three times
    assert b"gcloud auth application-default login" in done.stderr


def test_a_missing_key_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    with open_store("firestore://some-project") as store, pytest.raises(StoreError, match=r"/nowhere/key\.json"):
        Manager.open(store, "job")


def test_missing_credentials_are_reported_with_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    ("url", "message"),
    [
        ("firestore://", "project"),
        ("firestore://BadProject", "lower-case"),
        ("firestore://p/a/b", "collection"),
        ("firestore://p/__x__", "collection"),
        ("firestore://p?database=BAD", "database"),
        ("firestore://p?databse=x", "option"),
    ],
)
def test_an_invalid_url_is_rejected_without_connecting(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_store(url)


def test_a_url_names_collection_and_database() -> None:
    assert repr(open_store("firestore://my-project")) == "<FirestoreStore firestore://my-project/jobs>"
    assert repr(open_store("firestore://my-project/etl?database=other")) == (
        "<FirestoreStore firestore://my-project/etl?database=other>"
    )


def test_a_too_large_document_is_rejected_before_it_is_sent(store: FirestoreStore, spy: Spy) -> None:
    grid = Grid.create(store, 1)
    spy.clear()
    with pytest.raises(StoreError, match="Firestore allows 1000000"):
        grid.write("a", 0, 5, message="x" * 1_000_001)
    with pytest.raises(StoreError, match="Firestore allows 1500"):
        grid.write("x" * 1_501, 0, 5)
    assert spy.calls["Commit"] == 0
