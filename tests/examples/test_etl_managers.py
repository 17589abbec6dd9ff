"""The example without Celery: processes that wait for each other, one of which is killed."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from servers import wait_for

from celery_statemanager import JobNotFound, Manager, open_store

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "etl_managers"


@pytest.fixture
def runner(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.etl_managers.run", "--processes", "3"],
        cwd=ROOT,
        env={**os.environ, "ETL_DIR": str(tmp_path), "PAGE_SECONDS": "0.05"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    process.stdout.close()


def test_a_killed_process_is_started_again_and_continues_where_it_was(runner, tmp_path):
    pids = dict(re.fullmatch(r"index (\d): process (\d+)\n", runner.stdout.readline()).groups() for _ in range(3))
    with open_store(f"sqlite:///{tmp_path}/states.db") as store:

        def begun():
            try:
                state = Manager.open(store, "sales").get_state("load", 1)
            except (JobNotFound, ValueError):
                return False
            return state.payload and state.payload["page"] >= 3

        wait_for(begun, "the fourth page of index 1")
        os.kill(int(pids["1"]), signal.SIGKILL)
        output = runner.stdout.read()
        assert runner.wait(60) == 0, output
        manager = Manager.open(store, "sales")
        state = manager.get_state("load", 1)
        assert manager.summary().finished == 6
        assert state.attempt == 2
        assert state.payload["first"] >= 4
    assert "index 1 failed with -9" in output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["total"] == sum(range(3 * 20 * 100))


def test_the_manifest_passes_what_the_program_reads():
    job = yaml.safe_load((EXAMPLE / "job.yaml").read_text())["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    source = (EXAMPLE / "etl.py").read_text()
    assert {*environment} <= {*re.findall(r'environ(?:\.get\(|\[)"(\w+)"', source)}
    assert int(environment["PROCESSES"]) == job["completions"]
