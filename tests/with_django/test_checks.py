"""The system checks, and how the StateManager of a project is found."""

import subprocess
import sys
from pathlib import Path

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.db import connections
from django.test import override_settings

from celery_statemanager import ConfigurationError
from celery_statemanager.contrib.django.tracking import current_states


@pytest.fixture
def found(new_app, make_default):
    """Return a function that runs the checks with a store."""

    def found(store, **conf):
        make_default(new_app(store, **conf))
        return {each.id: each for each in run_checks() if each.id.startswith("celery_statemanager.")}

    return found


@pytest.fixture
def database_settings():
    """Yield the settings of the default database; restore them at the end."""
    settings = connections["default"].settings_dict
    kept = {**settings}
    yield settings
    settings.clear()
    settings.update(kept)


def test_good_settings_yield_nothing(found, database_settings):
    database_settings["OPTIONS"] = {"transaction_mode": "immediate"}
    assert found("django://default") == {}
    assert found("memory://") == {}


@pytest.mark.parametrize(
    ("store", "reason"),
    [
        ("django://missing", "no database 'missing'"),
        ("django://dummy", "SQLite or PostgreSQL"),
        ("django://memory", "in memory"),
        ("django://", "must name one alias"),
    ],
)
def test_a_database_that_cannot_be_used_is_an_error(found, store, reason):
    assert reason in found(store)["celery_statemanager.E001"].msg


def test_a_wrong_setting_is_an_error(found):
    assert "statemanager_lease" in found("memory://", statemanager_lease=-1)["celery_statemanager.E001"].msg


def test_a_project_without_a_store_is_warned(found):
    assert list(found(None)) == ["celery_statemanager.W001"]


def test_transactions_that_begin_without_a_lock_are_warned_of(found, database_settings):
    database_settings["OPTIONS"] = {}
    assert "IMMEDIATE" in found("django://default")["celery_statemanager.W002"].hint


def test_views_in_transactions_get_a_hint(found, database_settings):
    database_settings.update(OPTIONS={"transaction_mode": "IMMEDIATE"}, ATOMIC_REQUESTS=True)
    assert "using='default'" in found("django://default")["celery_statemanager.I001"].hint


def test_several_apps_need_a_current_one(new_app):
    kept = [new_app("memory://"), new_app("memory://")]
    with pytest.raises(ConfigurationError, match="set_default"):
        current_states()
    assert len(kept) == 2


def test_a_secret_is_derived_from_the_key_of_the_project(new_app):
    first, second = new_app("memory://"), new_app("memory://")
    assert first.settings.web_secret == second.settings.web_secret
    assert "not secret" not in first.settings.web_secret
    own = new_app("memory://", statemanager_web_secret="a secret of the project")
    assert own.settings.web_secret == "a secret of the project"


def test_a_project_without_a_key_can_start(new_app):
    """For example to collect static files while an image is built."""
    with override_settings(SECRET_KEY=""):
        apps.get_app_config("celery_statemanager").ready()
        assert new_app("memory://").settings.web_secret is None


def test_a_project_without_a_state_manager_is_told():
    script = """
        import sys
        sys.path[:0] = {path!r}
        from django_kit import set_up_django
        set_up_django()
        from django.apps import apps
from django.core.checks import run_checks
        print([each.msg for each in run_checks()])
    """
    code = "\n".join(line.strip() for line in script.format(path=sys.path).splitlines())
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=Path(__file__).parent
    )
    assert "no StateManager exists in this process" in done.stdout
