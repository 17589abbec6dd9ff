"""Take the screenshots of the web pages in docs/images: ``make screenshots``.

Jobs are submitted to a memory store whose clock this script sets, and a real Chromium shows them. The same release of
Chromium with the same fonts therefore takes the same pictures. Install ``fonts-inter`` for the pictures of the docs.
"""

import argparse
import contextlib
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, sync_playwright
from screenshot_jobs import EMBEDDINGS, INVOICES, NOW, OTHERS, PHOTOS, states, submit_all

from celery_statemanager.web.local import listen

TARGET = Path(__file__).parents[1] / "docs" / "images"
CHROMIUM = "/usr/bin/chromium"
README = {"x": 0, "y": 0, "width": 1_184, "height": 860}
"""The part of the page of a job that the README shows."""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Yield the address of a server without a Date header, so that the pages use the clock of the browser."""
    with listen() as listener:
        config = uvicorn.Config(states.web(authorize=lambda *_: True), log_level="warning", date_header=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def show_list(page: Page) -> None:
    """Show all jobs."""
    page.goto("/")
    page.locator(".jobs .job-row").nth(len(OTHERS) + 2).wait_for()


def show_running(page: Page) -> None:
    """Show a job that runs, one of whose workers was killed."""
    page.goto(f"/jobs/{PHOTOS.job_id}")
    page.locator("[data-code=silent]").first.wait_for()
    page.locator(".callback-list li").first.wait_for()


def show_failures(page: Page) -> None:
    """Show a job with failures, and the states of one of its rows."""
    page.goto(f"/jobs/{INVOICES.job_id}")
    page.locator("canvas").first.wait_for()
    page.get_by_role("button", name="rows 412").click()
    page.locator(".states li").nth(1).wait_for()


def show_heat_map(page: Page) -> None:
    """Show the page of a job with 100,000 rows."""
    page.goto(f"/jobs/{EMBEDDINGS.job_id}")
    page.locator(".failure").first.wait_for()
    page.locator("[data-code=silent]").first.wait_for()
    page.locator("canvas").first.wait_for()


SHOTS = {"jobs": show_list, "job": show_running, "failures": show_failures, "heatmap": show_heat_map}


def take(address: str, target: Path) -> None:
    """Take all pictures, light and dark."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = browser.new_context(
                base_url=address,
                color_scheme=scheme,
                device_scale_factor=1.5,
                locale="en-GB",
                reduced_motion="reduce",
                timezone_id="UTC",
                viewport={"width": 1_184, "height": 400},
            )
            page = context.new_page()
            page.clock.set_fixed_time(datetime.fromtimestamp(NOW, timezone.utc))
            for name, show in SHOTS.items():
                show(page)
                page.mouse.move(0, 0)
                page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                page.screenshot(path=target / f"web-{name}-{scheme}.png", full_page=True)
                if name == "job":
                    page.screenshot(path=target / f"live-page-{scheme}.png", full_page=True, clip=README)
            context.close()
        browser.close()


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", type=Path, default=TARGET, help="the folder (default: %(default)s)")
    target = parser.parse_args().target
    target.mkdir(parents=True, exist_ok=True)
    submit_all()
    with serving() as address:
        take(address, target)


if __name__ == "__main__":
    main()
