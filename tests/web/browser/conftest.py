"""A real Chromium that shows the pages of a server."""

from __future__ import annotations

import pytest
from servers import require
from web_kit import Server, everyone

from celery_statemanager import Manager, Status

PATIENCE = 60_000.0
"""Milliseconds. Chromium shares the machine with other tests."""


@pytest.fixture(scope="module")
def chromium():
    """A browser. It ends with its module, because its event loop would disturb asynchronous tests of others."""
    path = require("chromium", "chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE / 2)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server(states):
    """A server of the pages that allows everything."""
    running = Server(states.web(everyone))
    yield running
    running.stop()


@pytest.fixture
def open_page(chromium, server):
    """Return a function that shows a page. The test fails if a page has reported an error."""
    contexts, problems = [], []

    def open_page(path, *, width=1_280, scheme="light", base=server.url, before=None):
        context = chromium.new_context(
            base_url=base, color_scheme=scheme, viewport={"width": width, "height": 900}, locale="en-GB"
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if _is_problem(line.text) else None)
        if before is not None:
            before(page)
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def _is_problem(text):
    return "Content Security Policy" in text or "Refused to" in text


@pytest.fixture
def write(states):
    """Return a function that writes a cell as a task does."""

    def write(job_id, row, tag, status=Status.FINISHED, message=None, payload=None):
        Manager.open(states.store, job_id, task_index=row).set_state(tag, status, message, payload)

    return write
