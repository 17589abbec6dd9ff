"""The live picture: drawn when something changed, never faster than it may be."""

import io
import re
import threading
import time

import pytest
from rich.console import Console

from celery_statemanager import Manager, Status
from celery_statemanager.cli.follow import Follower
from celery_statemanager.cli.rendering.live import FRAME, LivePicture
from celery_statemanager.errors import SubscriptionLost
from celery_statemanager.models import Scope

PATIENCE = 30.0


class Film(io.StringIO):
    """A terminal that keeps each picture drawn on it, and says when a text is seen."""

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

    @property
    def pictures(self):
        return self.getvalue().count("\x1b[H")


@pytest.fixture
def film():
    return Film()


@pytest.fixture
def console(film):
    return Console(file=film, width=80, height=24, force_terminal=True, color_system=None)


@pytest.fixture
def picture(store, console):
    def picture(job_id):
        record = store.get_job(Manager.open(store, job_id).ref.key)
        return LivePicture(Follower(store, record, Scope()), console)

    return picture


@pytest.fixture
def job(store):
    Manager.create(store, "job", num_tasks=2, tags=("a",))
    return "job"


def beside(work):
    """Do the work while the picture is drawn by this thread, as only the main thread may heed signals."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_it_draws_what_is_there_then_changes_until_the_end(job, picture, film, write):
    write(job, (0, "a", 40, "first"))

    def work():
        film.wait_for("first")
        write(job, (1, "a", 50, "second"))
        film.wait_for("second")
        write(job, (0, "a", Status.FINISHED, None), (1, "a", Status.FINISHED, None))

    worker = beside(work)
    drawn = picture(job)
    drawn.run()
    worker.join(PATIENCE)
    assert drawn.board.total().finished == 2
    assert drawn.board.over


def test_many_changes_make_few_pictures(job, picture, film, write):
    def work():
        film.wait_for("waiting")
        for step in range(3_000):
            write(job, (0, "a", 2 + step % 90, f"step {step}"))
        write(job, (0, "a", -1, "boom"), (1, "a", Status.FINISHED, None))

    began = time.monotonic()
    worker = beside(work)
    picture(job).run()
    worker.join(PATIENCE)
    assert 1 <= film.pictures <= (time.monotonic() - began) / FRAME + 3


def test_what_the_reader_cannot_heal_is_raised(job, picture, monkeypatch):
    drawn = picture(job)

    def broken():
        yield None
        raise SubscriptionLost(job, "password changed")

    monkeypatch.setattr(drawn.follower, "events", broken)
    with pytest.raises(SubscriptionLost):
        drawn.run()


def test_a_lost_connection_is_shown(job, picture, film, monkeypatch):
    drawn = picture(job)
    monkeypatch.setattr(type(drawn.follower), "connected", property(lambda self: False))

    def work():
        film.wait_for("reconnecting…")
        drawn.follower.close()

    worker = beside(work)
    drawn.run()
    worker.join(PATIENCE)


def test_the_picture_follows_the_size_of_the_terminal(job, picture, film, console, write):
    write(job, (0, "a", 40, "x" * 200))

    def work():
        film.wait_for(r"x{30}")
        console.width = 200
        film.wait_for(r"x{150}")
        write(job, (0, "a", Status.FINISHED, None), (1, "a", Status.FINISHED, None))

    worker = beside(work)
    picture(job).run()
    worker.join(PATIENCE)
