"""The decision tables of begins and writes, line by line. The store contract tests every store against the same rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from celery_statemanager import AttemptSuperseded, JobCancelled, Status
from celery_statemanager.records import (
    CALLBACK_ROW,
    FRACTION_UNIT,
    Begin,
    Cancellation,
    Cell,
    Delivery,
    Flow,
    Latch,
    Tally,
    Verdict,
    When,
    Write,
    new_job,
)
from celery_statemanager.transitions import apply_begin, apply_write, blocked, tally_of, unblocked

JOB = new_job("job", 3, ("a", "b"))
CANCELLED_JOB = replace(JOB, cancelled=Cancellation("why", 1))
SETTLED_JOB = JOB.with_latches(settled=Latch(None, 1))
BOTH = replace(SETTLED_JOB, cancelled=Cancellation("why", 1))
PAUSED_JOB = replace(JOB, flow=Flow(paused=True))
FINISHED, FAILED, CANCELLED, LOST = (int(Status[name]) for name in ("FINISHED", "FAILED", "CANCELLED", "LOST"))

NEW = Cell()
ZERO = Cell(0, version=1, event_id="z")
RUNNING = Cell(
    1, version=2, event_id="r", attempt=2, open=True, delivery=Delivery(0, 1, 1), owner="w", kept="m", began_at=9
)
RETRYING = Cell(1, version=3, event_id="t", attempt=2, delivery=Delivery(0, 1, 2), kept="m")
WROTE_DONE = replace(RUNNING, status=FINISHED)
WROTE_ERROR = replace(RUNNING, status=-42, message="mine")
DONE = Cell(FINISHED, version=4, event_id="d", attempt=2, delivery=Delivery(0, 1, 1))
ERROR = Cell(FAILED, version=4, event_id="b", attempt=2, delivery=Delivery(0, 1, 1), began_at=9)
BLOCKED = Cell(FAILED, version=1, event_id="x", blocked_by="z")
NEVER_BEGAN = Cell(int(Status.LOST), version=1, event_id="l", losses=1)
HALFWAY = Cell(50, version=1, event_id="h")
PRESUMED_LOST = replace(ERROR, status=int(Status.LOST), message="lost", owner="w", began_at=0)
PROVEN = replace(DONE, message="page 5", owner="w")
WAITING_AGAIN = Cell(0, "sent again", version=1, event_id="w", delivery=Delivery(1))
REQUEUED = replace(RETRYING, owner="w", began_at=9)

EARLIER, EQUAL, LATER = Delivery(0, 1, 0), Delivery(0, 1, 1), Delivery(0, 1, 2)
AGAIN = Delivery(1, 1, 1)
SENT_BACK = {"status": 1, "message": "sent again", "due_again": True}

BEGINS: list[tuple[Any, Cell, dict[str, Any], Verdict]] = [
    (JOB, NEW, {}, Verdict.BEGUN),
    (JOB, ZERO, {}, Verdict.BEGUN),
    (JOB, HALFWAY, {}, Verdict.BEGUN),
    (JOB, BLOCKED, {}, Verdict.BEGUN),
    (JOB, RUNNING, {"delivery": EARLIER}, Verdict.STALE),
    (JOB, RUNNING, {"delivery": Delivery(0, 0, 9)}, Verdict.STALE),
    (JOB, RUNNING, {"delivery": EQUAL}, Verdict.DUPLICATE),
    (JOB, RUNNING, {"delivery": LATER}, Verdict.BEGUN),
    (JOB, RUNNING, {"delivery": Delivery(0, 2, 0)}, Verdict.BEGUN),
    (JOB, RUNNING, {"delivery": EQUAL, "supersedes": 1}, Verdict.DUPLICATE),
    (JOB, RUNNING, {"delivery": EQUAL, "supersedes": 2}, Verdict.BEGUN),
    (JOB, RUNNING, {"delivery": EARLIER, "supersedes": 2}, Verdict.BEGUN),
    (JOB, RUNNING, {"takes_over": True}, Verdict.BEGUN),
    (JOB, WROTE_DONE, {"delivery": EQUAL}, Verdict.DUPLICATE),
    (JOB, WROTE_DONE, {"delivery": LATER}, Verdict.BEGUN),
    (JOB, WROTE_ERROR, {"delivery": EQUAL}, Verdict.DUPLICATE),
    (JOB, RETRYING, {"delivery": EQUAL}, Verdict.STALE),
    (JOB, RETRYING, {"delivery": EQUAL, "supersedes": 2}, Verdict.STALE),
    (JOB, RETRYING, {"delivery": LATER}, Verdict.BEGUN),
    (JOB, ERROR, {"delivery": EARLIER}, Verdict.STALE),
    (JOB, ERROR, {"delivery": EQUAL}, Verdict.BEGUN),
    (JOB, DONE, {"delivery": LATER}, Verdict.FINISHED),
    (JOB, DONE, {"takes_over": True}, Verdict.FINISHED),
    (JOB, DONE, {"supersedes": 2}, Verdict.FINISHED),
    (SETTLED_JOB, ERROR, {"takes_over": True}, Verdict.CLOSED),
    (SETTLED_JOB, replace(ERROR, status=LOST), {"delivery": LATER}, Verdict.CLOSED),
    (SETTLED_JOB, replace(BLOCKED, status=LOST), {}, Verdict.CLOSED),
    (SETTLED_JOB, NEVER_BEGAN, {"tag": "unplanned"}, Verdict.CLOSED),
    (SETTLED_JOB, NEVER_BEGAN, {}, Verdict.BEGUN),
    (SETTLED_JOB, NEW, {}, Verdict.BEGUN),
    (SETTLED_JOB, RETRYING, {"delivery": LATER}, Verdict.BEGUN),
    (SETTLED_JOB, RUNNING, {"delivery": EQUAL}, Verdict.DUPLICATE),
    (BOTH, NEVER_BEGAN, {}, Verdict.CLOSED),
    (SETTLED_JOB, DONE, {}, Verdict.FINISHED),
    (SETTLED_JOB, NEW, {"task_index": CALLBACK_ROW}, Verdict.BEGUN),
    (SETTLED_JOB, DONE, {"task_index": CALLBACK_ROW}, Verdict.FINISHED),
    (CANCELLED_JOB, NEW, {}, Verdict.CANCELLED),
    (CANCELLED_JOB, RUNNING, {"takes_over": True}, Verdict.CANCELLED),
    (CANCELLED_JOB, RUNNING, {"delivery": LATER}, Verdict.CANCELLED),
    (CANCELLED_JOB, ERROR, {"delivery": LATER}, Verdict.CANCELLED),
    (CANCELLED_JOB, RETRYING, {"delivery": LATER}, Verdict.CANCELLED),
    (CANCELLED_JOB, DONE, {}, Verdict.FINISHED),
    (CANCELLED_JOB, NEW, {"task_index": CALLBACK_ROW}, Verdict.BEGUN),
    (BOTH, NEW, {}, Verdict.CLOSED),
    (JOB, PRESUMED_LOST, {"delivery": EQUAL}, Verdict.BEGUN),
    (SETTLED_JOB, PRESUMED_LOST, {"delivery": LATER}, Verdict.CLOSED),
    (SETTLED_JOB, RETRYING, {"delivery": LATER}, Verdict.BEGUN),
    (SETTLED_JOB, ZERO, {}, Verdict.BEGUN),
    (JOB, PROVEN, {"delivery": LATER}, Verdict.FINISHED),
    (JOB, ERROR, {"delivery": EQUAL, "owner": "w2"}, Verdict.CLOSED),
    (JOB, ERROR, {"delivery": EQUAL, "owner": "w2", "takes_over": True}, Verdict.BEGUN),
    (JOB, ERROR, {"delivery": LATER, "owner": "w2"}, Verdict.BEGUN),
    (JOB, PRESUMED_LOST, {"delivery": EQUAL, "owner": "w2"}, Verdict.CLOSED),
    (JOB, RETRYING, {"delivery": LATER, "owner": "w2"}, Verdict.BEGUN),
    (JOB, NEVER_BEGAN, {"owner": "w2"}, Verdict.BEGUN),
    (JOB, BLOCKED, {"owner": "w2"}, Verdict.BEGUN),
    (JOB, RUNNING, {"delivery": Delivery(1)}, Verdict.BEGUN),
    (JOB, WAITING_AGAIN, {}, Verdict.STALE),
    (JOB, WAITING_AGAIN, {"delivery": Delivery(0, 9, 9)}, Verdict.STALE),
    (JOB, WAITING_AGAIN, {"delivery": Delivery(1)}, Verdict.BEGUN),
    (JOB, NEW, {"may_wait": True}, Verdict.BEGUN),
    (PAUSED_JOB, NEW, {}, Verdict.BEGUN),
    (PAUSED_JOB, NEW, {"may_wait": True}, Verdict.PAUSED),
    (PAUSED_JOB, ZERO, {"may_wait": True}, Verdict.PAUSED),
    (PAUSED_JOB, NEW, {"may_wait": True, "takes_over": True}, Verdict.BEGUN),
    (PAUSED_JOB, WAITING_AGAIN, {"may_wait": True}, Verdict.STALE),
    (PAUSED_JOB, WAITING_AGAIN, {"may_wait": True, "delivery": Delivery(1)}, Verdict.PAUSED),
    (PAUSED_JOB, BLOCKED, {"may_wait": True}, Verdict.BEGUN),
    (PAUSED_JOB, RETRYING, {"may_wait": True, "delivery": LATER}, Verdict.BEGUN),
    (PAUSED_JOB, RUNNING, {"may_wait": True, "delivery": EQUAL}, Verdict.DUPLICATE),
    (replace(PAUSED_JOB, cancelled=Cancellation("why", 1)), NEW, {"may_wait": True}, Verdict.CANCELLED),
]


def begin(**fields: Any) -> Begin:
    return Begin(**{"tag": "a", "task_index": 0, "event_id": "new", **fields})


def write(status: int, **fields: Any) -> Write:
    return Write(**{"tag": "a", "task_index": 0, "event_id": "new", "status": status, **fields})


@pytest.mark.parametrize(("job", "cell", "fields", "verdict"), BEGINS)
def test_a_begin_gets_the_verdict_of_the_table(job: Any, cell: Cell, fields: dict[str, Any], verdict: Verdict) -> None:
    found, after = apply_begin(job, cell, begin(**fields), 7)
    assert found is verdict
    ends = job.cancelled and not job.settled and cell is RETRYING
    assert (after is cell) == (verdict not in {Verdict.BEGUN, Verdict.PAUSED} and not ends)


def test_a_begin_starts_a_new_attempt_and_keeps_payload_and_losses() -> None:
    old = replace(RUNNING, payload='{"n":1}', losses=1, message="old")
    request = begin(delivery=LATER, owner="w2", kept="m2", message="retry 2")
    assert apply_begin(JOB, old, request, 77)[1] == Cell(
        1, "retry 2", '{"n":1}', 77, 3, "new", 3, True, LATER, "w2", 1, "m2", None, 77
    )


def test_a_begin_without_a_message_keeps_that_of_the_cell() -> None:
    assert apply_begin(JOB, RETRYING, begin(delivery=LATER), 7)[1].kept == "m"


def test_a_begin_that_waits_leaves_the_cell_unbegun_and_accepts_only_the_next_publication() -> None:
    old = replace(WAITING_AGAIN, payload='{"n":1}')
    _, cell = apply_begin(PAUSED_JOB, old, begin(may_wait=True, delivery=Delivery(3, 1, 2), owner="w"), 7)
    assert cell == replace(old, timestamp=7, version=2, event_id="new", delivery=Delivery(4, 1, 2))


@pytest.mark.parametrize(
    ("cell", "fields", "losses"),
    [
        (RUNNING, {"supersedes": 2}, 1),
        (RUNNING, {"supersedes": 2, "counts_as_loss": False}, 0),
        (RUNNING, {"delivery": LATER}, 0),
        (RUNNING, {"takes_over": True}, 0),
        (replace(RUNNING, owner=None), {"supersedes": 2}, 0),
        (RETRYING, {"supersedes": 2, "delivery": LATER}, 0),
    ],
)
def test_superseding_a_workers_attempt_counts_as_a_loss(cell: Cell, fields: dict[str, Any], losses: int) -> None:
    assert apply_begin(JOB, cell, begin(**fields), 7)[1].losses == losses


def test_a_retry_vetoed_by_cancellation_ends_as_cancelled() -> None:
    _, cell = apply_begin(CANCELLED_JOB, RETRYING, begin(delivery=LATER), 7)
    assert cell == replace(RETRYING, status=CANCELLED, message="why", timestamp=7, version=4, event_id="new", kept=None)


REJECTED: list[tuple[Any, Cell, dict[str, Any], type[Exception]]] = [
    (JOB, NEW, {"attempt": 1}, AttemptSuperseded),
    (JOB, RUNNING, {"attempt": 1}, AttemptSuperseded),
    (JOB, RUNNING, {"attempt": 3}, AttemptSuperseded),
    (JOB, DONE, {"attempt": 1}, AttemptSuperseded),
    (JOB, RUNNING, {"if_owner": ("other", EQUAL)}, AttemptSuperseded),
    (JOB, RUNNING, {"if_owner": ("w", LATER)}, AttemptSuperseded),
    (JOB, RETRYING, {"if_owner": ("w", LATER)}, AttemptSuperseded),
    (JOB, NEW, {"when": When.OPEN}, AttemptSuperseded),
    (JOB, RETRYING, {"when": When.OPEN}, AttemptSuperseded),
    (JOB, DONE, {"when": When.OPEN, "attempt": 2}, AttemptSuperseded),
    (JOB, RUNNING, {"when": When.IDLE}, AttemptSuperseded),
    (JOB, WROTE_DONE, {"when": When.IDLE}, AttemptSuperseded),
    (JOB, DONE, {"when": When.IDLE}, AttemptSuperseded),
    (JOB, ERROR, {"when": When.IDLE}, AttemptSuperseded),
    (JOB, PRESUMED_LOST, {"when": When.OPEN, "attempt": 2}, AttemptSuperseded),
    (JOB, PRESUMED_LOST, {"when": When.OPEN, "attempt": 1, "ends_attempt": True}, AttemptSuperseded),
    (JOB, PRESUMED_LOST, {"when": When.OPEN, "ends_attempt": True, "presumed_dead": True}, AttemptSuperseded),
    (JOB, ERROR, {"when": When.OPEN, "attempt": 2, "ends_attempt": True}, AttemptSuperseded),
    (JOB, PROVEN, {"when": When.OPEN, "attempt": 2, "ends_attempt": True}, AttemptSuperseded),
    (CANCELLED_JOB, NEW, {"status": FINISHED}, JobCancelled),
    (CANCELLED_JOB, NEW, {"status": 5}, JobCancelled),
    (CANCELLED_JOB, ZERO, {"status": FAILED}, JobCancelled),
    (CANCELLED_JOB, NEW, {"status": FAILED, "when": When.IDLE}, JobCancelled),
    (CANCELLED_JOB, RUNNING, {"status": 5}, JobCancelled),
    (CANCELLED_JOB, RUNNING, {"status": 0}, JobCancelled),
    (CANCELLED_JOB, HALFWAY, {"status": 60}, JobCancelled),
    (CANCELLED_JOB, DONE, {"status": 5}, JobCancelled),
    (CANCELLED_JOB, RUNNING, {"status": 5, "attempt": 1}, AttemptSuperseded),
    (JOB, RUNNING, {**SENT_BACK, "when": When.IDLE}, AttemptSuperseded),
    (JOB, DONE, {**SENT_BACK, "when": When.IDLE}, AttemptSuperseded),
    (JOB, RETRYING, {**SENT_BACK, "when": When.OPEN}, AttemptSuperseded),
    (JOB, RETRYING, {**SENT_BACK, "when": When.IDLE, "attempt": 1}, AttemptSuperseded),
    (CANCELLED_JOB, NEW, {**SENT_BACK, "when": When.IDLE}, JobCancelled),
]

ACCEPTED: list[tuple[Any, Cell, dict[str, Any], dict[str, Any]]] = [
    (JOB, NEW, {}, {"status": 5, "version": 1, "open": False}),
    (JOB, RUNNING, {"ends_attempt": True, "presumed_dead": True}, {"open": False, "owner": "w"}),
    (
        JOB,
        WROTE_ERROR,
        {"ends_attempt": True, "presumed_dead": True, "keep_app_status": True},
        {"status": -42, "owner": None},
    ),
    (JOB, PRESUMED_LOST, {"when": When.OPEN, "ends_attempt": True}, {"status": 5, "owner": None, "open": False}),
    (
        JOB,
        PRESUMED_LOST,
        {"when": When.OPEN, "ends_attempt": True, "status": FINISHED, "keep_app_status": True},
        {"status": FINISHED, "message": None, "owner": None},
    ),
    (
        JOB,
        PROVEN,
        {"when": When.OPEN, "ends_attempt": True, "status": FINISHED, "keep_app_status": True},
        {"status": FINISHED, "message": "page 5", "owner": None},
    ),
    (JOB, RUNNING, {"attempt": 2}, {"open": True, "owner": "w", "kept": "m", "attempt": 2, "began_at": 9}),
    (JOB, RUNNING, {"if_owner": ("w", EQUAL)}, {"status": 5}),
    (JOB, RUNNING, {"ends_attempt": True}, {"open": False, "owner": None, "kept": "m", "status": 5}),
    (JOB, RUNNING, {"ends_attempt": True, "status": FINISHED}, {"open": False, "owner": None, "kept": None}),
    (JOB, RUNNING, {"ends_attempt": True, "status": FAILED}, {"kept": None, "status": FAILED}),
    (JOB, RUNNING, {"status": FINISHED}, {"open": True, "kept": "m"}),
    (JOB, RUNNING, {"ends_attempt": True, "status": 1, "next_delivery": LATER}, {"delivery": LATER, "open": False}),
    (JOB, RUNNING, {"next_delivery": Delivery()}, {"delivery": EQUAL}),
    (JOB, WAITING_AGAIN, {"next_delivery": LATER}, {"delivery": Delivery(1)}),
    (JOB, RUNNING, {"kept": "m2"}, {"kept": "m2"}),
    (JOB, RUNNING, {"kept": "m2", "ends_attempt": True, "status": FINISHED}, {"kept": None}),
    (
        JOB,
        RUNNING,
        {**SENT_BACK, "when": When.OPEN, "ends_attempt": True, "presumed_dead": True, "counts_as_loss": True},
        {"status": 1, "delivery": AGAIN, "open": False, "owner": "w", "began_at": 0, "losses": 1, "kept": "m"},
    ),
    (JOB, RUNNING, {**SENT_BACK, "ends_attempt": True, "next_delivery": LATER}, {"delivery": AGAIN}),
    (JOB, NEW, {**SENT_BACK, "when": When.IDLE}, {"status": 0, "message": "sent again", "delivery": Delivery(1)}),
    (JOB, RETRYING, {**SENT_BACK, "when": When.IDLE}, {"status": 1, "delivery": Delivery(1, 1, 2), "kept": "m"}),
    (JOB, REQUEUED, {**SENT_BACK, "when": When.IDLE}, {"status": 1, "delivery": Delivery(1, 1, 2), "owner": None}),
    (JOB, RUNNING, {"counts_as_loss": True}, {"losses": 1}),
    (JOB, DONE, {"attempt": 2}, {"status": 5, "open": False}),
    (JOB, BLOCKED, {}, {"blocked_by": None}),
    (JOB, NEW, {"when": When.IDLE, "status": FAILED}, {"status": FAILED}),
    (JOB, RETRYING, {"when": When.IDLE, "status": FAILED}, {"status": FAILED, "kept": None}),
    (
        JOB,
        WROTE_ERROR,
        {"keep_app_status": True, "ends_attempt": True, "status": FINISHED},
        {"status": -42, "message": "mine"},
    ),
    (
        JOB,
        WROTE_ERROR,
        {"keep_app_status": True, "status": FAILED, "message": "theirs"},
        {"status": -42, "message": "mine"},
    ),
    (JOB, WROTE_ERROR, {"ends_attempt": True, "status": FINISHED}, {"status": FINISHED, "message": None}),
    (
        JOB,
        WROTE_DONE,
        {"keep_app_status": True, "status": FAILED, "message": "theirs"},
        {"status": FAILED, "message": "theirs"},
    ),
    (JOB, ERROR, {"keep_app_status": True, "status": FINISHED}, {"status": FINISHED}),
    (JOB, replace(RUNNING, message="page 5"), {"keep_app_status": True, "status": FINISHED}, {"message": "page 5"}),
    (JOB, replace(RUNNING, message="page 5"), {"keep_app_status": True, "message": "end"}, {"message": "end"}),
    (JOB, replace(RUNNING, message="page 5"), {}, {"message": None}),
    (CANCELLED_JOB, RUNNING, {"status": FINISHED}, {"status": FINISHED}),
    (CANCELLED_JOB, RUNNING, {"status": 5, "ends_attempt": True}, {"status": 5, "open": False}),
    (CANCELLED_JOB, NEW, {"status": FAILED, "ends_attempt": True}, {"status": FAILED}),
    (CANCELLED_JOB, HALFWAY, {"status": -9}, {"status": -9}),
    (CANCELLED_JOB, RETRYING, {"status": FAILED, "when": When.IDLE}, {"status": CANCELLED, "message": "why"}),
    (CANCELLED_JOB, NEW, {"status": 5, "task_index": CALLBACK_ROW}, {"status": 5}),
    (
        CANCELLED_JOB,
        RETRYING,
        {**SENT_BACK, "when": When.IDLE},
        {"status": CANCELLED, "message": "why", "delivery": LATER, "kept": None},
    ),
    (
        CANCELLED_JOB,
        RUNNING,
        {**SENT_BACK, "when": When.OPEN, "ends_attempt": True, "presumed_dead": True},
        {"status": CANCELLED, "message": "why", "delivery": EQUAL, "owner": None, "open": False},
    ),
    (SETTLED_JOB, DONE, {"status": 5}, {"status": 5}),
]


@pytest.mark.parametrize(("job", "cell", "fields", "kind"), REJECTED)
def test_a_write_is_rejected(job: Any, cell: Cell, fields: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        apply_write(job, cell, write(**{"status": 5, **fields}), 7)


@pytest.mark.parametrize(("job", "cell", "fields", "expected"), ACCEPTED)
def test_a_write_is_accepted(job: Any, cell: Cell, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    after = apply_write(job, cell, write(**{"status": 5, **fields}), 7)
    assert {name: getattr(after, name) for name in expected} == expected
    assert (after.version, after.timestamp, after.event_id) == (cell.version + 1, 7, "new")


@pytest.mark.parametrize("job", [JOB, CANCELLED_JOB, SETTLED_JOB])
def test_a_repeated_event_id_returns_the_same_cell(job: Any) -> None:
    for cell in (ZERO, RUNNING, RETRYING, DONE, ERROR, HALFWAY):
        request = write(99, event_id=cell.event_id, attempt=77, when=When.OPEN, ends_attempt=True)
        assert apply_write(job, cell, request, 7) is cell


def test_an_unwritten_cell_has_no_event_id_to_repeat() -> None:
    assert apply_write(JOB, NEW, write(5, event_id=""), 7).version == 1


def test_a_blocked_cell_names_the_failed_stage_and_is_restored_when_unblocked() -> None:
    cell = replace(ZERO, payload='{"n":1}', attempt=1)
    gone = blocked(cell, replace(ERROR, message="no file"), "scan", "end", 7)
    assert gone == replace(
        cell,
        status=FAILED,
        message="not run: stage 'scan' failed: no file",
        timestamp=7,
        version=2,
        event_id="end",
        blocked_by="scan",
    )
    assert unblocked(gone, "again", 8) == replace(cell, message=None, timestamp=8, version=3, event_id="again")


TALLIES = [
    (NEW, Tally()),
    (ZERO, Tally()),
    (replace(RUNNING, status=0), Tally(pending=1)),
    (RUNNING, Tally(running=1, pending=1)),
    (RETRYING, Tally(running=1, pending=1)),
    (HALFWAY, Tally(running=1, pending=1, progress=FRACTION_UNIT // 2)),
    (replace(HALFWAY, status=101), Tally(running=1, pending=1)),
    (replace(HALFWAY, status=2**31 - 2), Tally(running=1, pending=1)),
    (WROTE_DONE, Tally(finished=1, pending=1)),
    (DONE, Tally(finished=1, succeeded=1, ended=1)),
    (WROTE_ERROR, Tally(failed=1, pending=1)),
    (ERROR, Tally(failed=1, ended=1, failed_rows=1)),
    (replace(ERROR, failures=2), Tally(failed=1, ended=1, failures=2, failed_rows=1)),
    (replace(DONE, failures=1), Tally(finished=1, succeeded=1, ended=1, failures=1)),
    (BLOCKED, Tally(not_run=1, ended=1)),
    (replace(BLOCKED, status=CANCELLED), Tally(not_run=1, ended=1)),
    (replace(ERROR, status=CANCELLED), Tally(failed=1, ended=1)),
    (replace(WROTE_ERROR, status=CANCELLED), Tally(failed=1, pending=1)),
    (replace(ERROR, status=-(2**31)), Tally(failed=1, ended=1, failed_rows=1)),
]
PROGRESSES = [
    ('{"progress":{"done":1,"total":4}}', 0.25),
    ('{"progress":{"done":4,"total":4}}', 1.0),
    ('{"progress":{"done":5,"total":4}}', 0.5),
    ('{"progress":{"done":0,"total":0}}', 0.5),
    ('{"progress":{"done":-1,"total":4}}', 0.5),
    ('{"progress":{"done":true,"total":4}}', 0.5),
    ('{"progress":{"done":"1","total":4}}', 0.5),
    ('{"progress":[1,4]}', 0.5),
    ('{"progress":null}', 0.5),
    ('{"other":"\\"progress\\""}', 0.5),
    ('{"progress":{"done":0.5,"total":1' + "0" * 400 + "}}", 0.0),
]


@pytest.mark.parametrize(("cell", "expected"), TALLIES)
def test_a_cell_is_counted_in_its_tally_classes(cell: Cell, expected: Tally) -> None:
    assert tally_of(cell) == expected
    assert Tally().plus(expected).plus(expected).minus(expected) == expected


@pytest.mark.parametrize(("payload", "share"), PROGRESSES)
def test_a_running_cell_adds_its_progress_to_the_tally(payload: str, share: float) -> None:
    assert tally_of(replace(HALFWAY, payload=payload)).progress == round(share * FRACTION_UNIT)
    assert tally_of(replace(DONE, payload=payload)).progress == 0
