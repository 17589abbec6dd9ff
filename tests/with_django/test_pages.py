"""The pages of jobs, the admin and the template tag in a Django project."""

import gc
import re
import time

import django
import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.db import transaction
from django.template import Context, Template
from django.test import Client
from web_kit import HEADERS, serving

from celery_statemanager import ConfigurationError
from celery_statemanager.web.streams import EventStream

LIST = "/admin/celery_statemanager/job/"


@pytest.fixture
def project(empty_database, new_app, make_default):
    """Return a StateManager with states in the database, which the migrations of all apps have prepared."""
    call_command("migrate", verbosity=0)
    return make_default(new_app())


@pytest.fixture
def job(project):
    return project.submit([project.pack.s(number) for number in range(2)], job_id="ä 1", metadata={"owner": "<ada>"})


def user(name, *permissions, **fields):
    created = User.objects.create_user(name, password="x", **fields)
    created.user_permissions.add(*Permission.objects.filter(codename__in=permissions))
    return created


@pytest.fixture
def client_of():
    def create(*permissions, **fields):
        client = Client()
        client.force_login(user("ada", *permissions, **{"is_staff": True, **fields}))
        return client

    return create


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)
def test_the_migration_creates_the_tables_and_the_permissions(project, empty_database):
    with empty_database.cursor() as cursor:
        tables = empty_database.introspection.table_names(cursor)
    assert "celery_statemanager_cell" in tables
    found = Permission.objects.filter(content_type__app_label="celery_statemanager")
    assert {each.codename for each in found} == {"view_job", "cancel_job", "pause_job", "rerun_job"}
    call_command("makemigrations", "celery_statemanager", check=True, verbosity=0)


def test_the_list_shows_jobs_with_bars(project, job, client_of):
    client = client_of("view_job")
    text = client.get(LIST).content.decode()
    assert "ä 1" in text
    assert "<progress" in text
    assert f"{LIST}web/jobs/%C3%A4%201" in text
    assert "No jobs." in client.get(LIST, {"q": "other"}).content.decode()
    assert "ä 1" in client.get(LIST, {"phase": "waiting"}).content.decode()
    assert "errornote" in client.get(LIST, {"phase": "wrong"}).content.decode()
    assert LIST in client.get("/admin/").content.decode()


def test_the_list_has_pages(project, client_of):
    for number in range(51):
        project.submit([project.pack.s(1)], job_id=f"job-{number:02}")
    client = client_of("view_job")
    first = client.get(LIST).content.decode()
    following = re.search(r'href="(\?cursor=[^"]+)"', first)[1]
    assert "job-00<" not in first
    assert "job-00<" in client.get(LIST + following).content.decode()


def test_the_admin_is_for_users_with_permissions(project, job, client_of):
    assert Client().get(LIST).status_code == 302
    assert Client().get(f"{LIST}web/").headers["Location"].startswith("/admin/login/?next=")
    assert client_of().get(LIST).status_code == 403
    User.objects.all().delete()
    client = client_of("view_job", "pause_job")
    url = f"{LIST}web/api/jobs/%C3%A4%201"
    assert client.get(url).json()["actions"] == ["pause"]
    headers = {"X-Requested-With": "x"}
    assert client.post(f"{url}/cancel", content_type="application/json", headers=headers).status_code == 403
    assert client.post(f"{url}/pause", content_type="application/json", headers=headers).json() == {"paused": True}
    assert client.post(f"{url}/resume", content_type="application/json", headers=headers).json() == {"resumed": True}
    assert (
        client.post(f"{url}/pause", content_type="application/json").status_code == 403
    )  # without the header that other sites cannot send
    assert job.paused is False


def test_a_superuser_may_do_everything(project, job, client_of):
    client = client_of(is_superuser=True)
    url = f"{LIST}web/api/jobs/%C3%A4%201"
    assert client.get(url).json()["actions"] == ["cancel", "pause", "rerun"]
    body = {"reason": "lunch ☃"}
    done = client.post(f"{url}/cancel", body, content_type="application/json", headers={"X-Requested-With": "x"})
    assert done.json() == {"cancelled": True}
    assert job.phase == "cancelled"


def test_the_pages_are_for_the_staff(project, job, client_of):
    assert Client().get("/shop/jobs/").status_code == 403
    client = client_of()
    assert client.get("/shop/jobs/").status_code == 200
    assert client.get("/shop/jobs").status_code in {301, 404}
    assert client.get("/shop/jobs/api/jobs").json()["jobs"][0]["jobID"] == "ä 1"
    answer = client.get("/shop/jobs/api/jobs/%C3%A4%201/pause")
    assert answer.status_code == 405
    assert client.get("/shop/jobs/static/celery-job.js").headers["Content-Type"].startswith("text/javascript")
    assert client.get("/shop/jobs/api/missing").json()["error"]["code"] == "not_found"
    assert client.get("/shop/jobs/api/jobs/%C3%A4%201/events").json()["error"]["code"] == "no_events"


def may_see_own(request, action, job):
    return isinstance(request.user, AnonymousUser) and action == "view" and job.metadata["owner"] == "<ada>"


def test_a_function_of_the_project_decides_who_may_see_what(new_app, make_default, project):
    states = make_default(new_app(statemanager_web_authorize=f"{__name__}.may_see_own"))
    states.submit([states.pack.s(1)], job_id="own", metadata={"owner": "<ada>"})
    states.submit([states.pack.s(1)], job_id="other", metadata={"owner": "bob"})
    codes = [Client().get(f"/shop/jobs/api/jobs/{name}").status_code for name in ("own", "other")]
    assert codes == [200, 403]


def test_a_wrong_function_is_named(new_app, make_default, project):
    states = make_default(new_app(statemanager_web_authorize="nowhere.at_all"))
    states.submit([states.pack.s(1)], job_id="own")
    assert Client(raise_request_exception=False).get("/shop/jobs/api/jobs/own").status_code in {500, 503}


def test_events_arrive_over_asgi(project):
    job = project.submit([project.pack.s(1)], job_id="a/b ☃")
    staff = Client()
    staff.force_login(user("ada", is_staff=True))
    cookies = {name: morsel.value for name, morsel in staff.cookies.items()}
    with serving(get_asgi_application()) as client:
        client.cookies.update(cookies)
        with client.stream("GET", "/shop/jobs/api/jobs/a%2Fb%20%E2%98%83/events?view=cells") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.iter_lines()
            job.cancel("enough")
            assert any(line == "event: settled" for line in lines)
        assert client.get("/shop/jobs/api/jobs/a%2Fb%20%E2%98%83").json()["jobID"] == "a/b ☃"
        assert client.post("/shop/jobs/api/jobs/x/cancel", headers=HEADERS).status_code in {403, 404}


@pytest.mark.skipif(django.VERSION < (5, 0), reason="Django does not notice it; the stream ends after a minute")
def test_a_client_that_is_gone_leaves_no_stream(project, job):
    token = project.web_token(job)
    with serving(get_asgi_application()) as client:
        with client.stream("GET", f"/shop/jobs/api/jobs/%C3%A4%201/events?token={token}") as answer:
            lines = answer.iter_lines()
            assert (answer.status_code, next(lines)[:6]) == (200, "retry:")
            assert next(line for line in lines if line.startswith("event:")) == "event: summary"
        deadline = time.monotonic() + 20
        while streams():
            assert time.monotonic() < deadline
            time.sleep(0.1)


def streams():
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is EventStream]


def test_the_tag_shows_a_job_to_everybody_who_sees_the_page(project, job):
    html = Template("{% load celery_statemanager %}{% celery_job job %}").render(Context({"job": job}))
    assert '<script type="module" src="/shop/jobs/static/celery-job.js"></script>' in html
    source = re.search(r'<celery-job src="([^"]+)"></celery-job>', html)[1]
    assert source.startswith("/shop/jobs/api/jobs/%C3%A4%201?token=")
    assert Client().get(source).json()["jobID"] == "ä 1"
    assert Client().get(source.partition("?")[0]).status_code == 403


def test_the_tag_takes_names_and_runs(project):
    project.submit([project.pack.s(1)], job_id="etl", run_token="monday")
    text = "{% load celery_statemanager %}{% celery_job 'etl' 'monday' compact=True expires=60 %}"
    html = Template(text).render(Context())
    source = re.search(r'<celery-job src="([^"]+)" compact></celery-job>', html)[1].replace("&amp;", "&")
    assert Client().get(source).json()["runToken"] == "monday"
    missing = "{% load celery_statemanager %}{% celery_job 'none' %}{% celery_job nothing %}"
    assert Template(missing).render(Context()) == ""


def test_the_tag_shows_a_job_that_is_not_committed_yet(project):
    with transaction.atomic():
        job = project.submit([project.pack.s(1)], using="default")
        html = Template("{% load celery_statemanager %}{% celery_job job %}").render(Context({"job": job}))
    source = re.search(r'<celery-job src="([^"]+)"', html)[1]
    assert Client().get(source).json()["jobID"] == job.id


def test_the_tag_needs_the_urls(project, job, settings_without_urls):
    with pytest.raises(ConfigurationError, match="include"):
        Template("{% load celery_statemanager %}{% celery_job job %}").render(Context({"job": job}))


@pytest.fixture
def settings_without_urls():
    from django.test import override_settings

    with override_settings(ROOT_URLCONF=()):
        yield
