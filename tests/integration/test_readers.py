"""What a job tells of itself: its metadata, its times and its phase."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import uuid
from datetime import datetime, timezone

import pytest
from celery import Celery
from conftest import PATIENCE, PLACES

from celery_statemanager import JobNotFound, StatefulTask, StateManager, open_store
from celery_statemanager.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def states(clock):
    name = f"readers-{uuid.uuid4().hex}"  # an earlier test's app of the same name may be alive
    app = Celery(name, broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    states = StateManager(app)
    states.store = open_store("memory://", clock=clock)
    yield states
    app.close()


@pytest.fixture
def create(states):
    """Return a function that submits a job whose rows never run."""

    @states.app.task(shared=False, base=StatefulTask)
    def task(): ...

    def create(rows=1, **options):
        return states.submit([task.s() for _ in range(rows)], **options)

    return create


def test_the_metadata_of_a_job_are_read_by_every_handle(states, create):
    given = {"owner": "ada", "title": "Catalogue", "pages": [1, {"deep": None}]}
    job = create(job_id="job", metadata=given)
    given["owner"] = "bob"
    assert job.metadata == states.job("job").metadata == {**given, "owner": "ada"}
    job.metadata["owner"] = "eve"
    assert job.metadata["owner"] == "ada"
    assert create().metadata == create(metadata={}).metadata == {}
    job.pause()
    job.resume()
    assert states.job("job").metadata["owner"] == "ada"


def test_the_metadata_of_an_eager_job_are_stored(states, create):
    states.app.conf.task_always_eager = True
    assert create(job_id="job", metadata={"owner": "ada"}).settled
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
def test_invalid_metadata_are_refused_before_a_member_is_read(states, create, metadata, error, text):
    read = []
    with pytest.raises(error, match=text):
        states.submit((read.append(row) for row in range(3)), job_id="job", metadata=metadata)
    assert not read
    with pytest.raises(JobNotFound):
        states.job("job")


def test_the_creation_of_a_job_is_an_aware_time_of_the_stores_clock(states, create, clock):
    before = datetime.fromtimestamp(clock(), timezone.utc)
    job = create(job_id="job")
    clock.advance(60)
    assert job.created_at == states.job("job").created_at == before
    assert job.created_at.tzinfo is timezone.utc


def names(page):
    return [job.id for job in page.jobs]


def test_jobs_are_listed_page_by_page_the_newest_first(states, create):
    for number in range(7):
        create(job_id=f"job {number}", metadata={"owner": "ada" if number % 2 else "bob"})
    assert names(states.jobs()) == [f"job {number}" for number in reversed(range(7))]
    assert states.jobs().cursor is None
    page = states.jobs(limit=3)
    assert names(page) == ["job 6", "job 5", "job 4"]
    page.jobs[-1].delete()
    create(job_id="later")
    rest = states.jobs(limit=3, cursor=page.cursor)
    assert names(rest) == ["job 3", "job 2", "job 1"]
    assert names(states.jobs(cursor=rest.cursor)) == ["job 0"]
    assert names(states.jobs(text="ADA")) == ["job 5", "job 3", "job 1"]
    assert names(states.jobs(text="ada", phase="waiting", limit=1)) == ["job 5"]
    assert names(states.jobs(phase="finished")) == []
    states.job("later").manager.tombstone_job()
    assert names(states.jobs(limit=1)) == ["job 6"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"limit": 0}, ValueError, "limit must be 1 … 1000, not 0"),
        ({"limit": 1_001}, ValueError, "limit must be 1 … 1000, not 1001"),
        ({"limit": "5"}, TypeError, "limit must be an int, not str '5'"),
        ({"limit": True}, TypeError, "limit must be an int, not bool True"),
        ({"phase": "done"}, ValueError, "phase must be one of waiting, running, failing, paused, .*, not 'done'"),
        ({"phase": ""}, ValueError, "phase must be one of"),
        ({"phase": ["failed"]}, TypeError, r"phase must be a string or None, not \['failed'\]"),
        ({"text": b"job"}, TypeError, "text must be a string or None, not bytes b'job'"),
        ({"cursor": "yesterday"}, ValueError, "cursor must be one that an earlier page has returned, not 'yesterday'"),
        ({"cursor": ""}, ValueError, "cursor must be one that an earlier page has returned, not ''"),
        ({"cursor": 5}, TypeError, "cursor must be a string or None, not int 5"),
    ],
)
def test_invalid_arguments_of_a_list_are_refused(states, create, arguments, error, text):
    create()
    with pytest.raises(error, match=text):
        states.jobs(**arguments)


def test_handles_of_one_incarnation_are_equal_and_hash_equal(states, create):
    job = create(job_id="job")
    again = states.job("job")
    assert job == again == states.jobs().jobs[0]
    assert len({job, again}) == 1
    assert job != create(job_id="job", run_token="1")
    assert job != "job"
    job.pause()
    assert states.job("job") == job, "a later revision is the same job"
    job.delete()
    assert create(job_id="job") != job


def test_a_job_is_rendered_as_its_id(states, create):
    job = create(job_id="<etl>")
    assert (str(job), f"{job}", f"{job:>8}") == ("<etl>", "<etl>", "   <etl>")
    assert repr(job) == "<Job '<etl>', 1 tasks>"


def test_a_pickled_job_is_opened_with_the_statemanager_of_its_app(states, create):
    job = create(3, job_id="job", run_token="ß", metadata={"owner": "ada"})
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    assert (again.run_token, again.num_tasks, again.metadata, again.tags) == ("ß", 3, {"owner": "ada"}, job.tags)
    assert copy.copy(job) is copy.deepcopy([job])[0] is job
    stored = pickle.dumps(job)
    assert len(stored) < 300
    job.delete()
    create(job_id="job", run_token="ß")
    with pytest.raises(JobNotFound):
        pickle.loads(stored)


PROJECT = """
from celery import Celery
from celery_statemanager import StateManager, StatefulTask

app = Celery("shop", broker="memory://", statemanager_store_url="sqlite:///states.db")
states = StateManager(app)

@app.task(base=StatefulTask)
def task(): ...
"""

OPEN = "print(pickle.load(open('job', 'rb')).metadata)"


def test_a_job_pickled_in_another_process_is_opened_in_any_thread(tmp_path):
    def run(code):
        command = [sys.executable, "-c", f"import pickle, threading\n{code}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    (tmp_path / "project.py").write_text(PROJECT)
    made = run(
        "import project\n"
        "job = project.states.submit([project.task.s()], metadata={'owner': 'ada'})\n"
        "pickle.dump(job, open('job', 'wb'))"
    )
    assert made.returncode == 0, made.stderr
    for opening in (OPEN, f'thread = threading.Thread(target=exec, args=("import pickle; {OPEN}",)); thread.start()'):
        assert run(f"import project\n{opening}").stdout == "{'owner': 'ada'}\n"
    refused = run(OPEN)
    assert "ConfigurationError: cannot open the pickled job 'job-" in refused.stderr
    assert "nor an app named 'shop' has a StateManager in this process; import the module" in refused.stderr


@pytest.mark.places(*PLACES, usual=2)
def test_the_phase_of_a_job_follows_its_tasks(tracked, pool, key, submit, eventually):
    job = submit([tracked.gate.s(key), tracked.fail.s()], max_in_flight=1, metadata={"title": key})
    eventually(lambda: tracked.notes(key))
    assert (job.phase, job.settled) == ("running", False)
    job.pause()
    assert job.phase == "paused"
    job.resume()
    (found,) = tracked.states.jobs(text=key, phase="running").jobs
    assert found.id == job.id
    (tracked.HOME / f"{key}.go").touch()
    job.wait(PATIENCE)
    assert (job.phase, job.settled) == ("failed", True)
    assert names(tracked.states.jobs(text=key, phase="failed")) == [job.id]
    assert type(job.phase) is str
    assert job.summary().as_dict()["failed"] == 1
