"""Messages that are made from a template equal those that Celery makes, and no hook is left out (rules R12, R19)."""

import functools
import itertools
import uuid
from collections import OrderedDict
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery, Task, chain, signals, signature
from celery.app.amqp import AMQP
from celery.backends.base import DisabledBackend
from celery.canvas import Signature
from hypothesis import given
from hypothesis import strategies as st
from kombu import Queue
from kombu.exceptions import EncodeError

from celery_statemanager.integration import signals as own_signals
from celery_statemanager.integration.binding import Binding
from celery_statemanager.integration.outbox import templates
from celery_statemanager.integration.outbox.blocks import BlockCache, BlockWriter
from celery_statemanager.integration.outbox.capture import Capture
from celery_statemanager.integration.outbox.envelope import messages_from_json, to_json
from celery_statemanager.integration.outbox.making import MessageMaker
from celery_statemanager.records import JobKey, JobRef

REF = JobRef(JobKey("job", "run"), "f" * 16)


class CountingCapture(Capture):
    """Counts the messages that Celery makes."""

    count = 0

    def make(self, *args):
        self.count += 1
        return super().make(*args)


@contextmanager
def new_app(cls=Celery, **settings):
    own_signals.connect()
    with cls("templates", broker="memory://", set_as_current=False) as app:
        app.conf.update(settings)
        yield app


@pytest.fixture
def app():
    with new_app() as app:
        yield app


def new_task(app, name="task", **options):
    @app.task(name=name, shared=False, **options)
    def task(*_, **__): ...

    return task


@pytest.fixture
def task(app):
    return new_task(app)


def made(app, members):
    """Return the lines of the members of one job, and how many of them Celery has made."""
    with CountingCapture(app) as capture:
        maker = MessageMaker(app, REF, capture)
        lines = [maker.make(row, [member], ["a"]) for row, member in enumerate(members)]
        return lines, capture.count


def made_by_celery(app, members):
    with Capture(app) as capture:
        return [MessageMaker(app, REF, capture).make(row, [member], ["a"]) for row, member in enumerate(members)]


def without_times(lines):
    """Return lines without the moments that depend on the time at which they were made."""
    return [to_json([_without_times(each)]) for each in lines]


def _without_times(line):
    (message,) = messages_from_json(line)
    for name, seconds in (("eta", 60), ("expires", 90)):
        if f"{name}_after" in message:
            assert message[f"{name}_after"] == pytest.approx(seconds, abs=20)
            assert message["publish"]["headers"][name]
            message[f"{name}_after"] = message["publish"]["headers"][name] = None
    return message


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError

    def __deepcopy__(self, memo):
        return self

    def __json__(self):
        return "text"


ABSOLUTE = datetime.now(timezone.utc) + timedelta(days=1)
UNIFORM = {
    "none": {},
    "destination": {"queue": "slow", "priority": 3},
    "exchange": {"exchange": "other", "routing_key": "key"},
    "queue object": {"queue": Queue("object", routing_key="object")},
    "headers": {"headers": {"tenant": "t-1 %s %(id)s ☃", "nested": {"a": [1, True, None]}, "at": ABSOLUTE}},
    "relative times": {"countdown": 60, "expires": 90},
    "absolute expiry": {"expires": ABSOLUTE},
    "links": {"link": signature("after", (1, {"a": "x"})), "link_error": [signature("failed", immutable=True)]},
    "limits": {"time_limit": 9, "soft_time_limit": 3, "ignore_result": True},
    "stamps": {"stamped_headers": ["customer"], "customer": "c-7"},
    "shadow": {"shadow": "shown"},
    "compression": {"compression": "gzip"},
    "properties": {"delivery_mode": 1, "retry": False, "retry_policy": {"max_retries": 1}, "reply_to": "there"},
}
OTHERS = {
    "absolute eta": {"eta": ABSOLUTE},
    "representation": {"argsrepr": "()", "kwargsrepr": "{}"},
    "representation in headers": {"headers": {"argsrepr": "()", "kwargsrepr": "{}"}},
    "ids": {"root_id": "root", "parent_id": "parent", "group_id": "group"},
    "ids in headers": {"headers": {"root_id": "root"}},
    "unknown": {"correlation_id": "mine", "mandatory": True},
    "not to be compared": {"headers": {"a": Unpicklable()}},
}
OPTIONS = {**UNIFORM, **OTHERS}
TEXTS = st.text(st.characters())
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
SPECIAL = st.binary() | st.decimals(allow_nan=False) | st.datetimes() | st.uuids() | st.just({3}) | st.just(print)
VALUES = st.recursive(
    SCALARS | SPECIAL,
    lambda each: st.lists(each, max_size=3) | st.tuples(each) | st.dictionaries(TEXTS, each, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.tuples(st.lists(VALUES, max_size=3), st.dictionaries(TEXTS, VALUES, max_size=3))


def as_decoded(member):
    """Return a signature as a client in another process may pass it."""
    return Signature.from_dict(dict(member))


@st.composite
def members(draw):
    """Yield a function that returns the members of a job, which have up to two kinds of options."""
    kinds = draw(st.lists(st.sampled_from([*OPTIONS]), min_size=1, max_size=2))
    drawn = draw(st.lists(st.tuples(ARGUMENTS, st.sampled_from(kinds), st.booleans()), min_size=3, max_size=7))

    def create(task):
        for (args, kwargs), kind, decoded in drawn:
            member = task.signature((), kwargs, **OPTIONS[kind])
            member["args"] = args if decoded else tuple(args)
            member["kwargs"] = OrderedDict(kwargs) if decoded else kwargs
            yield as_decoded(member) if decoded else member

    return create


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
def test_a_message_equals_the_one_that_celery_makes(serializer):
    pytest.importorskip(serializer)

    @given(create=members())
    def check(create):
        maker = MessageMaker(app, REF, capture)
        for row, (member, same) in enumerate(zip(create(task), create(task), strict=True)):
            assert result(maker, row, member) == result(MessageMaker(app, REF, capture), row, same)

    with new_app(task_serializer=serializer) as app, Capture(app) as capture:
        task = new_task(app)
        check()


def result(maker, row, member):
    """Return a line, or the error that is raised."""
    try:
        return without_times([maker.make(row, [member], ["a"])])
    except Exception as error:  # noqa: BLE001 - compared
        return type(error), str(error)


@pytest.mark.parametrize("options", UNIFORM.values(), ids=UNIFORM)
@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml"])
def test_celery_makes_two_messages_of_similar_members(app, task, options, serializer):
    members = [task.signature((n, "☃" * n), {"k": n}, serializer=serializer, **options) for n in range(9)]
    lines, count = made(app, members)
    assert count == 2
    assert without_times(lines) == without_times(made_by_celery(app, members))


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_celery_makes_all_messages_with_options_that_may_differ_in_effect(app, task, options):
    _, count = made(app, [task.s(number).set(**options) for number in range(3)])
    assert count == 3


def test_each_task_has_a_template(app, task):
    other = new_task(app, "other", serializer="pickle", expires=90)
    members = [each.s(number) for number in range(5) for each in (task, other)]
    lines, count = made(app, members)
    assert count == 4
    assert without_times(lines) == without_times(made_by_celery(app, members))


def test_members_with_different_options_have_templates_of_their_own(app, task):
    tenants = itertools.cycle(range(templates.MOST))
    members = [task.s(row).set(headers={"tenant": next(tenants)}) for row in range(3 * templates.MOST)]
    lines, count = made(app, members)
    assert count == 2 * templates.MOST
    assert lines == made_by_celery(app, members)


def test_the_number_of_templates_is_limited(app, task):
    members = [task.s(row).set(headers={"row": row}) for row in range(2 * templates.MOST)]
    with Capture(app) as capture:
        made = templates.Templates(app, capture)
        for row, member in enumerate(members):
            made.learn(Binding(REF, row, "a"), member, message_of(capture, row, member))
        assert len(made._templates) == templates.MOST


def message_of(capture, row, member):
    binding = Binding(REF, row, "a")
    bound = binding.bind(member.clone())
    return capture.make(binding, lambda producer: bound.apply_async(producer=producer))


def test_a_job_of_many_similar_members_takes_little_space(app, task, store):
    with Capture(app) as capture:
        maker, writer = MessageMaker(app, REF, capture), BlockWriter(store, REF)
        for row in range(1_000):
            writer.add(maker.make(row, [task.s(f"s3://images/{row}.png", width=800)], ["a"]))
        writer.flush()
    blocks = dict(store.get_block(REF, row) for row in range(1_000))
    assert sum(map(len, blocks.values())) / 1_000 <= 60
    (last,) = BlockCache().messages(store, REF, 999)
    assert last["publish"]["headers"]["kwargsrepr"] == "{'width': 800}"


def test_values_that_are_equal_but_not_the_same_are_kept_apart(app, task):
    values = (1, True, 1.0, 0.0, -0.0, (1,), [1])
    members = [task.s(1).set(headers={"a": value}) for value in values for _ in range(3)]
    lines, count = made(app, members)
    assert count == 2 * len(values)
    assert lines == made_by_celery(app, members)


def test_a_signature_that_changes_between_members_is_read_again(app, task):
    member = task.s(0).set(headers={"tenant": [0]}, link=[signature("after", kwargs={"n": [0]})])

    def changing():
        for number in range(12):
            member["args"], member.options["headers"]["tenant"][0] = (number,), number // 3
            member.options["link"][0].kwargs["n"][0] = number // 6
            yield member

    lines, count = made(app, changing())
    assert count == 8
    assert lines == made_by_celery(app, changing())
    assert member.options["headers"] == {"tenant": [3]}, "it is the user's own"


def test_an_argument_that_cannot_be_encoded_is_reported(app, task):
    members = [task.s(1), task.s(2), task.s(3), task.s(object())]
    with pytest.raises(EncodeError, match="object is not JSON serializable") as error:
        made(app, members)
    with pytest.raises(EncodeError) as expected:
        made_by_celery(app, members[-1:])
    assert str(error.value) == str(expected.value)


def test_an_argument_that_can_be_encoded_only_once_does_not_fail(app, task):
    class Once:
        encoded = False

        def __reduce__(self):
            if self.encoded:
                raise RuntimeError
            self.encoded = True
            return str, ()

    members = [task.s(Once()).set(serializer="pickle") for _ in range(4)]
    assert made(app, members)[1] == 4


def test_the_size_of_representations_is_the_one_of_the_app(app, task):
    app.amqp.argsrepr_maxsize, app.amqp.kwargsrepr_maxsize = 5, 0
    members = [task.s(number, "long" * number) for number in range(4)] + [task.s(), task.s(k=1)]
    lines, _ = made(app, members)
    assert lines == made_by_celery(app, members)


def test_a_member_with_several_stages_is_made_by_celery(app, task):
    with CountingCapture(app) as capture:
        maker = MessageMaker(app, REF, capture)
        for row in range(3):
            maker.make(row, [*chain(task.s(row), task.s()).tasks], ["a", "b"])
        assert capture.count == 6


class Overriding(Task):
    def apply_async(self, *args, **options):
        return super().apply_async(*args, **options)


class Representing(Task):
    def shadow_name(self, args, kwargs, options):
        return None


def apply_async(self, *args, **options):
    return Task.apply_async(self, *args, **options)


class Mixin:
    def apply_async(self, *args, **options):
        return super().apply_async(*args, **options)


class Mixed(Mixin, Task):
    pass


class SendingApp(Celery):
    def send_task(self, *args, **options):
        return super().send_task(*args, **options)


class OwnAMQP(AMQP):
    pass


class OwnBackend(DisabledBackend):
    def on_task_call(self, producer, task_id):
        return {}


def route(name, args, kwargs, options, task=None, **_):
    return {"queue": "slow"}


class RouterClass:
    def route_for_task(self, task, args=None, kwargs=None):
        return None


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **options):
        return function(*args, **options)

    return wrapper


@contextmanager
def receiving(signal):
    def receive(**_): ...

    signal.connect(receive)
    try:
        yield
    finally:
        signal.disconnect(receive)


def with_instance_function(app, task):
    task.apply_async = wrapped(task.apply_async)


def with_other_sender(app, task):
    app.amqp.send_task_message = wrapped(app.amqp.send_task_message)


def with_pydantic(app, task):
    app.tasks["task"].__class__._dump_pydantic_arguments = staticmethod(lambda args, kwargs: (args, kwargs))


SETTINGS = {
    "a class that overrides apply_async": {"base": Overriding},
    "a class with a mixin": {"base": Mixed},
    "a class that names its executions": {"base": Representing},
    "a function that names its executions": {"shadow_name": lambda *_: None},
    "an app that overrides send_task": {"cls": SendingApp},
    "an own AMQP class": {"amqp": OwnAMQP},
    "an own result backend": {"backend": f"{__name__}:OwnBackend"},
    "a routing function": {"task_routes": (route,)},
    "a router class": {"task_routes": [RouterClass()]},
    "a router by its name": {"task_routes": [{"x": "y"}, f"{__name__}.route"]},
    "protocol 1": {"task_protocol": 1},
    "events of sent tasks": {"task_send_sent_event": True},
    "a changed task": {"change": with_instance_function},
    "an annotated task": {"task_annotations": {"task": {"apply_async": apply_async}}},
    "a changed sender": {"change": with_other_sender},
    "a task with models": {"change": with_pydantic},
}


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
def test_celery_makes_all_messages_if_other_code_takes_part(given):
    given = {"cls": Celery, **given}
    change = given.pop("change", lambda *_: None)
    options = {name: given.pop(name) for name in ("base", "shadow_name") if name in given}
    names = {name: given.pop(name) for name in ("amqp", "backend") if name in given}
    with new_app(functools.partial(given.pop("cls"), **names), **given) as app:
        task = new_task(app, **options)
        app.finalize()
        change(app, task)
        assert made(app, [task.s(number) for number in range(5)])[1] == 5


@pytest.mark.parametrize("name", ["before_task_publish", "after_task_publish", "task_sent"])
def test_celery_makes_all_messages_while_a_signal_has_receivers(app, task, name):
    members = [task.s(number) for number in range(5)]
    with receiving(getattr(signals, name)):
        assert made(app, members)[1] == 5
    assert made(app, members)[1] == 2


@pytest.mark.parametrize(("owner", "name"), [(Task, "apply_async"), (Celery, "send_task")])
def test_celery_makes_all_messages_if_a_library_wraps_its_functions(app, task, monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, wrapped(getattr(owner, name)))
    assert made(app, [task.s(number) for number in range(5)])[1] == 5


def test_celery_makes_all_messages_that_differ_for_an_unknown_reason():
    class Unknown(Celery):
        @property
        def thread_oid(self):
            return uuid.uuid4().hex

    with new_app(Unknown) as app:
        task = new_task(app)
        lines, count = made(app, [task.s(number) for number in range(5)])
    assert count == 5
    assert len({messages_from_json(line)[0]["publish"]["reply_to"] for line in lines}) == 5


def test_celery_makes_the_messages_of_a_task_that_the_app_does_not_have(app):
    assert made(app, [app.signature("unknown", (number,)) for number in range(3)])[1] == 3


def test_celery_makes_the_messages_of_a_task_of_another_app(app, task):
    with new_app(task_serializer="pickle") as other:
        foreign = new_task(other)
        members = [each.s(number) for each in (task, foreign) for number in range(5)]
        lines, count = made(app, members)
        assert count == 2 + 5
        assert lines == made_by_celery(app, members)
        app.tasks["foreign"] = other.tasks["task"]
        assert made(app, [app.signature("foreign", (number,)) for number in range(3)])[1] == 3


def test_messages_of_members_that_a_running_task_submits(app, task):
    @app.task(name="parent", shared=False, bind=True)
    def parent(self):
        members = [task.s(number) for number in range(5)]
        return made(app, members), made_by_celery(app, members)

    app.conf.task_store_eager_result = False
    (lines, count), expected = parent.apply(task_id="root").get(disable_sync_subtasks=False)
    assert count == 2
    assert lines == expected
