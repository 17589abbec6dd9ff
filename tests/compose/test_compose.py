"""docker-compose.yml: valid, and what it would run does its work, without an engine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compose.local import Project, read, wait_until
from servers import require

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "examples" / "Dockerfile"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "audited"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"content {number % 3}")
    return folder


@pytest.fixture
def up(tmp_path, folder):
    """Start a profile; give its services by name when the last one was started."""
    started = []

    def up(profile):
        require("redis-server", "redis-server")
        project = Project(FILE, profile, tmp_path, AUDIT_FOLDER=str(folder), AUDIT_SHARDS="3")
        started.append(project)
        list(project.up())
        return project.services

    yield up
    for project in started:
        project.down()


def test_it_follows_the_schema_of_compose():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", ["redis", "firestore"])
def test_a_profile_has_every_part_and_whoever_is_waited_for_can_be_asked(profile):
    services = {name: each for name, each in read(FILE, {})["services"].items() if profile in each["profiles"]}
    assert {"redis", "worker", "beat", "submitter", "monitor"} <= {name.partition("-")[0] for name in services}
    for each in services.values():
        for other, wanted in each.get("depends_on", {}).items():
            assert other in services
            assert wanted["condition"] != "service_healthy" or "healthcheck" in services[other]


def test_the_image_is_made_of_files_that_are_there():
    copied = [line.split()[1:-1] for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY")]
    sources = [source for sources in copied for source in sources]
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source in let_in


def audited(services, tmp_path):
    """Wait for the monitor and the report of the job; give what the monitor said."""
    (monitor,) = (each for name, each in services.items() if name.startswith("monitor"))
    wait_until(monitor.completed, f"the monitor has not ended: {monitor.said}")
    report = tmp_path / "volumes" / "data" / "results" / "folder-audit" / "report.json"
    wait_until(report.exists, "there is no report")
    assert json.loads(report.read_text())["files"] == 6
    return monitor.said


def test_the_audit_on_redis(up, tmp_path):
    said = audited(up("redis"), tmp_path)
    assert "all finished" in said
    assert "6 of 6 finished" in said


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="no gcloud, which the emulator's image brings")
def test_the_audit_on_the_firestore_emulator(up, tmp_path):
    said = audited(up("firestore"), tmp_path)
    assert "6 of 6 finished" in said
