"""``explain`` gives one sentence for each range of open rows."""

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from celery_statemanager import Status, leases
from celery_statemanager.explain import LOST_FATE, NO_WORKER, explain
from celery_statemanager.leases import Received, Report, cell_name
from celery_statemanager.manager import Manager
from celery_statemanager.records import (
    CALLBACK_ROW,
    Begin,
    ClaimRequest,
    Delivery,
    Flow,
    Returned,
    Write,
    new_event_id,
    new_job,
)
from celery_statemanager.testing.kit import Grid, workers

UNSWEPT = "no sweep yet, start a worker or beat, or run sweep-state"
WORKER = "pod-3:4711:ab12"


@pytest.fixture
def job(store):
    return Grid.submitted(store, 4, ("scan", "hash"), "why", settled="{}").job


def clock_time(moment):
    return datetime.fromtimestamp(moment // 1_000_000, timezone.utc).strftime("%H:%M:%S UTC")


def reasons(store, job):
    return [
        (each.tag, None if each.rows is None else str(each.rows), each.code, each.text) for each in explain(store, job)
    ]


def begin(store, job, tag, row, owner=WORKER, **kind):
    store.begin(job.ref, Begin(tag=tag, task_index=row, event_id=new_event_id(), owner=owner, **kind))


def test_rows_in_the_queue_and_rows_behind_a_stage(store, job):
    assert reasons(store, job) == [
        ("hash", "0-3", "waits", "waits for stage 'scan' of its row"),
        (
            "scan",
            "0-3",
            "queued",
            f"no live worker has received it; unknown whether it is in a queue, kept for a dead worker, or lost; {NO_WORKER}",
        ),
    ]


def test_queued_rows_report_a_store_without_live_workers(store, job, clock):
    leases.renew(store, WORKER, Report(), 30.0)
    assert (
        "scan",
        "0-3",
        "queued",
        "no live worker has received it; unknown whether it is in a queue, kept for a dead worker, or lost",
    ) in reasons(store, job)
    clock.advance(31)
    assert (
        "scan",
        "0-3",
        "queued",
        f"no live worker has received it; unknown whether it is in a queue, kept for a dead worker, or lost; {NO_WORKER}",
    ) in reasons(store, job)


def test_rows_that_a_dead_worker_had_received_are_published_again(store, job, clock):
    leases.renew(store, WORKER, Report(received=[Received(job.ref, "scan", row) for row in (1, 2)]), 30.0)
    clock.advance(31)
    gone = (
        f"received by a dead worker; {UNSWEPT}: its message is published again, unless the broker delivers it at once"
    )
    assert ("scan", "1-2", "lost", gone) in reasons(store, job)
    leases.renew(store, "pod-4:1:cd", Report(received=[Received(job.ref, "scan", 2)]), 30.0)
    soon = gone.replace(UNSWEPT, "no sweep yet, a live worker sweeps soon")
    assert ("scan", "1", "lost", soon) in reasons(store, job)


def test_rows_in_progress_come_before_rows_that_wait_for_them(store, job):
    begin(store, job, "scan", 1)
    assert [code for _, _, code, _ in reasons(store, job)] == ["lost", "waits", "queued"]


def test_rows_of_a_job_that_was_not_submitted(store):
    job = store.create_job(new_job("managers", 4, ("scan", "hash")))
    text = "never written; no task was submitted for it"
    assert reasons(store, job) == [("hash", "0-3", "unwritten", text), ("scan", "0-3", "unwritten", text)]


def test_rows_that_a_worker_has_received(store, job):
    leases.renew(store, WORKER, Report(received=[Received(job.ref, "scan", 2)]), 30.0)
    assert ("scan", "2", "received", "received by a worker, not begun") in reasons(store, job)
    assert (
        "scan",
        "0-1,3",
        "queued",
        "no live worker has received it; unknown whether it is in a queue, kept for a dead worker, or lost",
    ) in reasons(store, job)


def test_rows_that_a_worker_may_have_received_without_listing_them(store, job):
    rows = [Received(job.ref, tag, 2) for tag in ("scan", "x" * leases.MOST_BYTES)]
    leases.renew(store, WORKER, Report(received=rows), 30.0)
    text = "no live worker has received it; unknown whether it is in a queue, kept for a dead worker, or lost, or one has received it and does not list it, because it holds too many"
    assert ("scan", "0-1,3", "queued", text) in reasons(store, job)


def test_rows_with_an_eta_are_reported_as_delayed_until_it_has_come(store, job, clock):
    until = store.now() + 3_600_000_000
    assert store.update_job(replace(job, flow=Flow(delayed="1-3", delayed_until=until))) is not None
    leases.renew(store, WORKER, Report(received=[Received(job.ref, "scan", row) for row in (0, 3)]), 7_200.0)
    text = f"{datetime.fromtimestamp(until // 1_000_000, timezone.utc):%Y-%m-%d %H:%M:%S} UTC at the latest"
    assert [each for each in reasons(store, job) if each[0] == "scan"] == [
        ("scan", "3", "delayed", f"received by a worker, delayed until {text}"),
        ("scan", "0", "received", "received by a worker, not begun"),
        ("scan", "1-2", "delayed", f"delayed until {text} by the broker"),
    ]
    clock.advance(3_601)
    assert [code for tag, _, code, _ in reasons(store, job) if tag == "scan"] == ["received", "queued"]


def test_a_later_stage_is_not_reported_as_delayed(store, job):
    flow = Flow(delayed="0", delayed_until=store.now() + 3_600_000_000)
    assert store.update_job(replace(job, flow=flow)) is not None
    begin(store, job, "scan", 0)
    store.write(job.ref, Write.ending("scan", 0, Status.FINISHED, attempt=1))
    assert [code for tag, rows, code, _ in reasons(store, job) if (tag, rows) == ("hash", "0")] == ["queued"]


def test_a_running_row_reports_worker_attempt_and_age(store, job, clock):
    begin(store, job, "scan", 1)
    clock.advance(94)
    leases.renew(store, WORKER, Report([cell_name(job.ref, "scan", 1)]), 30.0)
    clock.advance(9)
    until = clock_time(workers(store)[WORKER].lease_until)
    expected = f"running on pod-3, worker pid 4711, attempt 1, last write 103 s ago, lease until {until} (21 s more)"
    assert ("scan", "1", "running", expected) in reasons(store, job)


def test_a_row_of_a_worker_that_has_missed_its_renewal_is_silent_until_its_lease_ends(store, job, clock):
    begin(store, job, "scan", 1)
    leases.try_acquire(store, "pod-1:1:x", 5.0)
    leases.renew(store, WORKER, Report([cell_name(job.ref, "scan", 1)]), 30.0)
    clock.advance(14)
    assert next(code for tag, _, code, _ in reasons(store, job) if tag == "scan") == "running"
    clock.advance(2)
    leases.try_acquire(store, "pod-1:1:x", 5.0)
    latest = clock_time(workers(store)[WORKER].lease_until + 10_000_000)
    text = f"worker pod-3, pid 4711, has been silent for 16 s; unless it returns, its rows are recovered at {latest} at the latest"
    assert ("scan", "1", "silent", text) in reasons(store, job)
    leases.renew(store, WORKER, Report([cell_name(job.ref, "scan", 1)]), 30.0)
    assert next(code for tag, _, code, _ in reasons(store, job) if tag == "scan") == "running"
    clock.advance(31)
    assert next(code for tag, _, code, _ in reasons(store, job) if tag == "scan") == "lost"


def test_a_silent_worker_without_sweeps_is_reported_with_the_end_of_its_lease(store, job, clock):
    begin(store, job, "scan", 1)
    leases.renew(store, WORKER, Report([cell_name(job.ref, "scan", 1)]), 30.0)
    clock.advance(20)
    until = clock_time(workers(store)[WORKER].lease_until)
    text = f"worker pod-3, pid 4711, has been silent for 20 s; its lease ends at {until}, and {UNSWEPT}: its rows are recovered"
    assert ("scan", "1", "silent", text) in reasons(store, job)


def test_a_running_row_reports_time_limits_without_effect(store, job):
    begin(store, job, "scan", 1)
    limits = "soft time limits have no effect in the gevent pool"
    leases.renew(store, WORKER, Report([cell_name(job.ref, "scan", 1)], limits=limits), 30.0)
    assert [text.rpartition("; ")[2] for _, rows, code, text in reasons(store, job) if code == "running"] == [limits]


def test_a_lost_row_reports_the_next_sweep_and_its_effect(store, job, clock):
    begin(store, job, "scan", 1)
    clock.advance(600)
    leases.try_acquire(store, "w2", 15.0)
    gone = "lost on pod-3, worker pid 4711, attempt 1, last write 10 min ago: its worker is dead or no longer lists it"
    swept = clock_time(store.now() + 15_000_000)
    assert ("scan", "1", "lost", f"{gone}; next sweep at {swept}: {LOST_FATE}") in reasons(store, job)


def test_a_worker_that_has_just_started_is_expected_to_sweep(store, job, clock):
    begin(store, job, "scan", 1)
    clock.advance(600)
    leases.renew(store, "pod-4:1:a", leases.Report(), 30.0)
    (text,) = [text for _, _, code, text in reasons(store, job) if code == "lost"]
    assert text.partition("; ")[2] == f"no sweep yet, a live worker sweeps soon: {LOST_FATE}"


def test_a_missing_sweep_is_reported_with_a_hint(store, job, clock):
    begin(store, job, "scan", 1)
    clock.advance(600)

    def when():
        return next(text for _, _, code, text in reasons(store, job) if code == "lost").partition("; ")[2]

    assert when() == "no sweep yet, start a worker or beat, or run sweep-state: " + LOST_FATE
    leases.try_acquire(store, "w2", 15.0)
    clock.advance(20)
    assert when() == f"next sweep at {clock_time(store.now())}: {LOST_FATE}"
    clock.advance(30)
    assert when() == "no sweep for 50 s, start a worker or beat, or run sweep-state: " + LOST_FATE


def test_a_row_that_waits_for_a_retry(store, job):
    begin(store, job, "scan", 1)
    pause = Write(
        tag="scan",
        task_index=1,
        status=1,
        message="retry 1 of 3: OSError: no",
        event_id=new_event_id(),
        attempt=1,
        ends_attempt=True,
        next_delivery=Delivery(0, 0, 1),
    )
    store.write(job.ref, pause)
    assert (
        "scan",
        "1",
        "retrying",
        "waits for its next delivery: retry 1 of 3: OSError: no, last write 0 s ago",
    ) in reasons(store, job)


def test_rows_written_by_a_manager(store, job):
    Manager.open(store, "why", task_index=0).set_state("scan", 5)
    Manager.open(store, "why", task_index=1).begin("scan")
    assert ("scan", "0", "written", "written by a Manager, last write 0 s ago") in reasons(store, job)
    assert ("scan", "1", "running", "attempt 1 of a Manager or an eager run, last write 0 s ago") in reasons(store, job)


def test_rows_of_a_live_and_of_a_dead_publisher(store, clock):
    job = Grid.submitted(store, 3, published=0).job
    store.claim(job.ref, ClaimRequest(publisher="p", limit=1, lease=60))
    assert ("a", "1-2", "unpublished", "being published") in reasons(store, job)
    clock.advance(61)
    text = f"not published yet; {UNSWEPT}: it is published"
    assert ("a", "1-2", "unpublished", text) in reasons(store, job)


def test_rows_that_wait_until_fewer_are_in_flight(store):
    grid = Grid.submitted(store, 2_000, ("a", "b"), flow=Flow(1_500))
    text = "waits for its turn, 1,500 of 1,500 in flight"
    assert ("a", "1500-1999", "unpublished", text) in reasons(store, grid.job)
    assert ("b", "1500-1999", "unpublished", text) in reasons(store, grid.job)
    grid.run("a", 0)
    grid.run("b", 0)
    text = f"not published yet; {UNSWEPT}: it is published"
    assert ("a", "1500-1999", "unpublished", text) in reasons(store, grid.job)


AGAIN = f"due again; {UNSWEPT}: it is published"


def test_a_row_that_never_began_and_is_due_again(store):
    job = Grid.submitted(store, 3).job
    store.write(job.ref, Write.sent_back("a", 1, "sent again: why", attempt=0))
    assert ("a", "1", "unpublished", AGAIN) in reasons(store, job)


def test_a_row_that_has_begun_and_is_due_again(store):
    job = Grid.submitted(store, 3).job
    begin(store, job, "a", 1)
    store.write(job.ref, Write.sent_back("a", 1, "sent again: why", attempt=1, is_open=True))
    assert ("a", "1", "unpublished", AGAIN) in reasons(store, job)
    store.claim(job.ref, ClaimRequest(publisher="p", limit=1))
    text = "waits for its next delivery: sent again: why, last write 0 s ago"
    assert ("a", "1", "retrying", text) in reasons(store, job)


def test_a_row_whose_next_stage_could_not_be_published(store, job):
    begin(store, job, "scan", 1)
    last = Write.ending("scan", 1, Status.FINISHED, attempt=1)
    last.next_is_due, last.publisher = True, "w/1.1"
    rows = store.write(job.ref, last).claimed
    assert ("hash", "1", "unpublished", AGAIN) not in reasons(store, job)
    store.claim(job.ref, ClaimRequest(publisher="w/1.1", limit=0, returned=Returned(begun=rows)))
    assert ("hash", "1", "unpublished", AGAIN) in reasons(store, job)


@pytest.mark.parametrize(("reason", "text"), [("deploying", "paused: deploying"), (None, "paused")])
def test_rows_that_a_pause_holds_back(store, reason, text):
    job = Grid.submitted(store, 4, published=3, flow=Flow(paused=True, pause_reason=reason)).job
    assert {(rows, code, why) for _, rows, code, why in reasons(store, job)} == {("0-3", "paused", text)}
    store.update_job(replace(store.get_job(job.key), flow=Flow()))
    store.claim(job.ref, ClaimRequest(publisher="p", limit=3))
    store.write(job.ref, Write.sent_back("a", 0, "sent again: why", attempt=0))
    store.update_job(replace(store.get_job(job.key), flow=Flow(paused=True, pause_reason=reason)))
    found = {rows: (code, why) for _, rows, code, why in reasons(store, job)}
    assert found["0,3"] == ("paused", text)
    assert found["1-2"][0] == "queued"


def test_returned_rows_are_not_in_flight(store):
    grid = Grid.submitted(store, 4, flow=Flow(2))
    assert ("a", "2-3", "unpublished", "waits for its turn, 2 of 2 in flight") in reasons(store, grid.job)
    store.write(grid.ref, Write.sent_back("a", 0, "sent again: why", attempt=0))
    assert ("a", "2-3", "unpublished", f"not published yet; {UNSWEPT}: it is published") in reasons(store, grid.job)


def test_rows_of_a_cancelled_job_are_not_reported_as_unpublished(store):
    grid = Grid.submitted(store, 3, published=1)
    grid.begin("a", 0)
    grid.cancel()
    assert [code for _, _, code, _ in reasons(store, grid.job)] == ["running"]


def test_a_callback_from_its_decision_to_its_end(store, job, clock):
    for row in range(4):
        for tag in ("scan", "hash"):
            Manager.open(store, "why", task_index=row).set_state(tag, Status.FINISHED)
    clock.advance(5)
    assert reasons(store, job) == [
        ("settled", None, "callback", "decided 5 s ago, not published; " + UNSWEPT + ": it is sent")
    ]
    fresh = store.get_job(job.key)
    latches = {**fresh.latches, "settled": replace(fresh.latches["settled"], published_at=store.now())}
    store.update_job(replace(fresh, latches=latches))
    assert reasons(store, job) == [("settled", None, "callback", "decided 5 s ago, published, not begun")]
    begin(store, job, "settled", CALLBACK_ROW)
    leases.renew(store, WORKER, Report([cell_name(job.ref, "settled", CALLBACK_ROW)]), 30.0)
    assert reasons(store, job)[0][3].startswith("running on pod-3")
    failed = Write(
        tag="settled",
        task_index=CALLBACK_ROW,
        status=-1,
        message="ValueError: no",
        event_id=new_event_id(),
        attempt=1,
        ends_attempt=True,
    )
    store.write(job.ref, failed)
    assert reasons(store, job) == [("settled", None, "callback", "ended FAILED: ValueError: no")]


def test_a_settled_job_has_no_reasons(store):
    job = Manager.create(store, "done", num_tasks=1, task_index=0, tags=("a",))
    job.set_state("a", Status.FINISHED)
    assert explain(store, store.get_job(job.ref.key)) == []
