"""Values of the state machine: few names and rows, so that operations collide, and every kind of status."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import Scope
from celery_statemanager.records import Delivery, Flow, Policy, Returned, When
from celery_statemanager.testing.kit import FINISHED

TAGS = ("a", "b", "c")
PLANS: tuple[Any, ...] = (None, ("a", "b"), ("b", "a", "c"), {"a": [0, 1, 2], "b": [0, 2]}, {"c": [1, 2], "a": [0, 1]})
STATUSES = (0, 1, 2, 50, 100, 5000, 2**31 - 2, FINISHED, FINISHED, FINISHED, -1, -1, -6, -7, -8, -(2**31))
PROGRESS = '{"done":1,"total":4}'
PAYLOADS = (None, '{"n":1}', f'{{"progress":{PROGRESS},"n":2}}', '{"progress":"odd"}')
ROWS = 3
POLICIES = (Policy(), Policy(), Policy(0), Policy(1))
FLOWS = (None, Flow(), Flow(1), Flow(2), Flow(2, paused=True))
PUBLISHERS = ("p", "q", "r")
VALUES = ("", "", '{"v":1}', "[" + "1," * 50 + "1]", '"' + "ä" * 500 + '"')
"""Values of a few, some hundred and a thousand bytes, which a store may keep in different places; empty removes."""

places = st.tuples(st.sampled_from(TAGS), st.integers(0, ROWS - 1))
deliveries = st.builds(Delivery, st.integers(0, 1), st.integers(0, 1), st.integers(0, 2))
messages = st.sampled_from((None, "", "words", "wörds"))
ways = st.sampled_from(
    ({}, {}, {"takes_over": True}, {"supersedes": 1}, {"supersedes": 2}, {"supersedes": 1, "counts_as_loss": False})
)
owners = st.sampled_from((None, "w1", "w2"))
begins = st.builds(
    lambda way, **fields: {**way, **fields},
    ways,
    delivery=deliveries,
    owner=owners,
    kept=st.sampled_from((None, None, '{"n":1}')),
    may_wait=st.booleans(),
    stall_after=st.sampled_from((0, 0, 5)),
)
some_rows = st.builds(IndexSet, st.sets(st.integers(0, ROWS - 1)))
claims = st.fixed_dictionaries(
    {"publisher": st.sampled_from(PUBLISHERS), "limit": st.integers(0, 2)},
    optional={
        "dead": st.frozensets(st.sampled_from(PUBLISHERS), max_size=2),
        "ended": st.frozensets(st.sampled_from(PUBLISHERS), max_size=2),
        "drop_unclaimed": st.just(value=True),
        "returned": st.builds(lambda begun, waiting: Returned(begun, waiting.without(begun)), some_rows, some_rows),
    },
)
scopes = st.builds(Scope, st.sampled_from((None, None, *TAGS)), st.sampled_from((None, None, 0, 1)))
writes = st.fixed_dictionaries(
    {"status": st.sampled_from(STATUSES), "message": messages},
    optional={
        "block_later_stages": st.just(value=True),
        "keep_app_status": st.just(value=True),
        "counts_as_loss": st.just(value=True),
        "presumed_dead": st.just(value=True),
        "when": st.just(When.OPEN),
        "awaits_delivery": st.just(value=True),
        "payload": st.sampled_from(PAYLOADS),
        "keep_payload": st.just(value=True),
        "new_progress": st.just(PROGRESS),
        "publisher": st.sampled_from(PUBLISHERS),
        "kept": st.just('{"n":2}'),
        "value": st.sampled_from(VALUES),
        "next_is_due": st.just(value=True),
    },
)
