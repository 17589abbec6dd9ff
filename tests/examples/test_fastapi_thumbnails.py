"""The FastAPI example with a real worker and a real server."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image

from celery_statemanager.testing.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


def started(command, ready, home):
    """Start a program, and return it when it has printed a text."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "THUMBNAILS_DIR": str(home), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    found, printed = threading.Event(), []

    def copy():
        with process.stdout as output:
            for line in output:
                printed.append(line)
                if ready in line:
                    found.set()

    threading.Thread(target=copy, daemon=True).start()
    assert found.wait(PATIENCE), printed
    return process


@pytest.fixture
def site(tmp_path):
    port, running = free_port(), []
    try:
        running.append(
            started(
                ["celery", "-A", "examples.fastapi_thumbnails.tasks", "worker", "-c", "2", "-l", "INFO"],
                " ready.",
                tmp_path,
            )
        )
        running.append(
            started(
                ["uvicorn", "examples.fastapi_thumbnails.web:api", "--port", str(port)], "Uvicorn running", tmp_path
            )
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def picture(colour):
    file = io.BytesIO()
    Image.new("RGB", (640, 480), colour).save(file, "PNG")
    return file.getvalue()


def settled(client, url):
    """Follow the events of a job until its generation has settled, and return how it ended."""
    with client.stream("GET", f"{url}/events") as response:
        event = None
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            event = value if name == "event" else event
            if name == "data" and event == "settled":
                return json.loads(value)
    raise AssertionError("the stream has ended before the job")


def test_a_folder_is_uploaded_and_what_failed_runs_again(site, tmp_path):
    assert site.get("/").status_code == 200
    files = [("files", (f"album/{name}.png", picture(name))) for name in ("red", "green", "blue")]
    answer = site.post("/folders", files=[*files, ("files", ("album/notes.txt", b"no picture"))])
    assert answer.status_code == 303
    page = answer.headers["location"]
    job_id = page.rpartition("/")[2]
    assert f'data-job="{job_id}"' in site.get(page).text
    url = f"/jobs/api/jobs/{job_id}"
    assert settled(site, url) == {"generation": 1, "phase": "failed"}
    (failure,) = site.get(url).json()["failures"]
    assert failure["taskIDs"] == "3"
    assert "UnidentifiedImageError" in failure["message"]
    rerun = site.put(f"{page}/3", files={"file": ("notes.png", picture("white"))})
    assert rerun.json() == {"rows": "3"}
    assert settled(site, url) == {"generation": 2, "phase": "finished"}
    for path in (tmp_path / job_id / "thumbnails").iterdir():
        with Image.open(path) as thumbnail:
            assert thumbnail.size == (160, 120)
    assert len([*(tmp_path / job_id / "thumbnails").iterdir()]) == 4
    site.cookies.clear()  # another visitor
    assert site.get(page).status_code == 404
    assert site.get(url).status_code == 403
    assert site.get("/jobs/api/jobs").status_code == 403
