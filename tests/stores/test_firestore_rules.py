"""firestore.rules, as the emulator enforces them: people read, servers write."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import requests
from firestore_kit import listening

from celery_statemanager import Manager
from celery_statemanager.stores.firestore import Address, FirestoreStore
from celery_statemanager.stores.firestore.transports import Transport

RULES = (Path(__file__).parents[2] / "firestore.rules").read_text()
READABLE = ("jobs/job", "jobs/job/states/a:0")
HIDDEN = ("jobs/job/runs/x/tallies/a:0", "jobs_workers/w", "jobs_garbage/x", "others/x")


def _part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


class Ruled:
    """A project of the emulator's with our rules, seen as a browser sees it."""

    def __init__(self, host: str) -> None:
        self.project = f"test-{uuid.uuid4().hex[:12]}"
        self._documents = f"http://{host}/v1/projects/{self.project}/databases/(default)/documents"
        rules = {"rules": {"files": [{"name": "firestore.rules", "content": RULES}]}}
        requests.put(
            f"http://{host}/emulator/v1/projects/{self.project}:securityRules", json=rules, timeout=20
        ).raise_for_status()

    @property
    def somebody(self) -> dict[str, str]:
        """Give what a browser of a signed-in user sends; the emulator takes tokens without a signature."""
        issuer = f"https://securetoken.google.com/{self.project}"
        claims = {"sub": "u1", "user_id": "u1", "iss": issuer, "aud": self.project, "iat": 1, "exp": 9_999_999_999}
        return {"Authorization": f"Bearer {_part({'alg': 'none', 'type': 'JWT'})}.{_part(claims)}."}

    def does(self, verb: str, path: str, who: dict[str, str]) -> bool:
        """Whether somebody may do it."""
        body = {"json": {"fields": {}}} if verb == "PATCH" else {}
        answer = requests.request(verb, f"{self._documents}/{path}", headers=who, timeout=20, **body)
        assert answer.status_code in {200, 403, 404}, answer.text
        return answer.status_code != 403


@pytest.fixture
def ruled(firestore_emulator: str) -> Ruled:
    return Ruled(firestore_emulator)


@pytest.fixture(params=get_args(Transport))
def store(ruled: Ruled, request: pytest.FixtureRequest) -> Iterator[FirestoreStore]:
    with FirestoreStore(Address(ruled.project), timeout=10.0, transport=request.param) as store:
        yield store


def test_servers_are_not_subject_to_rules(store: FirestoreStore) -> None:
    with Manager.create(store, "job", num_tasks=1, task_index=0) as manager, listening(manager.subscribe()) as events:
        manager.set_state("a", 5)
        assert events.get(20).state.status == 5


def test_who_is_signed_in_reads_jobs_and_states_and_nobody_writes(ruled: Ruled) -> None:
    for path in READABLE:
        assert ruled.does("GET", path, ruled.somebody), path
        assert not ruled.does("GET", path, {}), path
    assert ruled.does("GET", "jobs/job/states", ruled.somebody)
    for path in HIDDEN:
        assert not ruled.does("GET", path, ruled.somebody), path
    for path in (*READABLE, *HIDDEN):
        for who in (ruled.somebody, {}):
            assert not ruled.does("PATCH", path, who), path
            assert not ruled.does("DELETE", path, who), path
