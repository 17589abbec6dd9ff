"""How much a page transfers before it shows a large job, and that it outlives its server."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect
from servers import wait_for

from celery_statemanager import Status
from celery_statemanager.testing import Grid
from celery_statemanager.testing.ports import free_port

pytestmark = pytest.mark.xdist_group("browser")

SERVER = Path(__file__).with_name("pages_server.py")


def test_a_large_job_is_shown_soon_and_costs_little(states, open_page, record_property):
    rows, tags = 10_000, ("scan", "hash", "upload")
    grid = Grid.submitted(states.store, rows, tags, "large")
    for row in range(1_500):
        grid.write(tags[row % 3], row, Status.FAILED if row % 97 == 0 else 40)
    received = {"bytes": 0}

    def add(event):
        received["bytes"] += int(event["encodedDataLength"])

    def measure(page):
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.responseReceived", lambda event: add(event["response"]))
        session.on("Network.dataReceived", add)

    page = open_page("/jobs/large", before=measure)
    expect(page.get_by_role("progressbar", name="scan")).to_be_visible()
    before_event = received["bytes"]
    page.locator("canvas").nth(2).wait_for()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    record_property("first_paint_ms", round(paint))
    record_property("bytes_before_first_event", before_event)
    record_property("bytes_with_grid", received["bytes"])
    assert 10_000 < before_event <= 100_000
    assert received["bytes"] <= 150_000


@contextmanager
def serving(url, port):
    with subprocess.Popen([sys.executable, SERVER, url, str(port)]) as process:
        try:
            wait_for(lambda: _accepts(port), f"no server on port {port}")
            yield process
        finally:
            process.kill()


def _accepts(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_page_continues_with_the_next_server_after_its_server_was_killed(states, store_url, submit, write, open_page):
    submit("etl", rows=4, tags=("scan",))
    port = free_port()
    with serving(store_url, port):
        page = open_page("/jobs/etl", base=f"http://127.0.0.1:{port}")
        write("etl", 0, "scan")
        expect(page.get_by_role("progressbar", name="scan")).to_have_attribute("aria-valuenow", "25")
    expect(page.get_by_role("status").filter(has_text="Connection lost")).to_be_visible()
    for row in (1, 2):
        write("etl", row, "scan")
    with serving(store_url, port):
        expect(page.get_by_role("progressbar", name="scan")).to_have_attribute("aria-valuenow", "75")
        expect(page.get_by_role("status").filter(has_text="Connection lost")).to_be_hidden()
        write("etl", 3, "scan")
        expect(page).to_have_title("100% finished · etl")
