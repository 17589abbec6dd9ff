"""docker-compose.yml: its schema, and its services run as local processes."""

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
    """Return a function that starts all services of a profile and returns them by name."""
    projects = []

    def up(profile):
        require("redis-server", "redis-server")
        project = Project(FILE, profile, tmp_path, AUDIT_FOLDER=str(folder), AUDIT_SHARDS="3")
        projects.append(project)
        list(project.up())
        return project.services

    yield up
    for project in projects:
        project.down()


def test_the_file_follows_the_schema_of_compose():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", ["redis", "firestore", "postgres"])
def test_a_profile_has_all_services_and_required_health_checks(profile):
    services = {name: each for name, each in read(FILE, {})["services"].items() if profile in each["profiles"]}
    assert {"redis", "worker", "beat", "submitter", "monitor"} <= {name.partition("-")[0] for name in services}
    for each in services.values():
        for other, dependency in each.get("depends_on", {}).items():
            assert other in services
            assert dependency["condition"] != "service_healthy" or "healthcheck" in services[other]


def test_files_copied_into_the_image_exist_and_are_not_ignored():
    copied = [line.split()[1:-1] for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY")]
    sources = [source for sources in copied for source in sources]
    included = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source in included


def run_audit(services, tmp_path):
    """Wait for the monitor and the report of the job, and return the output of the monitor."""
    (monitor,) = (each for name, each in services.items() if name.startswith("monitor"))
    wait_until(monitor.completed, f"the monitor has not ended: {monitor.output}")
    report = tmp_path / "volumes" / "data" / "results" / "folder-audit" / "report.json"
    wait_until(report.exists, "there is no report")
    assert json.loads(report.read_text())["files"] == 6
    return monitor.output


def test_the_audit_finishes_on_redis(up, tmp_path):
    output = run_audit(up("redis"), tmp_path)
    assert "all finished" in output
    assert "6 of 6 finished" in output


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_the_audit_finishes_on_the_firestore_emulator(up, tmp_path):
    output = run_audit(up("firestore"), tmp_path)
    assert "6 of 6 finished" in output
