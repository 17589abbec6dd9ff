"""When a broker delivers the messages of a killed worker again (rule R16)."""

import pytest
from celery import Celery

from celery_statemanager.integration.brokers import Redelivers, redelivers


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
