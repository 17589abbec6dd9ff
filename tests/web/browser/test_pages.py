"""The pages in a browser: what they show, how they fit, and that a keyboard is enough."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from celery_statemanager import Status
from celery_statemanager.testing import Grid

pytestmark = pytest.mark.xdist_group("browser")

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
REVERSED = "\u202egnp.exe \u05e9\u05dc\u05d5\u05dd"
COLOURED = "\x1b[31mred\x1b[0m \x07 line\r\n"
EACH_LOOK = [("light", 360), ("dark", 1_280)]


@pytest.fixture
def etl(submit, write):
    """A job of 40 rows: one has failed, and one is running."""
    job = submit("etl/42 é🎉", rows=40, metadata={"title": "Nightly load", "owner": "data"})
    for row in range(8):
        write(job.id, row, "scan")
        write(job.id, row, "hash")
    write(job.id, 8, "scan", Status.FAILED, "ConnectionError: refused")
    write(job.id, 9, "scan", 40, "page 4", {"bytes": 913})
    return job


def page_of(job):
    return f"/jobs/{quote(job.id, safe='')}"


def assert_fits(page):
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize(("scheme", "width"), EACH_LOOK)
def test_both_pages_fit_and_change_live(etl, write, open_page, scheme, width):
    page = open_page("/", scheme=scheme, width=width)
    row = page.locator(".jobs .job-row", has_text="Nightly load")
    expect(row.locator(".tasks")).to_have_text("16 / 80")
    assert_fits(page)
    write(etl.id, 10, "scan")
    expect(row.locator(".tasks")).to_have_text("17 / 80")
    row.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Nightly load")).to_be_visible()
    expect(page.get_by_role("progressbar", name="scan")).to_have_attribute("aria-valuenow", "23")
    expect(page.locator(".failure")).to_contain_text("ConnectionError: refused")
    expect(page.locator(".why").first).to_contain_text("no live worker")
    assert_fits(page)
    for each in (10, 11, 12):
        write(etl.id, each, "hash" if each == 10 else "scan")
    expect(page.get_by_role("progressbar", name="scan")).to_have_attribute("aria-valuenow", "28")
    expect(page).to_have_title("25% failing · Nightly load")


@pytest.mark.parametrize(("scheme", "width"), EACH_LOOK)
def test_texts_are_never_markup_and_keep_the_layout(submit, write, open_page, scheme, width):
    job = submit(EVIL, rows=4, tags=(EVIL[:40], REVERSED), metadata={"title": REVERSED + "x" * 900, "owner": EVIL})
    write(job.id, 0, EVIL[:40], Status.FAILED, EVIL + COLOURED + REVERSED)
    write(job.id, 1, EVIL[:40], Status.FAILED, "W" * 60_000)
    write(job.id, 2, REVERSED, 50, EVIL, {EVIL: COLOURED + "y" * 3_000})
    page = open_page("/", scheme=scheme, width=width)
    expect(page.locator(".job-row .detail")).to_contain_text(EVIL)
    assert_fits(page)
    page.goto(page_of(job))
    expect(page.locator(".failure").nth(1)).to_be_visible()
    assert f"{EVIL}red ␇ line\n" in page.locator(".failure .foreign", has_text="red").inner_text()
    assert_fits(page)
    long = page.locator(".failure", has_text="WWW")
    long.get_by_role("button", name="Show all").click()
    assert long.locator(".foreign").inner_text().count("W") >= 200
    page.get_by_label("Go to row").fill("1")
    page.get_by_role("button", name="Go", exact=True).click()
    message = page.locator(".states li").first
    message.get_by_role("button", name="Show all (60 kB)").click()
    assert message.locator(".foreign").inner_text().count("W") == 60_000
    assert_fits(page)
    page.get_by_label("Go to row").fill("2")
    page.get_by_role("button", name="Go", exact=True).click()
    expect(page.locator(".states .payload")).to_contain_text("onerror")
    assert_fits(page)
    assert page.locator("img, main script").count() == 0


def test_a_keyboard_is_enough(etl, write, open_page):
    page = open_page("/")
    page.keyboard.press("/")
    page.keyboard.type("nightly")
    expect(page.locator(".jobs .job-row")).to_have_count(1)
    tab_to(page, "a.stretched")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/**")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    tab_to(page, "button.pause")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("Enter")
    tab_to(page, "#reason")
    page.keyboard.type("maintenance")
    page.keyboard.press("Enter")
    expect(page.locator(".job-head, .status-line, .reason").filter(has_text="maintenance")).to_be_visible()
    assert etl.pause_reason == "maintenance"
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    page.locator("canvas").first.wait_for()
    tab_to(page, ".maps")
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".row-detail h3")).to_have_text("Row 2")
    page.keyboard.press("f")
    expect(page.locator(".row-detail h3")).to_have_text("Row 8")
    expect(page.locator(".states")).to_contain_text("ConnectionError: refused")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".states")).to_contain_text('"bytes": 913')
    page.keyboard.press("Escape")
    expect(page.locator(".row-detail")).to_be_hidden()


def tab_to(page, selector):
    """Press Tab until an element has the focus."""
    page.locator(selector).first.wait_for()
    for _ in range(60):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {selector}")


def test_the_heat_map_of_many_rows_zooms_to_one(states, write, open_page):
    Grid.submitted(states.store, 100_000, ("scan",), "many")
    write("many", 70_123, "scan", Status.FAILED, "boom")
    page = open_page("/jobs/many")
    expect(page.locator(".readout")).to_have_text("0 – 99,999, 100 rows per square")
    page.locator("canvas").first.click(position={"x": 14, "y": 80})  # the squares of a line are 10,000 rows
    expect(page.locator(".readout")).to_contain_text("row 70,123 · scan failed")
    page.locator(".maps").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".states")).to_contain_text("boom")


def test_a_deleted_job_and_an_unknown_one(etl, submit, open_page):
    page = open_page(page_of(etl))
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    etl.delete()
    expect(page.get_by_role("status").filter(has_text="was deleted")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    submit("invoices-1")
    page.goto("/jobs/invoices-2")
    page.get_by_role("link", name="invoices-1").click()
    expect(page.get_by_role("heading", name="invoices-1")).to_be_visible()


def test_tags_that_are_numbers_are_shown_in_the_order_of_their_stages(submit, write, open_page):
    submit("etl", rows=2, tags=("b", "10", "2"))
    write("etl", 0, "b")
    page = open_page("/jobs/etl")
    expect(page.locator(".stage-list .tag")).to_have_text(["b", "10", "2"])
    expect(page.locator(".fact", has_text="rows done")).to_contain_text("0 of 2")


def test_cells_of_a_cancelled_job_are_cancelled_beside_those_that_failed(etl, open_page):
    etl.cancel("wrong input")
    page = open_page(page_of(etl))
    page.locator(".maps").focus()
    for row, shown in (
        (8, "scan failed · hash cancelled"),
        (9, "scan running · hash cancelled"),
        (10, "scan cancelled"),
    ):
        page.get_by_label("Go to row").fill(str(row))
        page.get_by_role("button", name="Go", exact=True).click()
        expect(page.locator(".readout")).to_contain_text(f"row {row} · {shown}")


def test_the_grid_is_read_again_only_after_a_cell_has_changed_its_class(etl, write, open_page):
    grids = []
    page = open_page(
        page_of(etl), before=lambda page: page.on("request", lambda sent: grids.append(sent) if is_grid(sent) else None)
    )
    page.locator("canvas").nth(1).wait_for()
    assert len(grids) == 1
    bar = page.get_by_role("progressbar", name="scan")
    for percent in (50, 60, 70, 80, 90):
        write(etl.id, 9, "scan", percent)
        expect(bar).to_have_attribute("style", f"--begun: {percent}.0%;")
    assert len(grids) == 1
    write(etl.id, 9, "scan")
    page.get_by_label("Go to row").fill("9")
    page.get_by_role("button", name="Go", exact=True).click()
    expect(page.locator(".readout")).to_contain_text("row 9 · scan finished")
    assert len(grids) == 2


def test_the_page_says_how_many_failures_are_grouped_and_groups_more(states, write, open_page):
    grid = Grid.submitted(states.store, 1_000, ("scan",), "broken")
    for row in range(320):
        grid.write("scan", row, Status.FAILED if row < 300 else -12)
    page = open_page("/jobs/broken")
    expect(page.locator(".failure .number")).to_have_text(["200"])
    rest = page.locator(".failures .rest")
    expect(rest).to_contain_text("120 more failed tasks are not grouped.")
    rest.get_by_role("button", name="Group the first 10,000").click()
    expect(page.locator(".failure .number")).to_have_text(["300", "20"])
    expect(rest).to_be_hidden()
    write("broken", 900, "scan", -13)
    expect(page.locator(".failure .number")).to_have_text(["300", "20", "1"])


def test_cancelled_cells_are_not_counted_as_failures_without_a_group(states, write, open_page):
    Grid.submitted(states.store, 1_000, ("scan",), "stopped")
    write("stopped", 7, "scan", Status.FAILED, "boom")
    states.job("stopped").cancel("wrong input")
    page = open_page("/jobs/stopped")
    expect(page.locator(".failure .number")).to_have_text(["1"])
    expect(page.locator(".failures .rest")).to_be_hidden()


def is_grid(request):
    return request.url.endswith("/grid")
