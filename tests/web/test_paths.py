"""Names of jobs in URLs, mount points, static files and invalid parameters (rule R25)."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from web_kit import HEADERS, everyone, new_states, serving

from celery_statemanager.testing import FaultyStore
from celery_statemanager.web.paths import encoded_end

NAMES = [
    "etl 42",
    "ä☃/🎉",
    "a/b/c",
    "/",
    "..",
    "%2F",
    "100%",
    "a?b#c",
    "states",
    "a+b",
    "x" * 200,
    "☃" * 200,
    "\u202eabc",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_works_percent_encoded(client, submit, name):
    submit(name, 1)
    segment = quote(name, safe="").replace(".", "%2E")
    assert client.get(f"/api/jobs/{segment}").json()["jobID"] == name
    assert client.get(f"/api/jobs/{segment}/states").json()["states"][0]["jobID"] == name
    assert client.get(f"/jobs/{segment}").status_code == 200
    assert client.post(f"/api/jobs/{segment}/pause", headers=HEADERS).json() == {"paused": True}


@pytest.mark.parametrize("segment", ["%FF", "%00", "a%0Ab", "x" * 201, "x" * 5_000, "%ED%A0%80"])
def test_an_invalid_name_is_refused(client, segment):
    for url in (f"/api/jobs/{segment}", f"/api/jobs/{segment}/events", f"/jobs/{segment}"):
        response = client.get(url)
        assert response.status_code == 400, url
    assert client.get(f"/api/jobs/{segment}").json()["error"]["code"] == "name"
    assert client.get("/api/jobs/x", params={"run_token": "a\nb"}).status_code == 400


@pytest.mark.parametrize("path", ["/jobs/etl", "/nothing", "", "/"])
def test_a_websocket_is_refused(states, path):
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": path, "raw_path": path.encode(), "headers": [], "query_string": b""}
    asyncio.run(states.web(everyone)(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1000, "reason": ""}]


@pytest.mark.parametrize("depth", [1, 2])
def test_the_application_may_be_mounted_below_any_path(states, submit, depth):
    submit("a/b", 1)
    app = states.web(everyone)
    for _ in range(depth):
        app = Starlette(routes=[Mount("/jöbs", app)])
    with serving(app) as client:
        root = quote("/jöbs") * depth
        assert client.get(f"{root}/api/jobs/a%2Fb").json()["jobID"] == "a/b"
        assert client.get(f"{root}/").status_code == 200
        assert client.get(f"{root}/api/openapi.json").json()["servers"][0]["url"] == quote("/jöbs") * depth


def test_the_mount_point_without_a_slash_redirects(states):
    async def mounted(scope, receive, send):
        await app({**scope, "root_path": "/jobs"}, receive, send)

    app = states.web(everyone)
    with serving(mounted) as client:
        response = client.get("/jobs?token=x")
        assert (response.status_code, response.headers["location"]) == (307, "/jobs/?token=x")


def test_a_server_without_raw_path_is_refused_for_names_with_a_slash(states, submit):
    async def without(scope, receive, send):
        await app({name: value for name, value in scope.items() if name != "raw_path"}, receive, send)

    submit("a/b", 1)
    submit("ä 1", 1)
    app = states.web(everyone)
    with serving(without) as client:
        assert client.get("/api/jobs/%C3%A4%201").json()["jobID"] == "ä 1"
        refused = client.get("/api/jobs/a%2Fb/states")
        assert refused.status_code == 400
        assert "raw_path" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("raw", "path", "encoded"),
    [
        ("/jobs/api/jobs/a%2Fb", "/api/jobs/a/b", "/api/jobs/a%2Fb"),
        ("/api/jobs/a%2Fb", "/api/jobs/a/b", "/api/jobs/a%2Fb"),
        ("/other", "/api", None),
        ("/jobs", "", ""),
        ("", "/", None),
    ],
)
def test_the_encoded_path_is_the_end_that_decodes_to_the_path(raw, path, encoded):
    assert encoded_end(raw, path) == encoded


def test_only_packaged_files_are_served(client):
    for path in (
        "../app.py",
        "..%2Fapp.py",
        "%2e%2e/app.py",
        "....//app.py",
        "nothing.js",
        "",
        "a%00.js",
        "%5C..%5Capp.py",
    ):
        url = httpx.URL(client.base_url, raw_path=f"/static/{path}".encode())
        assert client.get(url).status_code == 404, path
    script = client.get("/static/celery-job.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["cache-control"] == "no-cache"
    again = client.get("/static/celery-job.js", headers={"If-None-Match": script.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "url",
    [
        "/api/jobs?limit=0",
        "/api/jobs?limit=x",
        "/api/jobs?limit=201",
        "/api/jobs?limit=٣",
        "/api/jobs?phase=late",
        "/api/jobs?cursor=1",
        f"/api/jobs?text={'x' * 201}",
        "/api/jobs/etl/states?class=broken",
        "/api/jobs/etl/states?limit=501",
        "/api/jobs/etl/states?task_index=4",
        "/api/jobs/etl/states?task_index=-1",
        "/api/jobs/etl/states?tag=missing",
        "/api/jobs/etl/states?tag=a%00",
        "/api/jobs/etl/states?cursor=x",
        "/api/jobs/etl/states?cursor=1@missing",
        "/api/jobs/etl/grid?tag=missing",
        "/api/jobs/etl/events?view=all",
        "/api/jobs/etl/events?view=cells&since=x",
        "/api/jobs/etl/events?view=cells&since=settled.x/1",
    ],
)
def test_an_invalid_parameter_is_refused_with_its_name(client, submit, url):
    submit("etl")
    response = client.get(url)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] in {"invalid", "cursor"}
    assert error["message"]


@pytest.mark.parametrize(("query", "code"), [("phase=sealed", "invalid"), ("cursor=sealed", "cursor")])
def test_an_invalid_parameter_of_a_list_is_not_taken_for_another(client, query, code):
    error = client.get(f"/api/jobs?{query}").json()["error"]
    assert error["code"] == code
    assert error["message"].startswith(query.partition("=")[0])


def test_an_unavailable_store_is_reported_with_the_time_to_retry(states, submit):
    submit("etl")
    states.store = FaultyStore(states.store)
    with serving(states.web(everyone)) as client, states.store.away():
        for url in ("/api/jobs", "/api/jobs/etl", "/api/jobs/etl/grid"):
            response = client.get(url)
            assert (response.status_code, response.headers["retry-after"]) == (503, "5"), url
            assert response.json()["error"]["code"] == "unavailable"
        assert client.get("/jobs/etl").status_code == 200


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("redis://ada:secret@127.0.0.1:1/0", 503, "unavailable"),
        ("sqlite:////missing/secret/states.db", 500, "configuration"),
    ],
)
def test_the_address_of_a_store_is_logged_and_not_shown(url, status, code, caplog):
    shown = []
    with serving(new_states(url).web(lambda request, action, job: False)) as client:
        response = client.get("/api/jobs/etl")
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        shown.append(response.text)
        for view in ("cells", "summary"):
            response = client.get("/api/jobs/etl/events", params={"view": view})
            assert response.status_code == (200 if code == "unavailable" else status)
            shown.append(response.text)
    assert all(code in each for each in shown)
    assert not any(secret in each for each in shown for secret in ("127.0.0.1", "ada", "secret"))
    address = url.replace("secret@", "**@")
    assert [address in each.getMessage() for each in caplog.records] == [True] * 3


@pytest.mark.parametrize(
    "body", ["{", "[]", "5", b"\xff", '{"reason": 5}', '{"reason": "' + "x" * 2_001 + '"}', '{"a": 1}']
)
def test_an_invalid_body_is_refused(client, submit, body):
    job = submit("etl")
    response = client.post("/api/jobs/etl/cancel", content=body, headers=HEADERS)
    assert response.status_code == 400
    assert job.phase == "waiting"


def test_a_large_body_is_refused(client, submit):
    submit("etl")
    response = client.post("/api/jobs/etl/cancel", content=b"x" * 70_000, headers=HEADERS)
    assert response.status_code == 413
