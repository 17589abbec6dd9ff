"""The element in a page of another application."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from web_kit import Server, everyone

from celery_statemanager import Status

pytestmark = pytest.mark.xdist_group("browser")

PAGE = """<!doctype html><meta charset="utf-8"><h1>Orders</h1>
<celery-job src="/jobs/api/jobs/orders"></celery-job><celery-job src="/jobs/api/jobs/orders" compact></celery-job>
<output id="log"></output>
<script>
const log = document.getElementById("log");
for (const name of ["settled", "failed"]) {
  document.querySelector("celery-job").addEventListener(name, (event) => {
    log.textContent += `${name} ${event.detail.generation} ${event.detail.phase}; `;
  });
}
</script>
<script type="module" src="/jobs/static/celery-job.js"></script>
"""


@pytest.fixture
def shop(states):
    """A server of an application of its own, below which the pages are mounted."""
    page = Route("/orders", lambda _: HTMLResponse(PAGE))
    running = Server(Starlette(routes=[page, Mount("/jobs", states.web(everyone))]))
    yield running
    running.stop()


@pytest.fixture
def orders(submit):
    return submit("orders", rows=2, tags=("pay",))


def bar(page, number=0):
    return page.get_by_role("progressbar").nth(number)


def test_it_shows_progress_and_tells_the_page_once_how_the_job_ended(orders, write, shop, open_page):
    page = open_page("/orders", base=shop.url, before=lambda page: page.clock.install())
    expect(bar(page)).to_have_attribute("aria-valuenow", "0")
    write("orders", 0, "pay")
    for number in (0, 1):
        expect(bar(page, number)).to_have_attribute("aria-valuenow", "50")
    expect(page.locator("celery-job").first.get_by_role("status")).to_have_text("orders: running")
    write("orders", 1, "pay", Status.FAILED, "declined")
    expect(page.locator("#log")).to_have_text("settled 1 failed; failed 1 failed;")
    expect(bar(page, 1)).to_have_attribute("aria-valuetext", "50%, 1 finished, 1 failed")
    assert orders.rerun("failed").rows
    page.clock.fast_forward(31_000)  # the element looks for a rerun every 30 s
    expect(page.locator("celery-job").first.get_by_role("status")).to_have_text("orders: running")
    write("orders", 1, "pay")
    expect(page.locator("#log")).to_have_text("settled 1 failed; failed 1 failed; settled 2 finished;")
    expect(bar(page)).to_have_attribute("aria-valuetext", "100%, 2 finished")


def test_it_polls_where_events_do_not_get_through(orders, write, shop, open_page):
    with blocked_events() as (block, requests):
        page = open_page("/orders", base=shop.url, before=block)
        expect(bar(page)).to_have_attribute("aria-valuenow", "0")
        for row in (0, 1):
            write("orders", row, "pay")
        expect(page.locator("#log")).to_have_text("settled 1 finished;")
    assert len(requests) == 2  # one for each of the two elements


@contextmanager
def blocked_events():
    """Yield a function that refuses the events of a page, and the list of refused requests."""
    requests = []

    def refuse(route):
        requests.append(route.request.url)
        route.fulfill(status=404, json={"error": {"code": "no_events", "message": "no events here"}})

    yield lambda page: page.route("**/events?*", refuse), requests


def test_it_says_what_is_wrong(shop, open_page, submit):
    page = open_page("/orders", base=shop.url, before=lambda page: page.clock.install())
    expect(page.get_by_text("There is no such job.")).to_have_count(2)
    submit("orders", rows=2, tags=("pay",))
    page.clock.fast_forward(31_000)
    expect(bar(page)).to_have_attribute("aria-valuenow", "0")
    expect(page.get_by_text("There is no such job.")).to_have_count(0)
