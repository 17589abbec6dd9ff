"""``base=StatefulTask`` keeps the methods of the app's own task class."""

import subprocess
import sys

import pytest
from celery import Celery, Task, shared_task

from celery_statemanager import ConfigurationError, StatefulTask, StateManager


class Company(Task):
    """An app's own task class."""

    abstract = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.made = True

    def before_start(self, task_id, args, kwargs):
        self.app.started.append(self.name)
        super().before_start(task_id, args, kwargs)

    def on_success(self, retval, task_id, args, kwargs):
        self.app.ended.append(self.name)

    def company(self):
        return "ours"


class Calling:
    """A mixin that wraps every call."""

    def __call__(self, *args, **kwargs):
        self.app.called.append(self.name)
        return super().__call__(*args, **kwargs)


class CallingTask(Calling, Company):
    abstract = True


class OwnStateful(StatefulTask):
    abstract = True
    tag = "own"

    def company(self):
        return "ours"


class TaggedBase(StatefulTask):
    abstract = True
    tag = "tagged"


class Sub(OwnStateful):
    abstract = True


def new_app(**options):
    app = Celery("based", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://", **options)
    app.started, app.ended, app.called = [], [], []
    return app


def run(app, base, **options):
    """Run a job of one task with a base class; return the task and the state of its cell."""
    states = StateManager(app)

    @app.task(base=base, bind=True, shared=False, name="based", **options)
    def task(self):
        self.state.set(50, self.company())

    job = states.submit([task.s()])
    assert job.summary().finished == 1, job.list_states()
    return task, job.list_states()[0]


def by_class(task_cls):
    return new_app(task_cls=task_cls)


def by_name(task_cls):
    return new_app(task_cls=f"{task_cls.__module__}:{task_cls.__qualname__}")


def by_attribute(task_cls):
    app = new_app()
    app.Task = task_cls
    return app


@pytest.mark.parametrize("make", [by_class, by_name, by_attribute])
@pytest.mark.parametrize("task_cls", [Company, CallingTask])
@pytest.mark.parametrize("base", [StatefulTask, TaggedBase])
def test_a_stateful_task_keeps_the_task_class_of_its_app(make, task_cls, base):
    app = make(task_cls)
    task, state = run(app, base)
    assert isinstance(task, base)
    assert isinstance(task, task_cls)
    assert isinstance(task, app.Task)
    assert (state.message, state.tag) == ("ours", base.tag or "default")
    assert (app.started, app.ended) == (["based"], ["based"])
    assert app.called == (["based"] if task_cls is CallingTask else [])
    assert task.__class__.made


@pytest.mark.parametrize("base", [StatefulTask, TaggedBase, OwnStateful, Sub, None])
def test_a_stateful_task_class_of_an_app_is_inherited_once(base):
    task, state = run(by_class(OwnStateful), base)
    assert isinstance(task, OwnStateful)
    assert state.tag == ("tagged" if base is TaggedBase else "own")
    assert task.__class__.__mro__.count(StatefulTask) == 1


def test_a_stateful_task_keeps_its_options_and_its_name():
    task, state = run(by_class(Company), StatefulTask, tag="chosen", acks_late=True)
    assert (state.tag, task.acks_late) == ("chosen", True)
    assert task.__class__.__name__ == "task"


def test_a_shared_task_has_the_task_class_of_each_app():
    @shared_task(base=StatefulTask, name="based.shared")
    def task(): ...

    ours, plain = by_class(Company), new_app()
    assert ours.tasks["based.shared"].company() == "ours"
    assert not hasattr(plain.tasks["based.shared"], "company")
    assert isinstance(plain.tasks["based.shared"], plain.Task)


@pytest.mark.parametrize("make", [by_class, by_attribute])
def test_base_classes_that_do_not_combine_are_rejected_with_a_hint(make):
    class First: ...

    class Second: ...

    class Base(First, Second, StatefulTask):
        abstract = True

    class Own(Second, First, Task):
        abstract = True

    def body(): ...

    app = make(Own)
    with pytest.raises(
        ConfigurationError, match=r"app 'based', Own, do not combine: 'class body\(Base, Own\)' must be possible"
    ):
        app.task(base=Base, shared=False, lazy=False)(body)


DJANGO = """
import os
from django.conf import settings

settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"

from celery import Celery, shared_task
from django.db import transaction
from celery_statemanager import StatefulTask, StateManager

app = Celery("site", task_always_eager=True, statemanager_store_url="memory://")
states = StateManager(app)
ran = []

@app.task(base=StatefulTask, bind=True)
def resize(self, path):
    ran.append((path, bool(self.state)))

@shared_task(base=StatefulTask)
def publish(): ran.append("publish")

with transaction.atomic():
    resize.delay_on_commit("a.png")
    publish.apply_async_on_commit()
    assert ran == []
assert states.submit([resize.s("b.png")]).summary().finished == 1
print(ran)
"""


def test_a_django_app_keeps_delay_on_commit(tmp_path):
    (tmp_path / "settings.py").touch()
    command = [sys.executable, "-c", DJANGO]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.stdout == "[('a.png', False), 'publish', ('b.png', True)]\n", done.stderr
