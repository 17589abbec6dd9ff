"""Every store against a model of dicts, whatever is done to it in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from celery_statemanager.testing import StoreFactory, store_machine

FEWER = {"max_examples": 10, "stateful_step_count": 25}
"""Where a recount takes a second, for it is some hundred calls over a network."""
FEWER_RECOUNTS = 10


@pytest.mark.timeout(3600)
def test_whatever_is_done_a_store_agrees_with_the_model(
    store_factory: StoreFactory, request: pytest.FixtureRequest, record_property
) -> None:
    slow = "firestore" in request.node.callspec.id
    machine = store_machine(store_factory.make, FEWER_RECOUNTS if slow else 1)
    try:
        run_state_machine_as_test(machine, settings=settings(settings.default, **(FEWER if slow else {})))
    finally:
        for what, count in machine.counts.items():
            record_property(what, count)
    assert machine.counts["examples"] >= 10
