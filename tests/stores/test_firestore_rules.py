"""firestore.rules, enforced by the emulator: signed-in users read, only servers write."""

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
from celery_statemanager.stores.firestore import FirestoreAddress, FirestoreStore
from celery_statemanager.stores.firestore.transports import Transport

RULES = (Path(__file__).parents[2] / "firestore.rules").read_text()
READABLE = ("jobs/job", "jobs/job/states/a:0")
HIDDEN = (
    "jobs/job/runs/x/tallies/a:0",
    "jobs/job/runs/x/blocks/0",
    "jobs/job/runs/x/outbox/state",
    "jobs_drafts/x",
    "jobs_workers/w",
    "jobs_garbage/x",
    "others/x",
)


def _part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


class ProjectWithRules:
    """A project in the emulator with our rules, accessed as from a browser."""

    def __init__(self, host: str) -> None:
        self.project_id = f"test-{uuid.uuid4().hex[:12]}"
        self._documents = f"http://{host}/v1/projects/{self.project_id}/databases/(default)/documents"
        rules = {"rules": {"files": [{"name": "firestore.rules", "content": RULES}]}}
        requests.put(
            f"http://{host}/emulator/v1/projects/{self.project_id}:securityRules", json=rules, timeout=20
        ).raise_for_status()

    @property
    def signed_in(self) -> dict[str, str]:
        """Return the headers of a signed-in user; the emulator accepts unsigned tokens."""
        issuer = f"https://securetoken.google.com/{self.project_id}"
        claims = {"sub": "u1", "user_id": "u1", "iss": issuer, "aud": self.project_id, "iat": 1, "exp": 9_999_999_999}
        return {"Authorization": f"Bearer {_part({'alg': 'none', 'type': 'JWT'})}.{_part(claims)}."}

    def is_allowed(self, verb: str, path: str, headers: dict[str, str]) -> bool:
        """Return whether the rules permit a request."""
        body = {"json": {"fields": {}}} if verb == "PATCH" else {}
        answer = requests.request(verb, f"{self._documents}/{path}", headers=headers, timeout=20, **body)
        assert answer.status_code in {200, 403, 404}, answer.text
        return answer.status_code != 403


@pytest.fixture
def project(firestore_emulator: str) -> ProjectWithRules:
    return ProjectWithRules(firestore_emulator)


@pytest.fixture(params=get_args(Transport))
def store(project: ProjectWithRules, request: pytest.FixtureRequest) -> Iterator[FirestoreStore]:
    with FirestoreStore(FirestoreAddress(project.project_id), timeout=10.0, transport=request.param) as store:
        yield store


def test_servers_are_not_subject_to_rules(store: FirestoreStore) -> None:
    with Manager.create(store, "job", num_tasks=1, task_index=0) as manager, listening(manager.subscribe()) as events:
        manager.set_state("a", 5)
        assert events.get(20).state.status == 5


def test_signed_in_users_read_jobs_and_states_and_cannot_write(project: ProjectWithRules) -> None:
    for path in READABLE:
        assert project.is_allowed("GET", path, project.signed_in), path
        assert not project.is_allowed("GET", path, {}), path
    assert project.is_allowed("GET", "jobs/job/states", project.signed_in)
    for path in HIDDEN:
        assert not project.is_allowed("GET", path, project.signed_in), path
    for path in (*READABLE, *HIDDEN):
        for headers in (project.signed_in, {}):
            assert not project.is_allowed("PATCH", path, headers), path
            assert not project.is_allowed("DELETE", path, headers), path
