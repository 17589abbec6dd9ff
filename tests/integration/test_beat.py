"""Schedule entries from settings, and a real beat with a real worker."""

import gc
import os
import subprocess
import sys
import weakref
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest
from celery import Celery
from celery.schedules import crontab
from servers import running_redis

from celery_statemanager import ConfigurationError, JobNotFound, Manager, StateManager, open_store
from celery_statemanager.integration.beat import COLLECT, MIGRATE, SWEEP
from celery_statemanager.models import SCHEMA_VERSION
from celery_statemanager.records import new_incarnation, new_job

AGES = {"statemanager_gc_tombstone_age": "30d", "statemanager_gc_delete_age": "90d"}


def new_app(**conf):
    app = Celery("scheduled", set_as_current=False, broker="memory://")
    StateManager(app)
    app.conf.update(conf)
    return app


def schedule_of(app):
    """Return the schedule as beat reads it."""
    app.loader.import_default_modules()
    app.finalize()
    return app.conf.beat_schedule


@pytest.mark.parametrize(
    ("when", "expires"), [(60, 60), (timedelta(minutes=5), 300), (timedelta(days=1), 3600), (crontab(hour=3), 3600)]
)
def test_schedule_entries_come_from_settings_and_expire(when, expires):
    entries = schedule_of(
        new_app(
            **AGES,
            statemanager_gc_schedule=when,
            statemanager_sweep_schedule=30,
            statemanager_migrate_target=1,
            statemanager_migrate_schedule=when,
        )
    )
    for task in (COLLECT, MIGRATE):
        assert entries[task] == {"task": task, "schedule": when, "options": {"expires": expires}}
    assert entries[SWEEP]["schedule"] == 30


def test_a_migrate_target_without_a_schedule_migrates_hourly():
    entry = {"task": MIGRATE, "schedule": 3600.0, "options": {"expires": 3600.0}}
    assert schedule_of(new_app(statemanager_migrate_target=1)) == {MIGRATE: entry}


def test_without_settings_there_are_tasks_but_no_entries():
    app = new_app()
    assert not schedule_of(app)
    assert {COLLECT, SWEEP, MIGRATE} <= set(app.tasks)
    assert app.tasks[COLLECT].ignore_result


def test_entries_are_merged_with_the_apps_own_which_take_precedence():
    own = {"mine": {"task": "mine", "schedule": 1}, COLLECT: {"task": COLLECT, "schedule": 7}}
    app = new_app(**AGES, statemanager_gc_schedule=60, statemanager_sweep_schedule=30, beat_schedule=dict(own))
    entries = schedule_of(app)
    assert {name: entries[name] for name in own} == own
    assert SWEEP in entries


def test_an_unreferenced_app_is_garbage_collected():
    app = weakref.ref(new_app())
    gc.collect()
    assert app() is None


def test_schedule_settings_work_under_a_namespace():
    conf = {
        "CELERY_STATEMANAGER_GC_SCHEDULE": 60,
        "CELERY_STATEMANAGER_GC_TOMBSTONE_AGE": "30d",
        "CELERY_STATEMANAGER_GC_DELETE_AGE": "90d",
        "CELERY_STATEMANAGER_MIGRATE_TARGET": 1,
        "CELERY_BEAT_SCHEDULE": {"mine": {"task": "mine", "schedule": 1}},
    }
    app = Celery("scheduled", set_as_current=False)
    app.config_from_object(conf, namespace="CELERY")
    StateManager(app)
    assert set(schedule_of(app)) == {"mine", COLLECT, MIGRATE}


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"statemanager_gc_schedule": 60}, "gc_tombstone_age and statemanager_gc_delete_age must be set together"),
        ({"statemanager_gc_tombstone_age": "30d", "statemanager_gc_delete_age": "3d"}, "must be longer"),
        ({"statemanager_gc_schedule": "daily", **AGES}, "a crontab, not 'daily'"),
        ({"statemanager_sweep_schedule": 0}, "seconds above 0"),
        ({"statemanager_lease": 0}, "statemanager_lease must be a number above 0, not 0"),
        ({"statemanager_max_lost": 1.5}, r"statemanager_max_lost must be a whole number above 0, not 1\.5"),
        ({"statemanager_progress_interval": -1}, "statemanager_progress_interval must be a number, 0 or more, not -1"),
        (
            {"statemanager_migrate_target": 99},
            f"statemanager_migrate_target: this release supports schemas up to {SCHEMA_VERSION}, not 99",
        ),
        ({"statemanager_migrate_target": "new"}, "statemanager_migrate_target: the target must be a schema number"),
        ({"statemanager_migrate_schedule": "daily"}, "a crontab, not 'daily'"),
    ],
)
def test_invalid_settings_prevent_beat_from_starting(conf, message):
    with pytest.raises(ConfigurationError, match=message):
        schedule_of(new_app(**conf))


@pytest.mark.parametrize("later", ["attribute", "update", "periodic task"])
def test_a_schedule_set_after_the_state_manager_is_merged_with_its_entries(later):
    app = Celery("scheduled", set_as_current=False)
    conf = {"STATEMANAGER_GC_SCHEDULE": 60, "STATEMANAGER_GC_TOMBSTONE_AGE": "30d", "STATEMANAGER_GC_DELETE_AGE": "90d"}
    app.config_from_object({f"CELERY_{name}": value for name, value in conf.items()}, namespace="CELERY")
    StateManager(app)
    mine = {"mine": {"task": "mine", "schedule": 1}}
    if later == "attribute":
        app.conf.beat_schedule = mine
    elif later == "update":
        app.conf.update(beat_schedule=mine)
    else:
        app.add_periodic_task(1, app.signature("mine"), name="mine")
    assert set(schedule_of(app)) == {"mine", COLLECT}


APP = """
import pathlib
from celery import Celery
from celery_statemanager import StateManager

app = Celery("tracked", broker="filesystem://", broker_transport_options={folder!r})
app.conf.update({settings!r})
StateManager(app)

@app.task
def mine():
    pathlib.Path("mine").touch()

app.conf.beat_schedule = {{"mine": {{"task": "tracked.mine", "schedule": 1}}}}
"""

GARBAGE = {
    "statemanager_gc_schedule": 1,
    "statemanager_gc_tombstone_age": "1ms",
    "statemanager_gc_delete_age": "2ms",
}

SITE = """
SECRET_KEY = "test"
INSTALLED_APPS = ["django_celery_beat"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.db"}}
USE_TZ = True
"""

SCHEDULERS = {
    "celery": "celery.beat.PersistentScheduler",
    "redbeat": "redbeat.RedBeatScheduler",
    "django": "django_celery_beat.schedulers:DatabaseScheduler",
}


@pytest.fixture
def start_beat(tmp_path):
    """Yield a function that starts beat and a worker and returns their store; stop them at the end."""
    with ExitStack() as stack:

        def start(scheduler, **settings):
            redis = stack.enter_context(running_redis()).url if scheduler == "redbeat" else None
            url = f"sqlite:///{tmp_path}/states.db"
            folder = {name: str(tmp_path) for name in ("data_folder_in", "data_folder_out", "control_folder")}
            settings.update(statemanager_store_url=url, redbeat_redis_url=redis)
            (tmp_path / "tracked.py").write_text(APP.format(folder=folder, settings=settings))
            environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
            if scheduler == "django":
                (tmp_path / "site_settings.py").write_text(SITE)
                environment["DJANGO_SETTINGS_MODULE"] = "site_settings"
                migrate = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
                subprocess.run(migrate, cwd=tmp_path, env=environment, check=True, timeout=60)
            celery = [sys.executable, "-m", "celery", "-A", "tracked"]
            for command in (
                ["worker", "-P", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"],
                ["beat", "--max-interval", "1", "--scheduler", SCHEDULERS[scheduler]],
            ):
                process = subprocess.Popen([*celery, *command], cwd=tmp_path, env=environment)
                stack.callback(process.wait, 20)
                stack.callback(process.terminate)
            return stack.enter_context(open_store(url))

        yield start


@pytest.mark.parametrize(
    "scheduler", ["celery", *(pytest.param(each, marks=pytest.mark.full) for each in ("redbeat", "django"))]
)
def test_beat_schedules_garbage_collection_on_a_worker(scheduler, start_beat, tmp_path, eventually):
    store = start_beat(scheduler, **GARBAGE)
    job = Manager.create(store, "old", num_tasks=1)
    eventually(lambda: is_deleted(job))
    eventually((tmp_path / "mine").exists)


def test_beat_schedules_migrations_but_not_of_other_programs_jobs(start_beat, eventually):
    store = start_beat("celery", statemanager_migrate_target=1, statemanager_migrate_schedule=1)
    foreign = store.create_job(replace(new_job("foreign", 1), incarnation=""))
    half = store.create_job(replace(new_job("half", 1), incarnation=""))
    half = store.adopt_job(half.ref, new_incarnation())
    assert half.schema == 0
    eventually(lambda: store.get_job(half.key).schema == 1)
    assert store.get_job(foreign.key).incarnation == ""


def is_deleted(manager):
    try:
        manager.get_state()
    except JobNotFound:
        return True
    return False
