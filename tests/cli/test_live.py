"""The live display is drawn when something changes, but not more often than allowed."""

import io
import re
import threading
import time

import pytest
from rich.console import Console

from celery_statemanager import Manager, Status, leases
from celery_statemanager.cli.follow import Follower
from celery_statemanager.cli.rendering.live import FRAME, LiveDisplay
from celery_statemanager.errors import SubscriptionLost
from celery_statemanager.models import Scope
from celery_statemanager.records import Begin, Write, new_event_id, to_datetime
from celery_statemanager.testing import Grid

PATIENCE = 30.0


class Film(io.StringIO):
    """A terminal that records everything drawn on it and can wait for a text."""

    encoding = "utf-8"

    def __init__(self):
        super().__init__()
        self.changed = threading.Condition()

    def write(self, text):
        with self.changed:
            count = super().write(text)
            self.changed.notify_all()
        return count

    def wait_for(self, pattern):
        with self.changed:
            assert self.changed.wait_for(lambda: re.search(pattern, self.getvalue()), PATIENCE), self.getvalue()

    def wait_for_frame(self, pattern):
        """Wait until the newest frame matches, across lines; return it."""
        with self.changed:
            assert self.changed.wait_for(lambda: re.search(pattern, self.frame, re.DOTALL), PATIENCE), self.frame
            return self.frame

    @property
    def frame(self):
        return self.getvalue().rpartition("\x1b[H")[2]

    @property
    def frames(self):
        return self.getvalue().count("\x1b[H")


@pytest.fixture
def film():
    return Film()


@pytest.fixture
def console(film):
    return Console(file=film, width=80, height=24, force_terminal=True, color_system=None)


@pytest.fixture
def display(store, console):
    def display(job_id):
        record = store.get_job(Manager.open(store, job_id).ref.key)
        return LiveDisplay(Follower(store, record, Scope()), console)

    return display


@pytest.fixture
def job(store):
    Manager.create(store, "job", num_tasks=2, tags=("a",))
    return "job"


def beside(work):
    """Do the work in a thread: only the main thread can handle signals, so it draws."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_existing_states_then_changes_are_drawn_until_the_end(job, display, film, write):
    write(job, (0, "a", 40, "first"))

    def work():
        film.wait_for("first")
        write(job, (1, "a", 50, "second"))
        film.wait_for("second")
        write(job, (0, "a", Status.FINISHED, None), (1, "a", Status.FINISHED, None))

    worker = beside(work)
    drawn = display(job)
    drawn.run()
    worker.join(PATIENCE)
    assert drawn.model.total().finished == 2
    assert drawn.model.over


def test_many_changes_make_few_frames(job, display, film, write):
    def work():
        film.wait_for("waiting")
        for step in range(3_000):
            write(job, (0, "a", 2 + step % 90, f"step {step}"))
        write(job, (0, "a", -1, "boom"), (1, "a", Status.FINISHED, None))

    began = time.monotonic()
    worker = beside(work)
    display(job).run()
    worker.join(PATIENCE)
    assert 1 <= film.frames <= (time.monotonic() - began) / FRAME + 3


def test_an_error_of_the_reader_is_raised(job, display, monkeypatch):
    drawn = display(job)

    def broken():
        yield None
        raise SubscriptionLost(job, "password changed")

    monkeypatch.setattr(drawn.follower, "events", broken)
    with pytest.raises(SubscriptionLost):
        drawn.run()


def test_a_lost_connection_is_shown(job, display, film, monkeypatch):
    drawn = display(job)
    monkeypatch.setattr(type(drawn.follower), "connected", property(lambda self: False))

    def work():
        film.wait_for("reconnecting…")
        drawn.follower.close()

    worker = beside(work)
    drawn.run()
    worker.join(PATIENCE)


@pytest.fixture
def submitted(store):
    """A submitted job of two rows that are half done and run by the worker ``w1``."""
    record = Grid.submitted(store, 2).job
    for row in range(2):
        store.begin(record.ref, Begin(tag="a", task_index=row, event_id=new_event_id(), owner="w1"))
    return record


def renew(store, record, seconds):
    cells = [leases.cell_name(record.ref, "a", row) for row in range(2)]
    leases.renew(store, "w1", leases.Report(running=cells), seconds)


def write_progress(store, record, row, percent):
    write = Write(tag="a", task_index=row, status=percent, event_id=new_event_id(), attempt=1)
    store.write(record.ref, write)


def end(store, record):
    for row in range(2):
        write = Write(tag="a", task_index=row, status=-1, event_id=new_event_id(), attempt=1)
        write.ends_attempt = True
        store.write(record.ref, write)


def test_the_death_of_the_last_worker_is_shown_when_its_lease_ends(store, submitted, display, film):
    """Rate and ETA are withdrawn, and return when the worker does."""
    write_progress(store, submitted, 0, 40)
    renew(store, submitted, 5.0)
    frames = []

    def work():
        film.wait_for_frame("running .*ETA ")
        frames.append(film.wait_for_frame("no live worker"))
        renew(store, submitted, 60.0)
        write_progress(store, submitted, 1, 50)
        film.wait_for_frame("running .*ETA ")
        end(store, submitted)

    run_while(work, display("job"))
    assert "ETA" not in frames[0]
    assert "a worker died; no sweep is due: start a worker or beat, or run sweep-state" in frames[0]


def test_the_time_of_the_next_sweep_is_shown(store, submitted, display, film):
    renew(store, submitted, 0.5)
    leases.renew(store, "w2", leases.Report(), 60.0)
    leases.try_acquire(store, "w2", 60.0)
    due = to_datetime(store.get_worker(leases.SWEEPER).lease_until).astimezone()

    def work():
        film.wait_for_frame(f"waiting for the sweep at {due:%H:%M:%S}")
        end(store, submitted)

    run_while(work, display("job"))


def run_while(work, drawn):
    """Draw until the job has settled; end at once if the work fails."""

    def guarded():
        try:
            work()
        except BaseException:
            drawn.follower.close()
            raise

    worker = beside(guarded)
    drawn.run()
    worker.join(PATIENCE)
    assert drawn.model.over


def test_the_display_adapts_to_the_size_of_the_terminal(job, display, film, console, write):
    write(job, (0, "a", 40, "x" * 200))

    def work():
        film.wait_for(r"x{30}")
        console.width = 200
        film.wait_for(r"x{150}")
        write(job, (0, "a", Status.FINISHED, None), (1, "a", Status.FINISHED, None))

    worker = beside(work)
    display(job).run()
    worker.join(PATIENCE)
