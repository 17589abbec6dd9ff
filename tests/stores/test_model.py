"""Random sequences of operations on every store, compared with a model of dicts."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from celery_statemanager.testing import StoreFactory, store_machine

NETWORK = {"max_examples": 10, "stateful_step_count": 25}
SERVER = {"max_examples": 100}
FEWER = {
    "firestore": NETWORK,
    "firestore-rest": NETWORK,
    "redis": SERVER,
    "postgres": SERVER,
    "redis-cluster": {"max_examples": 20},
}
"""Fewer examples for stores whose recount takes long, or that differ from another store only in the client."""

USUAL = 20
"""Examples without ``--full``."""


@pytest.mark.timeout(3600)
def test_a_store_agrees_with_the_model_after_random_operations(
    store_factory: StoreFactory, request: pytest.FixtureRequest, record_property
) -> None:
    name = request.node.callspec.params["store_factory"]
    fewer = FEWER.get(name, {})
    if not request.config.getoption("--full"):
        fewer = {**fewer, "max_examples": min(USUAL, fewer.get("max_examples", USUAL))}
    machine = store_machine(store_factory.make, recount_every=10 if name.startswith("firestore") else 1)
    try:
        run_state_machine_as_test(machine, settings=settings(settings.default, **fewer))
    finally:
        for what, count in machine.counts.items():
            record_property(what, count)
    assert machine.counts["examples"] >= 10
