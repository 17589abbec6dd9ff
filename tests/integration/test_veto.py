"""No method that a task class overrides without ``super()`` loses the states of its tasks or the veto (rule R14)."""

import pytest
from celery import Celery, Task

from celery_statemanager import StatefulTask, StateManager
from celery_statemanager.integration.binding import Binding

RAN = []


class Mixin:
    def before_start(self, task_id, args, kwargs):
        RAN.append("before")


def before_start(self, task_id, args, kwargs):
    RAN.append("before")


class Static(StatefulTask):
    abstract = True

    @staticmethod
    def before_start(task_id, args, kwargs):
        RAN.append("before")


class OfClass(StatefulTask):
    abstract = True

    @classmethod
    def before_start(cls, task_id, args, kwargs):
        RAN.append("before")


class WithCall(StatefulTask):
    abstract = True

    def before_start(self, task_id, args, kwargs):
        RAN.append("before")

    def __call__(self, *args, **kwargs):
        return self.run(*args, **kwargs)


class Silent(StatefulTask):
    """A class that overrides every method that Celery calls around a body."""

    abstract = True

    def before_start(self, *args):
        RAN.append("before")

    def on_success(self, *args): ...
    def on_failure(self, *args): ...
    def on_retry(self, *args): ...
    def after_return(self, *args): ...

    @classmethod
    def on_bound(cls, app): ...

    def __init_subclass__(cls, **kwargs): ...


class Heir(Silent):
    abstract = True

    def before_start(self, task_id, args, kwargs):
        RAN.append("before")


class Calling(StatefulTask):
    abstract = True

    def before_start(self, task_id, args, kwargs):
        super().before_start(task_id, args, kwargs)
        RAN.append("before")


class PlainBase(Task):
    abstract = True

    def before_start(self, task_id, args, kwargs):
        RAN.append("before")


def derived(*bases):
    return type("Derived", bases, {"abstract": True})


WITH_BASE = {
    "method": {"base": derived(Mixin, StatefulTask)},
    "option": {"base": StatefulTask, "before_start": before_start},
    "static method": {"base": Static},
    "class method": {"base": OfClass},
    "own call": {"base": WithCall},
    "every method": {"base": Silent},
    "overridden twice": {"base": Heir},
    "with super": {"base": Calling},
}


def new_app(**options):
    RAN.clear()
    app = Celery("vetoed", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://", **options)
    StateManager(app)
    return app


def deliver_twice(app, **options):
    """Run a job of one task, and deliver its message again; return what ran."""

    @app.task(shared=False, name="vetoed", bind=True, **options)
    def work(self, number):
        RAN.append(number)

    job = StateManager(app).submit([work.s(1)])
    assert job.wait(0).finished == 1, job.list_states()
    assert 1 in RAN
    first = RAN.copy()
    RAN.clear()
    bound = Binding(job.manager.ref, 0, job.tags[0]).bind(work.s(1))
    again = app.tasks["vetoed"].apply((1,), **bound.options)
    assert (again.state, RAN) == ("IGNORED", [])
    assert job.get_state(task_index=0).attempt == 1
    return first


@pytest.mark.parametrize("kind", WITH_BASE)
def test_a_task_class_with_a_before_start_of_its_own_keeps_the_veto(kind):
    assert deliver_twice(new_app(), **WITH_BASE[kind]) == ["before", 1]


@pytest.mark.parametrize("task_cls", [Silent, PlainBase, derived(Mixin, StatefulTask), derived(Mixin, Task)])
def test_the_veto_is_kept_with_a_task_class_of_the_app(task_cls):
    assert deliver_twice(new_app(task_cls=task_cls), base=StatefulTask) == ["before", 1]


def test_a_before_start_from_annotations_keeps_the_veto():
    app = new_app(task_annotations={"vetoed": {"before_start": before_start}})
    assert deliver_twice(app, base=StatefulTask) == ["before", 1]


def test_an_annotation_around_before_start_keeps_the_veto():
    def around(original):
        def before_start(self, *args):
            RAN.append("before")
            original(self, *args)

        return before_start

    assert deliver_twice(new_app(task_annotations={"*": {"@before_start": around}}), base=StatefulTask) == ["before", 1]


def test_a_callable_in_annotations_keeps_the_veto():
    class Recorder:
        def __call__(self, task_id, args, kwargs):
            RAN.append("before")

    app = new_app(task_annotations={"vetoed": {"before_start": Recorder()}})
    assert deliver_twice(app, base=StatefulTask) == ["before", 1]


def test_a_task_registered_as_an_instance_keeps_the_veto():
    app = new_app()

    class Work(StatefulTask):
        name = "vetoed"

        def before_start(self, task_id, args, kwargs):
            RAN.append("before")

        def run(self, number):
            RAN.append(number)

    work = app.register_task(Work())
    job = StateManager(app).submit([work.s(1)])
    assert RAN == ["before", 1]
    bound = Binding(job.manager.ref, 0, "default").bind(work.s(1))
    work.apply((1,), **bound.options)
    assert RAN == ["before", 1]
