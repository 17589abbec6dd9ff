"""Who may do what: ``authorize``, tokens, and requests of other sites (rule R25)."""

from __future__ import annotations

import gc
import itertools
import time

import pytest
from starlette.exceptions import HTTPException
from web_kit import HEADERS, SECRET, everyone, new_states, serving

from celery_statemanager import ConfigurationError, JobNotFound
from celery_statemanager.web.app import HEADERS as SECURITY
from celery_statemanager.web.sealing import Sealer

MOUNTED = ["/", "/jobs/mine", "/api/jobs", "/api/jobs/mine", "/api/jobs/mine/states", "/api/jobs/mine/grid"]


@pytest.fixture
def jobs(submit):
    return {name: submit(name, 1, metadata={"owner": owner}) for name, owner in (("mine", "ada"), ("other", "bob"))}


@pytest.fixture
def asked():
    return []


@pytest.fixture(params=["sync", "async"])
def authorize(request, asked):
    """Allow to list jobs, and to view those of Ada."""

    def may(web_request, action, job):
        asked.append((action, None if job is None else job.id))
        return action == "list" or (action == "view" and job.metadata["owner"] == "ada")

    async def async_may(web_request, action, job):
        return may(web_request, action, job)

    return may if request.param == "sync" else async_may


@pytest.fixture
def restricted(states, jobs, authorize):
    with serving(states.web(authorize)) as client:
        yield client


def test_authorize_is_called_for_each_job_of_a_list(restricted, asked):
    assert [each["jobID"] for each in restricted.get("/api/jobs").json()["jobs"]] == ["mine"]
    assert asked == [("list", None), ("view", "other"), ("view", "mine")]


def test_a_job_that_may_not_be_viewed_is_refused_on_every_route(restricted):
    routes = ["", "/states", "/grid", "/why", "/events", "/events?view=cells"]
    for url in [*(f"/api/jobs/other{each}" for each in routes), "/jobs/other"]:
        response = restricted.get(url)
        assert response.status_code == 403, url
    assert response.headers["content-type"].startswith("text/html")
    error = restricted.get("/api/jobs/other").json()["error"]
    assert error == {"code": "forbidden", "message": "this request may not view job 'other'"}


def test_only_allowed_actions_are_offered_and_done(restricted, jobs):
    assert restricted.get("/api/jobs/mine").json()["actions"] == []
    for action in ("cancel", "pause", "resume", "rerun"):
        assert restricted.post(f"/api/jobs/mine/{action}", headers=HEADERS).status_code == 403
    assert jobs["mine"].phase == "waiting"


def test_names_of_similar_jobs_are_those_that_may_be_viewed(restricted, submit):
    submit("mine-2", 1, metadata={"owner": "bob"})
    missing = restricted.get("/api/jobs/mine-3")
    assert missing.status_code == 404
    assert [each["jobID"] for each in missing.json()["error"]["nearest"]] == ["mine"]
    assert "mine-2" not in missing.text
    page = restricted.get("/jobs/minee")
    assert page.status_code == 404
    assert '<a href="../jobs/mine">mine</a>' in page.text


@pytest.mark.parametrize("store_kind", ["redis"])
def test_a_cursor_hides_the_name_of_a_job_that_may_not_be_viewed(states, jobs):
    def may(request, action, job):
        return job is None or job.id == "mine"

    with serving(states.web(may)) as client:
        page = client.get("/api/jobs", params={"limit": 1}).json()
        assert page["jobs"] == []
        cursor = page["cursor"]
        assert "other" in Sealer(SECRET, "cursor of jobs").unseal(cursor)
        for bad in ("x", cursor[:-2], cursor.swapcase(), Sealer("another secret", "cursor of jobs").seal("1 x")):
            assert client.get("/api/jobs", params={"cursor": bad}).json()["error"]["code"] == "cursor"
        assert client.get("/api/jobs", params={"cursor": cursor}).json()["jobs"][0]["jobID"] == "mine"


def test_two_seals_of_a_text_differ():
    sealer = Sealer(SECRET, "cursor")
    sealed = [sealer.seal("1796080899173680 etl-42") for _ in range(2)]
    assert sealed[0] != sealed[1]
    assert {*map(sealer.unseal, sealed)} == {"1796080899173680 etl-42"}
    with pytest.raises(ValueError, match="another secret"):
        Sealer(SECRET, "another purpose").unseal(sealed[0])


def test_an_error_of_authorize_is_passed_on(states, jobs):
    def login(request, action, job):
        raise HTTPException(401, "log in first", {"WWW-Authenticate": "Bearer"})

    with serving(states.web(login)) as client:
        response = client.get("/api/jobs")
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert response.json()["error"] == {"code": "unauthorized", "message": "log in first"}

    def redirect(request, action, job):
        raise HTTPException(303, headers={"Location": "/login"})

    with serving(states.web(redirect)) as client:
        assert client.get("/").headers["location"] == "/login"

    def broken(request, action, job):
        raise RuntimeError("password: x")

    with serving(states.web(broken)) as client:
        response = client.get("/api/jobs")
        assert response.status_code == 500
        assert "password" not in response.text


@pytest.mark.filterwarnings("error")
def test_an_error_of_authorize_for_one_job_of_a_list_leaves_no_coroutine(states, jobs):
    asked = []

    async def login(request, action, job):
        asked.append(action)
        if action == "view":
            raise HTTPException(401)
        return True

    with serving(states.web(login)) as client:
        assert client.get("/api/jobs").status_code == 401
    gc.collect()
    assert asked == ["list", "view"]


def test_an_error_of_authorize_may_have_any_status(states, jobs):
    def closed(request, action, job):
        raise HTTPException(460, "closed for today")

    with serving(states.web(closed)) as client:
        response = client.get("/api/jobs")
        assert (response.status_code, response.json()["error"]["message"]) == (460, "closed for today")
        page = client.get("/")
        assert page.status_code == 460
        assert "closed for today" in page.text


def test_authorize_sees_the_request_as_the_server_passed_it_on(states, jobs):
    seen = []

    def may(request, action, job):
        seen.append((request.url.path, request.headers["authorization"], request.query_params["a"]))
        return True

    with serving(states.web(may)) as client:
        client.get("/api/jobs/mine", params={"a": "b"}, headers={"Authorization": "Bearer of-the-application"})
    assert {*seen} == {("/api/jobs/mine", "Bearer of-the-application", "b")}


@pytest.fixture
def closed(states, jobs):
    """A client of an application in which only tokens allow anything."""
    with serving(states.web(lambda request, action, job: False)) as client:
        yield client


def test_a_token_grants_its_actions_on_its_job_only(states, closed):
    token = states.web_token("mine", actions=("view", "pause"))
    for ask in ({"params": {"token": token}}, {"headers": {"Authorization": f"Bearer {token}"}}):
        shown = closed.get("/api/jobs/mine", **ask)
        assert shown.json()["actions"] == ["pause"]
        assert token not in shown.text
        assert closed.get("/api/jobs/mine/grid", **ask).status_code == 200
        assert closed.get("/jobs/mine", **ask).status_code == 200
        assert closed.get("/api/jobs/other", **ask).status_code == 403
        assert closed.get("/api/jobs", **ask).status_code == 403
    assert closed.post("/api/jobs/mine/pause", params={"token": token}, headers=HEADERS).json() == {"paused": True}
    assert closed.post("/api/jobs/mine/cancel", params={"token": token}, headers=HEADERS).status_code == 403


def test_a_token_ends_with_the_incarnation_of_its_job(states, closed, jobs, submit):
    token = states.web_token("mine")
    jobs["mine"].delete()
    submit("mine", 1)
    assert closed.get("/api/jobs/mine", params={"token": token}).status_code == 403


def test_an_expired_or_changed_token_is_refused_also_if_authorize_allows_all(states, jobs, client, monkeypatch):
    token = states.web_token("mine", expires=60)
    for bad in ("x", token[:-1], token.replace("csm1.", ""), f"{token}x"):
        refused = client.get("/api/jobs/mine", params={"token": bad})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "token")
    now = time.time()
    monkeypatch.setattr("celery_statemanager.web.tokens.time.time", lambda: now + 62)
    refused = client.get("/api/jobs/mine", params={"token": token})
    assert refused.json()["error"]["message"] == "the token has expired; request a new link"


def test_a_token_of_another_secret_is_refused(states, store_url, jobs, client):
    other = new_states(store_url, web_secret="another secret of tests")
    token = other.web_token("mine")
    other.store.close()
    assert client.get("/api/jobs/mine", params={"token": token}).status_code == 403


def test_invalid_tokens_are_not_created(states, jobs):
    with pytest.raises(JobNotFound):
        states.web_token("missing")
    for bad in (0, -1, 1e12, float("nan")):
        with pytest.raises(ValueError, match="expires"):
            states.web_token("mine", expires=bad)
    with pytest.raises(TypeError):
        states.web_token("mine", expires="1h")
    for actions in (("delete",), (), ("view", "list")):
        with pytest.raises(ValueError, match="actions"):
            states.web_token("mine", actions=actions)


@pytest.mark.parametrize("secret", ["short", 5, "ä" * 20])
def test_an_invalid_secret_is_reported(store_url, secret):
    with pytest.raises(ConfigurationError, match="statemanager_web_secret must be"):
        new_states(store_url, web_secret=secret).web(everyone)


def test_the_secret_is_not_shown_with_the_settings(states):
    assert SECRET not in repr(states.settings)


REFUSED = [
    ({}, "X-Requested-With"),
    ({**HEADERS, "Sec-Fetch-Site": "cross-site"}, "Sec-Fetch-Site"),
    ({**HEADERS, "Origin": "https://evil.example"}, "Origin"),
    ({**HEADERS, "Origin": "null"}, "Origin"),
    ({**HEADERS, "Origin": "http://[x"}, "Origin"),
]


@pytest.mark.parametrize(("headers", "named"), REFUSED)
def test_a_change_without_the_header_or_from_another_site_is_refused(client, jobs, headers, named):
    response = client.post("/api/jobs/mine/cancel", headers=headers)
    assert response.status_code == 403
    assert named in response.json()["error"]["message"]
    assert jobs["mine"].phase == "waiting"


def test_a_change_from_the_same_host_or_a_listed_origin_is_done(states, jobs):
    with serving(states.web(everyone, origins=["https://jobs.example"])) as client:
        own = str(client.base_url).rstrip("/")
        for origin in (own, "https://jobs.example"):
            headers = {**HEADERS, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
            assert client.post("/api/jobs/mine/pause", headers=headers).status_code == 200
        for host, origin, status in (
            ("jobs.test", "https://jobs.test:443", 200),
            ("jobs.test:443", "https://jobs.test", 200),
            ("jobs.test", "https://jobs.test:8443", 403),
        ):
            headers = {**HEADERS, "Origin": origin, "Host": host}
            assert client.post("/api/jobs/mine/pause", headers=headers).status_code == status, origin


def test_invalid_arguments_are_refused(states):
    with pytest.raises(TypeError, match="authorize"):
        states.web(None)
    for origin in ("example.com", "https://example.com/", "ftp://x", 5):
        with pytest.raises(ValueError, match="origins"):
            states.web(everyone, origins=[origin])


def test_every_response_has_the_security_headers(client, jobs):
    urls = [
        *MOUNTED,
        "/api/openapi.json",
        "/nothing",
        "/api/jobs/missing",
        "/api/jobs?limit=x",
        "/api/jobs/mine/events",
    ]
    for method, url in itertools.product(("HEAD", "DELETE"), urls):
        response = client.request(method, url)
        assert SECURITY.items() <= {**response.headers}.items(), url
        assert response.headers["cache-control"] in {"no-store", "no-cache"}, url
    assert client.get("/api/jobs").headers["cache-control"] == "no-store"


def test_other_methods_are_refused_with_those_allowed(client, jobs):
    for url in MOUNTED:
        response = client.delete(url)
        assert response.status_code == 405
        assert {*response.headers["allow"].split(", ")} == {"GET", "HEAD"}
    assert client.get("/api/jobs/mine/cancel").headers["allow"] == "POST"
    assert client.head("/api/jobs").content == b""
