"""The scripts that set up a Firestore project, run with a stub that records calls of gcloud."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from servers import wait_for

from celery_statemanager.testing.kit import PATIENCE

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
WANTED = json.loads((ROOT / "firestore.indexes.json").read_text())

MAKE_VARIABLES = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
"""Variables of the make that runs the tests. With them, an inner make also prints its directories."""

STUB = """#!/usr/bin/env bash
echo "$*" >>"$NOTES/calls"
case "$*" in
  *"databases describe"*) test -e "$NOTES/database" ;;
  *"composite list"*) cat "$NOTES/composite" 2>/dev/null || echo '[]' ;;
  *"fields list"*) cat "$NOTES/fields" 2>/dev/null || echo '[]' ;;
  *emulators*) test ! -e "$NOTES/stay" || { sleep 600 & echo $! >"$NOTES/child"; wait; } ;;
esac
"""


class StubGcloud:
    """Record calls in a folder, and report the project that the folder describes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "bin" / "gcloud"
        program.parent.mkdir()
        program.write_text(STUB)
        program.chmod(0o755)
        ours = {name: value for name, value in os.environ.items() if name not in MAKE_VARIABLES}
        self.environment = {**ours, "NOTES": str(folder), "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def run(self, *command: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        calls = self.folder / "calls"
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        return done, calls.read_text().splitlines() if calls.exists() else []

    def has_all_indexes(self) -> None:
        base = "projects/p/databases/(default)/collectionGroups"
        composite = [
            {
                "name": f"{base}/{each['collectionGroup']}/indexes/x{number}",
                "fields": [*each["fields"], {"fieldPath": "__name__"}],
            }
            for number, each in enumerate(WANTED["indexes"])
        ]
        fields = [
            {
                "name": f"{base}/{each['collectionGroup']}/fields/{each['fieldPath']}",
                "indexConfig": {"indexes": each["indexes"]} if each["indexes"] else {},
            }
            for each in WANTED["fieldOverrides"]
        ]
        (self.folder / "composite").write_text(json.dumps(composite))
        (self.folder / "fields").write_text(json.dumps(fields))


@pytest.fixture
def gcloud(tmp_path: Path) -> StubGcloud:
    return StubGcloud(tmp_path)


def test_the_database_is_created_once(gcloud: StubGcloud) -> None:
    done, calls = gcloud.run("make", "firestore-init", "PROJECT_ID=p-1", "REGION=eur3")
    assert done.returncode == 0, done.stderr
    assert calls[0] == "services enable firestore.googleapis.com --project=p-1 --quiet"
    assert calls[-1].startswith("firestore databases create --database=(default) --location=eur3")
    (gcloud.folder / "database").touch()
    done, calls = gcloud.run("make", "firestore-init", "PROJECT_ID=p-1", "REGION=eur3")
    assert done.returncode == 0, done.stderr
    assert not [call for call in calls if "create" in call]


def test_only_missing_indexes_are_created(gcloud: StubGcloud) -> None:
    done, calls = gcloud.run("make", "firestore-indexes", "PROJECT_ID=p-1")
    assert done.returncode == 0, done.stderr
    created = [call for call in calls if "composite create" in call]
    updated = [call for call in calls if "fields update" in call]
    assert (len(created), len(updated)) == (len(WANTED["indexes"]), len(WANTED["fieldOverrides"]))
    assert (
        "firestore indexes composite create --collection-group=states --query-scope=collection "
        "--field-config=field-path=column,order=ascending --field-config=field-path=taskID,order=ascending "
        "--project=p-1 --database=(default) --quiet --async"
    ) in created
    assert any("fields update payload --collection-group=states --disable-indexes" in call for call in updated)
    group = "fields update held --collection-group=states --index=order=ascending,query-scope=collection-group"
    assert any(group in call for call in updated)
    creation = "fields update createdAt --collection-group=jobs --index=order=descending,query-scope=collection"
    assert any(creation in call for call in updated)
    gcloud.has_all_indexes()
    done, calls = gcloud.run("make", "firestore-indexes", "PROJECT_ID=p-1")
    assert done.returncode == 0, done.stderr
    assert [call for call in calls if " list " not in call] == []


def test_another_collection_gets_its_own_indexes(gcloud: StubGcloud) -> None:
    gcloud.has_all_indexes()
    done, calls = gcloud.run(str(SCRIPTS / "firestore_apply_indexes.sh"), "p-1", "other", "etl")
    assert done.returncode == 0, done.stderr
    created = [call for call in calls if "composite create" in call]
    assert len(created) == 1
    assert "--collection-group=etl " in created[0]
    assert "--database=other" in created[0]


@pytest.mark.parametrize("target", ["firestore-init", "firestore-indexes"])
def test_a_missing_project_id_is_named(gcloud: StubGcloud, target: str) -> None:
    done, calls = gcloud.run("make", target)
    assert (done.returncode != 0, calls) == (True, [])
    assert "PROJECT_ID" in done.stderr


def test_a_missing_gcloud_is_reported(gcloud: StubGcloud) -> None:
    shutil.rmtree(gcloud.folder / "bin")
    bash = str(shutil.which("bash"))
    gcloud.environment["PATH"] = ""
    for script in ("firestore_enable.sh", "firestore_apply_indexes.sh"):
        done = subprocess.run(
            [bash, "-c", f"dirname() {{ echo scripts; }}; set -- p r; . scripts/{script}"],
            env={"PATH": str(gcloud.folder)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert "gcloud is not installed" in done.stderr


@pytest.mark.parametrize(("given", "used"), [((), "localhost:8787"), (("HOST_PORT=localhost:9000",), "localhost:9000")])
def test_the_emulator_starts_at_the_given_address(gcloud: StubGcloud, given: tuple[str, ...], used: str) -> None:
    done, calls = gcloud.run("make", "firestore-emulator", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"export FIRESTORE_EMULATOR_HOST={used}"]
    assert calls == [f"emulators firestore start --host-port={used}"]


@pytest.mark.parametrize(
    ("missing", "message"), [("gcloud", "gcloud is not installed"), ("java", "Java is not installed")]
)
def test_a_missing_program_of_the_emulator_is_named(gcloud: StubGcloud, missing: str, message: str) -> None:
    programs = gcloud.folder / "bin"
    for program in ("make", "bash", "java", "sed"):
        found = shutil.which(program)
        assert found is not None
        (programs / program).symlink_to(found)
    (programs / missing).unlink()
    gcloud.environment["PATH"] = str(programs)
    done, calls = gcloud.run("make", "firestore-emulator")
    assert (done.returncode != 0, calls) == (True, [])
    assert message in done.stderr


@pytest.mark.parametrize(
    ("stop", "sign"),
    [pytest.param(os.kill, signal.SIGTERM, id="killed"), pytest.param(os.killpg, signal.SIGINT, id="by a terminal")],
)
def test_a_stopped_emulator_leaves_no_process(gcloud: StubGcloud, stop: Callable[[int, int], None], sign: int) -> None:
    (gcloud.folder / "stay").touch()
    child = gcloud.folder / "child"
    command = ["env", "--default-signal=INT", "make", "firestore-emulator"]  # background processes ignore SIGINT
    with subprocess.Popen(command, env=gcloud.environment, cwd=ROOT, start_new_session=True) as running:
        wait_for(lambda: child.exists() and child.read_text().strip(), "the emulator")
        left = psutil.Process(int(child.read_text()))
        stop(running.pid, sign)
        try:
            left.wait(PATIENCE)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
    assert running.returncode != 0


def test_the_scripts_pass_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck") or shutil.which(str(ROOT / ".venv" / "bin" / "shellcheck"))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    done = subprocess.run(
        [shellcheck, *map(str, SCRIPTS.glob("firestore_*.sh"))], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
