"""When a broker delivers the messages of a killed worker again (rule R16)."""

import pytest
from celery import Celery

from celery_statemanager.integration.brokers import Redelivers, put_back_delay, redelivers


@pytest.mark.parametrize(
    ("broker", "kind"),
    [
        ("amqp://nobody", Redelivers.AT_ONCE),
        ("amqp://one;amqp://two", Redelivers.AT_ONCE),
        ("redis://nobody", Redelivers.LATER),
        ("sentinel://nobody", Redelivers.LATER),
        ("filesystem://", Redelivers.NEVER),
        ("memory://", Redelivers.NEVER),
    ],
)
def test_kind_of_a_broker_is_known_without_a_connection(broker, kind):
    assert redelivers(Celery("brokers", broker=broker, set_as_current=False)) is kind


@pytest.mark.parametrize(
    ("broker", "heartbeat", "seconds"),
    [("amqp://nobody", 10, 20), ("amqp://nobody", None, 240), ("redis://nobody", 10, 0), ("filesystem://", 10, 0)],
)
def test_a_broker_puts_messages_back_when_it_has_missed_two_heartbeats(broker, heartbeat, seconds):
    app = Celery("brokers", broker=broker, set_as_current=False)
    app.conf.broker_heartbeat = heartbeat
    assert put_back_delay(app) == seconds
