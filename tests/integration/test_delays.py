"""A job records which rows are submitted with an eta or a countdown, for ``why-state``."""

import uuid
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery, chain

from celery_statemanager import StateManager
from celery_statemanager.explain import explain

TOMORROW = datetime.now(timezone.utc) + timedelta(days=1)


@pytest.fixture
def app():
    app = Celery(uuid.uuid4().hex, broker=f"memory://{uuid.uuid4().hex}", set_as_current=False)
    app.conf.statemanager_store_url = f"memory://{uuid.uuid4().hex}"
    with app:
        yield app


@pytest.fixture
def work(app):
    @app.task(name="work", shared=False)
    def work():
        """Do nothing."""

    return work


def delays(app, members):
    states = StateManager(app)
    job = states.store.get_job(states.submit(members).manager.ref.key)
    return job.flow.delayed, job.flow.delayed_until, [each.code for each in explain(states.store, job)]


@pytest.mark.parametrize(
    "options",
    [
        {"eta": TOMORROW},
        {"eta": TOMORROW.isoformat()},
        {"eta": TOMORROW.replace(tzinfo=None)},
        {"eta": TOMORROW.astimezone(timezone(timedelta(hours=5)))},
    ],
    ids=["aware", "text", "naive", "elsewhere"],
)
def test_the_eta_of_rows_is_recorded(app, work, options):
    members = [work.s(), work.s().set(**options), chain(work.s().set(**options), StateManager.tag(work.si(), "second"))]
    rows, until, codes = delays(app, members)
    assert (rows, until) == ("1-2", round(TOMORROW.timestamp() * 1_000_000))
    assert "delayed" in codes


def test_a_countdown_counts_from_the_submission(app, work):
    rows, until, codes = delays(app, [work.s().set(countdown=60)])
    assert rows == "0"
    assert 0 < until / 1_000_000 - datetime.now(timezone.utc).timestamp() <= 60
    assert codes == ["delayed"]


def test_rows_without_a_delay_are_not_recorded(app, work):
    assert delays(app, [work.s(), work.s().set(countdown=0)]) == ("", 0, ["queued"])


def test_the_number_of_recorded_ranges_is_limited(app, work):
    rows, _, _ = delays(app, [work.s().set(countdown=60 * (row % 2)) for row in range(400)])
    assert len(rows.split(",")) == 100
