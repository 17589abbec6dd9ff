"""The example project, with real processes: a server, a worker, and processes that die."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest
from django_kit import new_database
from servers import require
from workers import Worker

ROOT = Path(__file__).parents[2]
SHOP = ROOT / "examples" / "django_shop"
PATIENCE = 60.0


FULL = pytest.param("postgresql", marks=pytest.mark.full)
BOTH = pytest.mark.parametrize("environment", ["sqlite", "postgresql"], indirect=True, scope="module")
USUALLY_SQLITE = pytest.mark.parametrize("environment", ["sqlite", FULL], indirect=True, scope="module")


@pytest.fixture(scope="module")
def environment(request, tmp_path_factory):
    home = str(tmp_path_factory.mktemp("shop"))
    database = {}
    if request.param == "postgresql":
        new = new_database(request.getfixturevalue("postgres_server"), "example")
        database = {"SHOP_POSTGRES": new["NAME"], "PGHOST": new["HOST"], "PGPORT": new["PORT"], "PGUSER": new["USER"]}
    return {
        **database,
        "SHOP_HOME": home,
        "TRACKED_HOME": home,
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "DJANGO_SUPERUSER_PASSWORD": "secret of ada",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="module")
def run(environment):
    """Return a function that runs a Python program in the project, and returns its exit code and output."""

    def run(*arguments, code=None):
        text = None if code is None else "import django; django.setup()\n" + textwrap.dedent(code)
        command = [sys.executable, *(arguments or ["-c", text])]
        done = subprocess.run(
            command,
            cwd=SHOP,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.returncode, done.stdout

    return run


@pytest.fixture(scope="module")
def shop(run, environment):
    """Migrate the database, start a worker, and yield ``run``."""
    code, text = run("manage.py", "migrate", "--verbosity", "0")
    assert code == 0, text
    worker = Worker(environment, "threads", "celery", app="shop", cwd=SHOP)
    yield run
    worker.kill()


@pytest.fixture(scope="module")
def client(shop, environment):
    """Start the server, and yield a client of it."""
    command = [sys.executable, "-m", "uvicorn", "shop.asgi:application", "--port", "0", "--lifespan", "off"]
    process = subprocess.Popen(
        command,
        cwd=SHOP,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        line = next(line for line in process.stderr if "running on" in line)
        with httpx.Client(base_url=re.search(r"http://[\d.:]+", line)[0], timeout=PATIENCE, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.stderr.close()
        process.wait(PATIENCE)


@pytest.fixture
def page(client):
    """A page of Chromium on the server."""
    path = require("chromium", "chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(base_url=str(client.base_url), viewport={"width": 1_000, "height": 700})
        page.set_default_timeout(PATIENCE * 1_000)
        yield page
        browser.close()


@USUALLY_SQLITE
def test_an_order_shows_live_bars_until_it_is_packed(client, shop):
    client.get("/")
    form = {"boxes": 5, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
    address = client.post("/place", data=form).headers["location"]
    source = re.search(r'<celery-job src="([^"]+)"', client.get(address).text)[1]
    with client.stream("GET", source.replace("?", "/events?")) as events:
        assert "event: settled" in list(events.iter_lines())
    assert client.get(source).json()["phase"] == "finished"


@USUALLY_SQLITE
def test_a_browser_shows_the_bars_and_the_admin(page, shop):
    code, text = shop("manage.py", "createsuperuser", "--noinput", "--username", "ada", "--email", "ada@example.com")
    assert code == 0, text
    page.goto("/")
    page.get_by_label("Boxes").fill("5")
    page.get_by_role("button", name="Order").click()
    title = page.locator("h1").inner_text().partition(",")[0]
    page.locator("celery-job").get_by_text("100").first.wait_for()
    page.goto("/admin/celery_statemanager/job/")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("secret of ada")
    page.get_by_role("button", name="Log in").click()
    row = page.get_by_role("row").filter(has_text=title)
    row.locator("progress").wait_for()
    row.get_by_role("link").click()
    page.get_by_role("heading", name=title).wait_for()


SUBMIT = """
    import os, signal
    from django.db import transaction
    from shop.celery import states
    from shop.models import Order
    from shop.tasks import pack

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with transaction.atomic():
        order = Order.objects.create(boxes=3, job="JOB")
        {before}
        states.submit([pack.s(order.pk, box) for box in range(3)], job_id="JOB", using="default")
        {after}
"""

EXISTS = """
    from celery_statemanager import JobNotFound
    from shop.celery import states
    from shop.models import Order
    try:
        print(Order.objects.filter(job="JOB").count(), states.job("JOB").wait(60).finished)
    except JobNotFound:
        print(Order.objects.filter(job="JOB").count(), "no job")
"""


@BOTH
def test_a_process_that_dies_after_the_commit_leaves_a_job_that_is_published(shop):
    submit = SUBMIT.format(before="transaction.on_commit(die)", after="")
    code, text = shop(code=submit.replace("JOB", "after"))
    assert code == -signal.SIGKILL, text
    assert shop(code=EXISTS.replace("JOB", "after")) == (0, "1 3\n")


@BOTH
def test_a_process_that_dies_before_the_commit_leaves_nothing(shop):
    code, text = shop(code=SUBMIT.format(before="", after="die()").replace("JOB", "before"))
    assert code == -signal.SIGKILL, text
    assert shop(code=EXISTS.replace("JOB", "before")) == (0, "0 no job\n")


@USUALLY_SQLITE
def test_the_project_passes_the_checks(run):
    assert run("manage.py", "check") == (0, "System check identified no issues (0 silenced).\n")
    code, text = run("manage.py", "makemigrations", "--check", "--dry-run")
    assert code == 0, text
