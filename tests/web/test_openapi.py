"""The OpenAPI description fits the responses, also to generated requests (rule R25)."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import sampled_from
from schemathesis.specs.openapi.checks import positive_data_acceptance
from web_kit import everyone, new_states

from celery_statemanager import Manager, Status
from celery_statemanager.web.app import CHANGING, READING


@pytest.fixture
def app():
    states = new_states("memory://openapi")

    @states.app.task(name="openapi.work", shared=False)
    def work(row):
        return row

    for job_id in ("etl", "a/b"):
        job = states.submit([states.tag(work.s(row), "scan") for row in range(3)], job_id=job_id)
        Manager(states.store, job._record, 0).set_state("scan", Status.FAILED, "broken", {"a": 1})
    yield states.web(everyone)
    for page in states.store.list_jobs().jobs:
        states.store.delete_job(page)
    states.app.close()


@pytest.fixture
def description(app):
    return schemathesis.openapi.from_asgi("/api/openapi.json", app)


def test_every_route_of_the_api_is_described(description):
    described = {each.ok().path for each in description.get_all_operations()}
    assert described == {path for path in (*READING, *CHANGING) if path.startswith("/api/jobs")}


ROUTES = [("GET", path) for path in READING if path.startswith("/api/jobs") and not path.endswith("/events")]
ROUTES += [("POST", path) for path in CHANGING]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_generated_requests_are_answered_as_described(description, method, path):
    @given(case=description[path][method].as_strategy(), known=sampled_from([None, "etl", "a/b"]))
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case, known):
        if known is not None and "job_id" in (case.path_parameters or {}):
            case.path_parameters["job_id"] = known
        # a cursor or a tag that fits the schema may be none of this job
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()
