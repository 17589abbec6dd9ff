"""What a job tells of itself: its metadata, its times and its phase."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from celery import Celery

from celery_statemanager import JobNotFound, StatefulTask, StateManager, open_store
from celery_statemanager.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def states(clock):
    app = Celery("readers", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    states = StateManager(app)
    states.store = open_store("memory://", clock=clock)
    yield states
    app.close()


@pytest.fixture
def submit(states):
    """Return a function that submits a job whose rows never run."""

    @states.app.task(shared=False, base=StatefulTask)
    def task(): ...

    def submit(rows=1, **options):
        return states.submit([task.s() for _ in range(rows)], **options)

    return submit


def test_the_metadata_of_a_job_are_read_by_every_handle(states, submit):
    given = {"owner": "ada", "title": "Catalogue", "pages": [1, {"deep": None}]}
    job = submit(job_id="job", metadata=given)
    given["owner"] = "bob"
    assert job.metadata == states.job("job").metadata == {**given, "owner": "ada"}
    job.metadata["owner"] = "eve"
    assert job.metadata["owner"] == "ada"
    assert submit().metadata == submit(metadata={}).metadata == {}
    job.pause()
    job.resume()
    assert states.job("job").metadata["owner"] == "ada"


def test_the_metadata_of_an_eager_job_are_stored(states, submit):
    states.app.conf.task_always_eager = True
    assert submit(job_id="job", metadata={"owner": "ada"}).settled
    assert states.job("job").metadata == {"owner": "ada"}


@pytest.mark.parametrize(
    ("metadata", "error", "text"),
    [
        ("ada", TypeError, "metadata must be a JSON object"),
        ({"at": datetime.now(timezone.utc)}, TypeError, "metadata is not valid JSON"),
        ({"share": float("nan")}, ValueError, "metadata is not valid JSON"),
        ({"title": "x" * 5_000}, ValueError, "metadata takes 5012 bytes as JSON, the limit is 4096"),
    ],
)
def test_invalid_metadata_are_refused_before_a_member_is_read(states, submit, metadata, error, text):
    read = []
    with pytest.raises(error, match=text):
        states.submit((read.append(row) for row in range(3)), job_id="job", metadata=metadata)
    assert not read
    with pytest.raises(JobNotFound):
        states.job("job")


def test_the_creation_of_a_job_is_an_aware_time_of_the_stores_clock(states, submit, clock):
    before = datetime.fromtimestamp(clock(), timezone.utc)
    job = submit(job_id="job")
    clock.advance(60)
    assert job.created_at == states.job("job").created_at == before
    assert job.created_at.tzinfo is timezone.utc
