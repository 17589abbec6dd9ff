"""Submit publishes the messages that Celery would publish, plus the binding (rule R12)."""

import json
from datetime import date
from functools import partial
from types import SimpleNamespace

import pytest
from celery import Celery, Task, chain, group, signature
from kombu.exceptions import ContentDisallowed

from celery_statemanager import JobNotFound, Manager, StatefulTask, StateManager, Status, SubmitFailed
from celery_statemanager.integration.binding import HEADER
from celery_statemanager.integration.outbox.values import PLACEHOLDER
from celery_statemanager.testing.celery import published


@pytest.fixture
def app():
    app = Celery("members", broker="memory://", set_as_current=False, statemanager_store_url="memory://")
    app.conf.broker_connection_retry_on_startup = True
    StateManager(app)
    yield app
    app.close()


@pytest.fixture
def states(app):
    return StateManager(app)


@pytest.fixture
def tasks(app):
    make = partial(app.task, shared=False, base=StatefulTask, typing=False)

    def nothing(*_, **__): ...

    return SimpleNamespace(
        scan=make(nothing, name="scan", tag="scan"), load=make(nothing, name="load", tag="load"), note=make(nothing)
    )


def with_links(canvas, tasks):
    canvas.link(tasks.note.si("linked"))
    return canvas


CANVASES = {
    "options of a task": lambda t: t.scan.s(1, k=2).set(
        queue="slow", countdown=60, headers={"mine": "x"}, time_limit=5
    ),
    "a link and an errback": lambda t: with_links(t.scan.s(1), t).on_error(t.note.s("failed")),
    "options of each stage": lambda t: chain(t.scan.s(1).set(queue="slow"), t.load.s(2).set(queue="fast", priority=3)),
    "errbacks of a chain": lambda t: chain(t.scan.s(1), t.load.s(2)).on_error(t.note.si("failed")),
    "links of a chain": lambda t: with_links(chain(t.scan.s(1), t.load.s(2)), t),
    "options of a chain": lambda t: chain(t.scan.s(1), t.load.s()).set(queue="slow", countdown=60, headers={"mine": 1}),
    "links of a chain in a chain": lambda t: chain(t.scan.s(1), chain(t.load.s(2)).on_error(t.note.si("failed"))),
    "an immutable stage": lambda t: chain(t.scan.s(1), t.load.si(2)),
    "stamps": lambda t: stamped(t.scan.s(1)),
}
GROUPS = {
    "options of a group": lambda t: group(t.scan.s(1), t.load.s(2)).set(queue="slow", headers={"mine": "x"}),
    "options of a group of chains": lambda t: group(chain(t.scan.s(1), t.load.s()), t.load.s(2)).set(countdown=60),
    "links of a group": lambda t: linked_group(group(t.scan.s(1), t.load.s(2)), t),
}


def stamped(signature):
    signature.stamp(customer="c-7")
    return signature


def linked_group(members, tasks):
    members.link(tasks.note.si("linked"))
    members.link_error(tasks.note.s("failed"))
    return members


def published_by(app, publish):
    """Return what was published: everything that users can set, without the ids of the messages."""
    with published(app) as messages:
        publish()
    return [_contents(each) for each in messages]


def stages_of_celery(app, canvas):
    """Return the contents of the messages that Celery publishes for a canvas, those of later stages too."""
    contents = []
    with published(app) as messages:
        canvas.apply_async()
    for message in messages:
        later, message.body[2]["chain"] = message.body[2]["chain"], None
        contents.append(_contents(message))
        for stage in reversed(later or ()):
            following = signature(stage, app=app)
            contents += published_by(app, lambda following=following: following.apply_async((PLACEHOLDER,)))
    return contents


def _contents(message):
    args, kwargs, embed = message.body
    header = {name: message.headers[name] for name in ("task", "timelimit", "stamps", "stamped_headers")}
    header["mine"] = message.headers.get("mine")
    header["delayed"] = message.headers["eta"] is not None
    embedded = {name: [_step(each) for each in embed[name] or ()] for name in ("callbacks", "errbacks", "chain")}
    return json.loads(json.dumps([header, message.routing_key, args, kwargs, embedded], default=list))


def _step(signature):
    hidden = {"task_id", "reply_to", "headers", "root_id", "parent_id", "group_id", "group_index", "chord"}
    options = {name: value for name, value in signature["options"].items() if name not in hidden}
    for name in ("link", "link_error"):
        options[name] = [_step(each) for each in options.get(name) or ()]
    return [signature["task"], signature["args"], signature["kwargs"], signature["immutable"], options]


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("spooled", [False, True], ids=["listed", "spooled"])
def test_submit_publishes_a_member_as_celery_would(app, states, tasks, canvas, spooled):
    member = CANVASES[canvas](tasks)
    celery = stages_of_celery(app, member.clone())
    assert published_by(app, lambda: states.submit(iter([member]) if spooled else [member])) == celery


@pytest.mark.parametrize("members", GROUPS)
def test_submit_publishes_a_group_as_celery_would(app, states, tasks, members):
    members_group = GROUPS[members](tasks)
    celery = stages_of_celery(app, members_group.clone())
    assert published_by(app, lambda: states.submit(members_group)) == celery


def test_a_group_with_options_may_have_arguments_that_are_not_json(app, states, tasks):
    app.conf.task_serializer = "pickle"
    members_group = group([tasks.scan.s(1j)])
    assert states.submit(members_group.set(queue="slow")).num_tasks == 1


def test_a_signature_decoded_from_json_is_accepted(app, states, tasks):
    members = [tasks.scan.s(1), chain(tasks.scan.s(2), tasks.load.s())]
    decoded = json.loads(json.dumps(members))
    assert published_by(app, lambda: states.submit(decoded)) == published_by(app, lambda: states.submit(members))
    assert states.submit(json.loads(json.dumps(group(members)))).num_tasks == 2
    called = states.submit(members, on_success=json.loads(json.dumps(tasks.note.si("done"))))
    assert json.loads(called._record.latches["success"].callback)["args"] == ["done"]


def test_a_signature_of_an_unregistered_task_is_sent_by_the_state_managers_app(app, states):
    loaded = states.tag(signature("elsewhere.load"), "load")
    elsewhere = [signature("elsewhere.scan"), chain(signature("elsewhere.scan"), loaded)]
    assert len(published_by(app, lambda: states.submit(elsewhere))) == 3


def test_submit_rejects_a_chain_with_a_task_id(states, tasks):
    with pytest.raises(ValueError, match="has its own task_id"):
        states.submit([chain(tasks.scan.s(), tasks.load.s()).set(task_id="mine")])


def test_a_tag_is_kept_when_its_chain_sets_headers(states, tasks):
    tagged = chain(states.tag(tasks.scan.s(), "first"), tasks.load.s()).set(headers={"mine": "x"})
    assert states.submit([tagged]).tags == ("first", "load")


def test_submit_does_not_modify_its_signatures(states, tasks):
    member = chain(tasks.scan.s(1), tasks.load.s()).set(queue="slow").on_error(tasks.note.si("failed"))
    before = json.dumps(member)
    assert states.submit([member, member]).num_tasks == 2
    assert json.dumps(member) == before
    assert HEADER not in before


@pytest.mark.parametrize("tags", [("load", "audit", "scan"), {"load": [0, 1], "audit": [1], "scan": [0, 1]}])
def test_a_given_plan_does_not_change_the_order_of_stages(tags):
    """A failed stage fails the later stages of its chain, in whatever order ``tags`` names them."""
    app = Celery("eager", set_as_current=False, task_always_eager=True, statemanager_store_url="memory://")
    states = StateManager(app)

    @app.task(shared=False, base=StatefulTask, tag="scan")
    def scan():
        raise ValueError("broken")

    @app.task(shared=False, base=StatefulTask, tag="load")
    def load(_): ...

    job = states.submit([chain(scan.s(), load.s()), chain(load.s(None), states.tag(load.s(), "scan"))], tags=tags)
    assert job.get_state("load", 0).message == "not run: stage 'scan' failed: ValueError: broken"
    assert job.get_state("scan", 1).status == Status.FINISHED


ODD_VALUES = {
    "keys that are no text": {1: (3, 4)},
    "a tuple": (1, (2, 3)),
    "a set": {1, 2},
    "bytes": b"\xff",
    "a complex number": 1j,
}


@pytest.mark.parametrize("value", ODD_VALUES.values(), ids=ODD_VALUES)
@pytest.mark.parametrize("container", [list, iter])
def test_values_that_json_cannot_represent_are_sent_unchanged(app, states, tasks, value, container):
    app.conf.task_serializer = "pickle"
    with published(app) as messages:
        states.submit(container([tasks.scan.s(value, k=value)]))
    assert messages[0].body[:2] == ((value,), {"k": value})


def test_a_value_that_cannot_be_pickled_is_sent_from_a_generator_too(states, tasks, app):
    class Local:
        def __json__(self):
            return "local"

    with published(app) as messages:
        states.submit(task for task in [tasks.scan.s(1), tasks.scan.s(Local()), tasks.scan.s(3)])
    assert [type(message.body[0][0]).__name__ for message in messages] == ["int", "Local", "int"]


def test_a_value_that_cannot_be_sent_is_rejected_before_the_job_is_created(states, tasks):
    with pytest.raises(SubmitFailed, match="failed at member 1: EncodeError"):
        states.submit((task for task in [tasks.scan.s(1), tasks.scan.s(object())]), job_id="never created")
    with pytest.raises(JobNotFound):
        states.job("never created")


@pytest.mark.parametrize("value", [{1: "one"}, {"k": (1,)}, [(1,)]], ids=repr)
def test_a_callback_that_would_be_stored_changed_is_rejected(app, states, tasks, value):
    app.conf.task_serializer = "pickle"
    with pytest.raises(TypeError, match="on_success, task note: callbacks are stored as JSON, which would change"):
        states.submit([tasks.scan.s()], on_success=app.signature("note", (value,)))
    with pytest.raises(TypeError, match="would change"):
        states.submit([tasks.scan.s()], on_success=app.signature("note", kwargs={"k": value}))
    states.submit([tasks.scan.s()], on_success=app.signature("note", (value,)).set(serializer="json"))
    states.submit([tasks.scan.s()], on_success=app.signature("note", ([1, {"k": None}], "x")))


@pytest.mark.parametrize("container", [list, iter])
def test_members_take_pydantic_models(app, states, container):
    pydantic = pytest.importorskip("pydantic")
    if not hasattr(Task, "_dump_pydantic_arguments"):
        pytest.skip("Celery before 5.7 does not send models")

    class Order(pydantic.BaseModel):
        number: int
        day: date

    @app.task(pydantic=True, base=StatefulTask, shared=False, name="order")
    def order(order: Order, *, other: Order): ...

    model = Order(number=1, day=date(2026, 11, 30))
    with published(app) as messages:
        states.submit(container([order.s(model, other=model)]))
    content = {"number": 1, "day": "2026-11-30"}
    assert messages[0].body[:2] == ((content,), {"other": content})


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("protocol", [1, 2])
def test_the_members_of_a_job_are_read_as_submitted(app, states, tasks, serializer, protocol):
    app.conf.update(task_serializer=serializer, task_protocol=protocol, accept_content=[serializer])
    members = [tasks.scan.s(row) | tasks.load.s(size=row) for row in range(2_000)]
    job = states.submit([*members, tasks.scan.s("last")])
    found = list(job.members())
    assert [each.task_index for each in found] == list(range(2_001))
    assert found[7].stages == (("scan", (7,), {}, "scan"), ("load", (), {"size": 7}, "load"))
    assert [(stage.task, stage.args) for stage in found[-1].stages] == [("scan", ("last",))]
    assert [each.task_index for each in job.members("3,17-20")] == [3, 17, 18, 19, 20]
    assert [each.task_index for each in job.members([9, 2, 9])] == [2, 9]
    assert list(states.job(job.id).members(rows=[5])) == [found[5]]


@pytest.mark.parametrize("rows", ["2001", "5-2001", [-1], ["1"], [True], "x", 5])
def test_unknown_rows_have_no_members(states, tasks, rows):
    job = states.submit(tasks.scan.s(row) for row in range(5))
    with pytest.raises((TypeError, ValueError)):
        job.members(rows)


def test_a_pickled_member_is_read_only_where_pickle_is_accepted(app, states, tasks):
    app.conf.update(task_serializer="pickle", accept_content=["json"])
    job = states.submit([tasks.scan.s({1, 2})])
    with pytest.raises(ContentDisallowed):
        list(job.members())
    app.conf.accept_content = ["json", "pickle"]
    assert next(job.members()).stages[0].args == ({1, 2},)


def test_a_job_of_a_manager_has_no_members(states):
    with Manager.create(states.store, "etl", num_tasks=1, tags=("a",)):
        pass
    with pytest.raises(
        ValueError, match="job 'etl' has no stored members: it ran in eager mode, or was created by a Manager"
    ):
        states.job("etl").members()


def test_a_job_that_ran_in_eager_mode_has_no_members(app, states, tasks):
    app.conf.task_always_eager = True
    job = states.submit([tasks.scan.s()], job_id="etl")
    for found in (job, states.job("etl")):
        with pytest.raises(ValueError, match="no stored members: it ran in eager mode, or was created by"):
            found.members()


def in_queue(app, count):
    """Return the messages that are in the default queue of the broker."""
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        queue.declare()
        found = [queue.get() for _ in range(count)]
        assert queue.get() is None
        return found


def test_many_similar_members_are_sent_as_by_a_loop(app, states):
    app.conf.task_default_queue = "similar"

    @app.task(name="similar", shared=False, base=StatefulTask)
    def similar(number, text=""): ...

    job = states.submit(similar.s(number, text="☃" * number) for number in range(20))
    messages = in_queue(app, 20)
    assert [message.headers["id"] for message in messages] == [
        f"{job.manager.ref.incarnation}.{n}.0" for n in range(20)
    ]
    for number, message in enumerate(messages):
        similar.apply_async((number,), {"text": "☃" * number}, task_id=message.headers["id"])
    for message, other in zip(messages, in_queue(app, 20), strict=True):
        assert message.body == other.body
        assert {**message.headers, HEADER: None} == {**other.headers, HEADER: None}
        assert {**message.properties, "delivery_tag": ""} == {**other.properties, "delivery_tag": ""}
    assert [member.stages[0].args for member in job.members("18-19")] == [(18,), (19,)]


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ((1, 2, 3), TypeError, r"member 9, task similar: .*takes from 1 to 2 positional arguments but 3 were given"),
        ((object(),), SubmitFailed, "failed at member 9: EncodeError: .*object is not JSON serializable"),
    ],
)
def test_an_error_after_many_similar_members_names_the_member(app, states, wrong, error, text):
    app.conf.task_default_queue = "similar"

    @app.task(name="similar", shared=False, base=StatefulTask)
    def similar(number, text=""): ...

    members = (similar.s(*(wrong if number == 9 else (number,))) for number in range(20))
    with pytest.raises(error, match=text):
        states.submit(members, job_id="wrong")
    with pytest.raises(JobNotFound):
        states.job("wrong")
    assert in_queue(app, 0) == []
