"""Modules that an import loads, and the public names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import celery_statemanager

HEAVY = (
    "celery",
    "kombu",
    "redis",
    "google",
    "click",
    "sqlite3",
    "pytest",
    "hypothesis",
    "rich",
    "asyncio",
    "opentelemetry",
    "msgpack",
    "starlette",
    "uvicorn",
)

USE = """
from celery_statemanager import Manager, open_store
manager = Manager.create(open_store("memory://"), "job", num_tasks=1, task_index=0, tags=("a",))
manager.begin("a")
manager.progress("a", 1, 2)
manager.set_state("a", 2**31 - 1)
assert len(list(manager.subscribe(until_settled=True))) == 1
manager.synchronize("a", 2)
assert manager.summary().finished == 1
"""

ACCESS_ALL_NAMES = """
import celery_statemanager
celery_names = {"StateManager", "StatefulTask", "Job", "JobPage", "current_state"}
for name in set(celery_statemanager.__all__) - celery_names:
    getattr(celery_statemanager, name)
"""


def loaded_by(code: str) -> list[str]:
    """Return the modules of ``HEAVY`` that ``code`` loads in a new process."""
    script = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return eval(done.stdout)


@pytest.mark.parametrize(
    "code",
    [
        "import celery_statemanager",
        "from celery_statemanager import Manager, State, StateEvent, Status, Summary, open_store, Store, IndexSet",
        USE,
        ACCESS_ALL_NAMES,
    ],
)
def test_the_core_loads_neither_celery_nor_a_client_library(code: str) -> None:
    assert loaded_by(code) == []


def test_the_testing_package_loads_pytest_but_not_celery() -> None:
    assert loaded_by("import celery_statemanager.testing") == ["pytest"]


def test_opening_an_sqlite_store_loads_neither_redis_nor_celery(tmp_path) -> None:
    code = f"import celery_statemanager as c; c.open_store('sqlite:///{tmp_path}/x.db')"
    assert "redis" not in loaded_by(code)
    assert "celery" not in loaded_by(code)


def test_the_celery_names_are_imported_on_first_access() -> None:
    assert celery_statemanager.StateManager.__name__ == "StateManager"
    assert celery_statemanager.current_state.__name__ == "current_state"
    with pytest.raises(AttributeError, match="no attribute 'StateManger'"):
        _ = celery_statemanager.StateManger


@pytest.mark.parametrize("name", celery_statemanager.__all__)
def test_every_public_name_can_be_accessed(name: str) -> None:
    assert getattr(celery_statemanager, name) is not None


def test_the_package_has_a_version() -> None:
    assert celery_statemanager.__version__[0].isdigit()


def test_store_machine_without_hypothesis_names_the_missing_package() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from celery_statemanager.testing import store_machine\n"
        "try: store_machine(lambda: None)\n"
        "except ImportError as error: assert 'pip install hypothesis' in str(error), error\n"
        "else: raise SystemExit('no error')\n"
        "del sys.modules['hypothesis']"
    )
    assert loaded_by(code) == ["pytest"]


WEB = """
from celery import Celery
from celery_statemanager import StateManager
StateManager(Celery(broker="memory://", statemanager_store_url="memory://")).web(authorize=print)
"""
USES_OF_EXTRAS = {
    "web": ("starlette", WEB),
    "redis": ("redis", "from celery_statemanager import open_store; open_store('redis://localhost')"),
    "firestore": ("google", "from celery_statemanager import open_store; open_store('firestore://project')"),
}


@pytest.mark.parametrize("extra", USES_OF_EXTRAS)
def test_a_missing_extra_is_named_for_users_of_the_package_index_and_of_a_checkout(extra: str) -> None:
    module, use = USES_OF_EXTRAS[extra]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{module!r}] = None\n{use}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigurationError" in last
    assert f'pip install "celery-statemanager[{extra}]"; in a checkout, pip install ".[{extra}]"' in last


def test_an_import_on_windows_says_what_to_do():
    code = "import os; del os.register_at_fork; import celery_statemanager"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("use WSL")
