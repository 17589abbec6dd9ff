"""A store that is restored from an older copy while tasks run (rules R7, R14): the tasks and their readers continue."""

import sqlite3
from contextlib import closing

import pytest
from conftest import load

PATIENCE = 40
pytestmark = [pytest.mark.slow, pytest.mark.places(("folders-sqlite", "threads"), ("folders-sqlite", "prefork"))]


def copy(source, target):
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


@pytest.mark.parametrize("member", ["work_through", "late_gate"])
def test_a_task_ends_although_the_store_has_lost_its_begin(setting, place, start_worker, key, eventually, member):
    file = setting.home / f"{key}.db"
    own = load({**setting.environment, "TRACKED_STORE": f"sqlite:///{file}"})
    job = own.states.submit([getattr(own, member).s(key).set(queue=key)])
    copy(file, setting.home / f"{key}.copy")
    with job.subscribe("work", 0, until_settled=True) as events:
        start_worker(key, TRACKED_STORE=f"sqlite:///{file}")
        begun = next(events).state
        assert begun.attempt == 1
        eventually(lambda: own.notes(key))
        copy(setting.home / f"{key}.copy", file)
        assert events.get(PATIENCE).state.version == 0
        (own.HOME / f"{key}.go").touch()
        last = [event.state for event in events][-1]
    assert job.wait(PATIENCE).finished == 1
    assert (last.finished, last.attempt) == (True, 1)
    assert sum("begun" in note for note in own.notes(key)) == 1
    own.states.store.close()
    own.app.close()
