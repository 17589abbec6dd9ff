"""Every store against a model of dicts, whatever is done to it in whatever order."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

from celery_statemanager.testing import StoreFactory, store_machine


@pytest.mark.timeout(3600)
def test_whatever_is_done_a_store_agrees_with_the_model(
    store_factory: StoreFactory, request: pytest.FixtureRequest, record_property
) -> None:
    machine = store_machine(store_factory.make)
    try:
        run_state_machine_as_test(machine)
    finally:
        for what, count in machine.counts.items():
            record_property(what, count)
    assert machine.counts["examples"] >= 10
