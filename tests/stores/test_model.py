"""Every store against a model of dicts, whatever is done to it in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from celery_statemanager.testing import StoreFactory, store_machine

MOST_EXAMPLES = {"firestore": 12, "redis-cluster": 20}
"""Where a step's recount is some hundred calls over a network, or the store differs from another by its client alone."""


@pytest.mark.timeout(3600)
def test_whatever_is_done_a_store_agrees_with_the_model(
    store_factory: StoreFactory, request: pytest.FixtureRequest, record_property
) -> None:
    machine = store_machine(store_factory.make)
    fewer = min(settings.default.max_examples, MOST_EXAMPLES.get(request.node.callspec.id, 10_000))
    try:
        run_state_machine_as_test(machine, settings=settings(settings.default, max_examples=fewer))
    finally:
        for what, count in machine.counts.items():
            record_property(what, count)
    assert machine.counts["examples"] >= 10
