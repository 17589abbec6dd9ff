"""Entries of beat's schedule from settings, and a real beat with a real worker."""

import gc
import subprocess
import sys
import weakref
from datetime import timedelta

import pytest
from celery import Celery
from celery.schedules import crontab

from celery_statemanager import ConfigurationError, JobNotFound, Manager, StateManager, open_store
from celery_statemanager.integration.beat import COLLECT, SWEEP

AGES = {"statemanager_gc_tombstone_age": "30d", "statemanager_gc_delete_age": "90d"}


def app_with(**conf):
    app = Celery("beaten", set_as_current=False, broker="memory://")
    StateManager(app)
    app.conf.update(conf)
    return app


def schedule_of(app):
    """Give the schedule as beat reads it."""
    app.loader.import_default_modules()
    app.finalize()
    return app.conf.beat_schedule


@pytest.mark.parametrize(
    ("when", "expires"), [(60, 60), (timedelta(minutes=5), 300), (timedelta(days=1), 3600), (crontab(hour=3), 3600)]
)
def test_entries_come_from_settings_and_expire(when, expires):
    entries = schedule_of(app_with(**AGES, statemanager_gc_schedule=when, statemanager_sweep_schedule=30))
    assert entries[COLLECT] == {"task": COLLECT, "schedule": when, "options": {"expires": expires}}
    assert entries[SWEEP]["schedule"] == 30


def test_without_settings_there_are_tasks_to_name_and_no_entries():
    app = app_with()
    assert not schedule_of(app)
    assert {COLLECT, SWEEP} <= set(app.tasks)
    assert app.tasks[COLLECT].ignore_result


def test_entries_stand_beside_the_apps_own_whose_name_wins():
    own = {"mine": {"task": "mine", "schedule": 1}, COLLECT: {"task": COLLECT, "schedule": 7}}
    app = app_with(**AGES, statemanager_gc_schedule=60, statemanager_sweep_schedule=30, beat_schedule=dict(own))
    entries = schedule_of(app)
    assert {name: entries[name] for name in own} == own
    assert SWEEP in entries


def test_an_app_goes_when_nobody_holds_it():
    app = weakref.ref(app_with())
    gc.collect()
    assert app() is None


def test_settings_under_a_namespace():
    conf = {
        "CELERY_STATEMANAGER_GC_SCHEDULE": 60,
        "CELERY_STATEMANAGER_GC_TOMBSTONE_AGE": "30d",
        "CELERY_STATEMANAGER_GC_DELETE_AGE": "90d",
        "CELERY_BEAT_SCHEDULE": {"mine": {"task": "mine", "schedule": 1}},
    }
    app = Celery("beaten", set_as_current=False)
    app.config_from_object(conf, namespace="CELERY")
    StateManager(app)
    assert set(schedule_of(app)) == {"mine", COLLECT}


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"statemanager_gc_schedule": 60}, "gc_tombstone_age and statemanager_gc_delete_age go together"),
        ({"statemanager_gc_tombstone_age": "30d", "statemanager_gc_delete_age": "3d"}, "must be longer"),
        ({"statemanager_gc_schedule": "daily", **AGES}, "a crontab, not 'daily'"),
        ({"statemanager_sweep_schedule": 0}, "seconds above 0"),
    ],
)
def test_settings_that_make_no_sense_keep_beat_from_starting(conf, words):
    with pytest.raises(ConfigurationError, match=words):
        schedule_of(app_with(**conf))


def test_a_real_beat_has_a_real_worker_collect_garbage(tmp_path, eventually):
    url = f"sqlite:///{tmp_path}/states.db"
    folder = {name: str(tmp_path) for name in ("data_folder_in", "data_folder_out", "control_folder")}
    (tmp_path / "tracked.py").write_text(
        "from celery import Celery\nfrom celery_statemanager import StateManager\n"
        f"app = Celery('tracked', broker='filesystem://', broker_transport_options={folder!r},\n"
        f"    statemanager_store_url={url!r}, statemanager_gc_schedule=0.5, statemanager_gc_tombstone_age='1ms',\n"
        "    statemanager_gc_delete_age='2ms')\n"
        "StateManager(app)\n"
    )
    with open_store(url) as store:
        job = Manager.create(store, "old", num_tasks=1)
        celery = [sys.executable, "-m", "celery", "-A", "tracked"]
        worker = [*celery, "worker", "-P", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        started = [subprocess.Popen(command, cwd=tmp_path) for command in (worker, [*celery, "beat"])]
        try:
            eventually(lambda: gone(job))
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(20)


def gone(manager):
    try:
        manager.get_state()
    except JobNotFound:
        return True
    return False
