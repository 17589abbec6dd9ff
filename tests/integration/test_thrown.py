"""Whatever a task throws or returns, its cell ends as the same task ends in plain Celery. Examples from Hypothesis."""

import time
import uuid

import pytest
import thrown
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from celery_statemanager import Status
from celery_statemanager.integration.binding import Binding

PATIENCE = 60

NAMES = st.sampled_from(sorted(thrown.ERRORS)) | st.sampled_from(["*Local", "*", "*ä b", f"*{'x' * 10_000}"])
VALUES = st.lists(st.sampled_from(sorted(thrown.VALUES)), max_size=2)
LINKS = st.sampled_from([None, None, "__cause__", "__context__", "__notes__"])
EXAMPLES = st.one_of(
    st.fixed_dictionaries(
        {
            "how": st.sampled_from(["raise", "raise", "retry", "give up"]),
            "name": NAMES,
            "values": VALUES,
            "linked": LINKS,
        }
    ),
    st.fixed_dictionaries(
        {
            "how": st.sampled_from(["ignore", "mute ignore", "classless ignore", "reject", "bare reject"]),
            "values": VALUES,
        }
    ),
    st.fixed_dictionaries(
        {
            "how": st.sampled_from(["return", "set", "payload", "progress"]),
            "name": st.sampled_from(sorted(thrown.VALUES)),
            "values": VALUES,
        }
    ),
)
EVERYWHERE = pytest.mark.places(
    ("redis-redis", "prefork"), ("folders-sqlite", "threads"), ("folders-sqlite", "gevent"), usual=2
)
ENDS = {"SUCCESS": "finished", "FAILURE": "failed", "None": "failed", "IGNORED": "rejected", "REJECTED": "rejected"}
"""How a cell ends, by the state in which Celery ends the task; None for an error in Celery's own code."""


def end_of(state):
    if state is None or not (state.failed or state.finished) or state.status == Status.LOST:
        return f"open or lost: {state}"
    return "finished" if state.finished else "rejected" if state.status == Status.REJECTED else "failed"


@pytest.fixture
def compare(tracked, submit, pool):
    """Return a function that runs each example as a tracked and as a plain task, and compares how the two end."""

    def compare(examples):
        name = f"thrown-{uuid.uuid4().hex}"
        job = submit([tracked.throw.s(name, each) for each in examples])
        plain = [tracked.throw_plain.apply_async((name, each), queue=pool).id for each in examples]
        ids = [Binding(job.manager.ref, row, "work").celery_task_id for row in range(len(examples))]
        wait_for_ends(name, {each: examples[row] for all_ids in (plain, ids) for row, each in enumerate(all_ids)})
        job.wait(PATIENCE)
        wait_for_equal_stories(name, plain, ids)
        states = {state.task_index: state for state in job.list_states()}
        for row, (one, other) in enumerate(zip(plain, ids)):
            story = story_of(name, one)
            assert story_of(name, other) == story, examples[row]
            ends = {line.strip() for line in story} - {"run", "RETRY"}
            end = "SUCCESS" if "SUCCESS" in ends else ends.pop()  # a hook that raises ends an execution with None
            assert end_of(states.get(row)) == ENDS[end], (examples[row], states.get(row))

    def story_of(name, task_id):
        """Return the sorted notes of a task, because a retry may run before the end of the first run is noted."""
        return sorted(line.removeprefix(task_id) for line in tracked.notes(name) if line.startswith(task_id))

    def wait_for_equal_stories(name, plain, ids):
        """Wait for the retries of tasks whose first run ended with an error of a hook, which is noted as an end."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if all(story_of(name, one) == story_of(name, other) for one, other in zip(plain, ids)):
                return
            time.sleep(0.05)

    def wait_for_ends(name, waiting):
        deadline = time.monotonic() + PATIENCE
        while still_open := {each: waiting[each] for each in waiting if not has_ended(name, each, waiting[each])}:
            assert time.monotonic() < deadline, f"{len(still_open)} did not end: {[*still_open.items()][:5]}"
            time.sleep(0.05)

    def has_ended(name, task_id, example):
        ends = [line.split()[1] for line in tracked.notes(name) if line.startswith(task_id)]
        return ends.count("SUCCESS") if example["how"] == "recover" else {*ends} - {"run", "RETRY"}

    return compare


@EVERYWHERE
@pytest.mark.timeout(300)
def test_a_cell_ends_as_its_task_in_plain_celery_for_each_error(compare):
    ways = ("raise", "retry", "give up")
    compare([{"how": how, "name": name, "values": ["text"]} for name in thrown.ERRORS for how in ways])


@EVERYWHERE
@pytest.mark.timeout(300)
def test_a_cell_ends_as_its_task_in_plain_celery_for_each_value(compare):
    ways = ("ignore", "mute ignore", "reject", "bare reject", "return", "set", "payload", "progress")
    compare([{"how": "raise", "name": "ValueError", "values": [name]} for name in thrown.VALUES])
    compare([{"how": how, "name": name, "values": [name]} for name in thrown.VALUES for how in ways])


@EVERYWHERE
def test_a_cell_ends_as_its_task_in_plain_celery_if_a_hook_raises(compare):
    hooks = ("before_start", "on_retry", "on_failure", "on_success", "after_return")
    ways = (
        {"how": "return"},
        {"how": "recover"},
        {"how": "raise", "name": "ValueError"},
        {"how": "retry", "name": "Mute"},
    )
    every = [{**way, "hook": hook} for hook in hooks for way in ways]
    compare([each for each in every if each != {"how": "recover", "hook": "before_start"}])  # it never recovers


@EVERYWHERE
def test_a_retry_runs_although_on_retry_raises(compare):
    """Celery has sent the message by then. The job has one row, and would settle if that ended the cell."""
    compare([{"how": "recover", "hook": "on_retry"}])


@EVERYWHERE
def test_a_header_of_another_program_does_not_fail_a_task(tracked, pool, key, eventually):
    """Both the class that drops deliveries and the handlers read the header that Celery passes on from the message."""
    sent = [
        task.apply_async((key, {"how": "return"}), queue=pool, headers={"statemanager": value})
        for task in (tracked.throw, tracked.throw_plain)
        for value in ("not ours", 7, ["job"], {"job": "x"})
    ]
    eventually(lambda: len(tracked.notes(key)) >= 2 * len(sent))
    assert sorted(tracked.notes(key)) == sorted(f"{each.id} {what}" for each in sent for what in ("run", "SUCCESS"))


@EVERYWHERE
@pytest.mark.timeout(900)
def test_a_cell_ends_as_its_task_in_plain_celery_for_random_examples(compare, pytestconfig):
    @settings(
        max_examples=20 if pytestconfig.getoption("--full") else 3,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(EXAMPLES, min_size=20, max_size=30))
    def play(examples):
        compare(examples)

    play()
