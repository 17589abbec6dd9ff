"""Who delivers a message once more if its worker is lost: a sweep, by a stored copy, or the broker (rule R16)."""

from types import SimpleNamespace

import pytest
from celery import Celery

from celery_statemanager import StatefulTask
from celery_statemanager.integration.copies import Redelivers, copy_of_execution, copy_of_received, redelivers
from celery_statemanager.integration.redelivery import MAX_BYTES
from celery_statemanager.records import AT_BROKER

AT_ONCE, LATER, NEVER = "amqp://nobody", "redis://nobody", "filesystem://"


def app_on(broker):
    return Celery("copies", broker=broker, set_as_current=False)


def received(body="[[], {}, {}]", **options):
    message = SimpleNamespace(
        content_type="application/json",
        content_encoding="utf-8",
        body=body,
        properties={},
        delivery_info={},
        headers={"task": "t"},
    )
    return SimpleNamespace(
        message=message, task=SimpleNamespace(**{"name": "t", "on_lost": None, "acks_late": False, **options})
    )


@pytest.mark.parametrize(
    ("broker", "kind"),
    [
        (AT_ONCE, Redelivers.AT_ONCE),
        ("amqp://one;amqp://two", Redelivers.AT_ONCE),
        (LATER, Redelivers.LATER),
        ("sentinel://nobody", Redelivers.LATER),
        (NEVER, Redelivers.NEVER),
        ("memory://", Redelivers.NEVER),
    ],
)
def test_kind_of_a_broker_is_known_without_a_connection(broker, kind):
    assert redelivers(app_on(broker)) is kind


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize(
    ("broker", "drops_duplicates", "expected"),
    [(AT_ONCE, True, AT_BROKER), (AT_ONCE, False, AT_BROKER), (LATER, True, "copy"), (NEVER, False, "copy")],
)
def test_received_row_is_delivered_again_under_every_policy(broker, drops_duplicates, expected, late):
    copy = copy_of_received(app_on(broker), received(acks_late=late), "auto", drops_duplicates=drops_duplicates)
    assert copy == AT_BROKER if expected == AT_BROKER else copy.startswith("{")


@pytest.mark.parametrize(("policy", "expected"), [("requeue", "{"), ("mark", "@"), (None, "@")])
def test_received_row_that_no_veto_protects_is_sent_again_only_if_it_may_run_twice(policy, expected):
    """Redis delivers it again after its visibility timeout, too."""
    assert copy_of_received(app_on(LATER), received(on_lost=policy), "auto", drops_duplicates=False)[0] == expected


@pytest.mark.parametrize(("broker", "expected"), [(LATER, AT_BROKER), (NEVER, None)])
def test_received_row_that_is_too_large_to_be_stored_is_left_to_the_broker(broker, expected):
    request = received(body="x" * MAX_BYTES)
    assert copy_of_received(app_on(broker), request, "auto", drops_duplicates=True) == expected


@pytest.mark.parametrize(
    ("broker", "late", "policy", "expected"),
    [
        (AT_ONCE, True, None, AT_BROKER),
        (LATER, True, None, AT_BROKER),
        (NEVER, True, None, None),
        (AT_ONCE, False, "requeue", None),
        (AT_ONCE, True, "mark", None),
    ],
)
def test_running_message_that_is_too_large_is_left_to_the_broker_if_it_still_has_it(broker, late, policy, expected):
    app = app_on(broker)

    @app.task(shared=False, base=StatefulTask, acks_late=late, on_lost=policy)
    def task(): ...

    task.push_request(args=["x" * MAX_BYTES], kwargs={}, id="id")
    try:
        assert copy_of_execution(task, "auto") == expected
    finally:
        task.pop_request()
