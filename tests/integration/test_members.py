"""Submit publishes the messages that Celery would publish, plus the binding (rule R12)."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
from celery import Celery, chain, group, signature

from celery_statemanager import StatefulTask, StateManager, Status
from celery_statemanager.integration.binding import HEADER
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
    celery = published_by(app, member.clone().apply_async)
    assert published_by(app, lambda: states.submit(iter([member]) if spooled else [member])) == celery


@pytest.mark.parametrize("members", GROUPS)
def test_submit_publishes_a_group_as_celery_would(app, states, tasks, members):
    members_group = GROUPS[members](tasks)
    assert published_by(app, lambda: states.submit(members_group)) == published_by(
        app, members_group.clone().apply_async
    )


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
    assert len(published_by(app, lambda: states.submit(elsewhere))) == 2


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
