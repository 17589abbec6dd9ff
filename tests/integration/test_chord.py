"""Chords that are submitted (rule R21) with real workers: bodies, errbacks, killed workers, and Celery's own results."""

import os
import uuid

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from conftest import PLACES, SLOW_PLACES, load
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from celery_statemanager import Status, TaskFailed
from celery_statemanager.records import CALLBACK_ROW

PATIENCE = 40
some_places = pytest.mark.places(*PLACES, usual=3)


def routed(signature, queue):
    """Return a signature whose tasks and errbacks are sent to a queue."""
    for each in signature.tasks if signature.subtask_type == "chain" else [signature]:
        each.set(queue=queue)
        for errback in each.options.get("link_error", ()):
            errback["options"]["queue"] = queue
    return signature


@pytest.fixture
def submit_chord(tracked, pool):
    """Return a function that submits a chord to the worker of the tested pool."""

    def submit_chord(header, body, **options):
        header = [routed(each, pool) for each in header]
        return tracked.states.submit(chord(header, routed(body, pool)), **options)

    return submit_chord


def with_errbacks(tracked, body, key):
    return body.on_error(tracked.errback_of_id.s(key=key)).on_error(tracked.errback.s(key))


def errbacks(tracked, key):
    return sorted(tracked.notes(f"{key}.errbacks"))


def is_done(tracked, job):
    return not tracked.states.store.get_job(job.manager.ref.key).due


def test_the_body_gets_the_results_in_header_order(tracked, submit_chord, pool, key, eventually):
    second = tracked.states.tag(tracked.one_argument.s(), "again")
    header = [tracked.succeed.s(0), tracked.return_retries.s(), tracked.succeed.s("chain") | second]
    header += [tracked.succeed.s(number) for number in range(20)]
    settled = tracked.callback.s().set(queue=pool)
    job = submit_chord(header, tracked.collect.s(key, 7) | tracked.one_argument.s(), on_settled=settled)
    expected = [0, 1, "chain", *range(20)]
    assert job.body_result(PATIENCE) == [expected, 7]
    assert job.get(PATIENCE) == expected
    assert tracked.notes(key) == ["collected 23"]
    eventually(lambda: tracked.notes(f"callback.{job.id}"))
    eventually(lambda: is_done(tracked, job))


@some_places
def test_a_group_with_a_body_and_an_empty_header(tracked, pool, key):
    body = tracked.collect.s(key).set(queue=pool)
    job = tracked.states.submit(group(tracked.succeed.s(i).set(queue=pool) for i in range(3)) | body)
    assert job.body_result(PATIENCE) == [[0, 1, 2]]
    assert tracked.states.submit(chord([], body)).body_result(PATIENCE) == [[]]
    assert tracked.notes(key) == ["collected 3", "collected 0"]


@some_places
def test_the_errbacks_of_a_failed_header_are_called_once(tracked, submit_chord, key, eventually):
    body = with_errbacks(tracked, tracked.collect.s(key), key)
    job = submit_chord([tracked.succeed.s(0), tracked.fail.s("one"), tracked.fail.s("two")], body)
    with pytest.raises(TaskFailed) as caught:
        job.body_result(PATIENCE)
    assert (caught.value.task_index, caught.value.message) == (1, "ValueError: one")
    eventually(lambda: is_done(tracked, job) and len(errbacks(tracked, key)) == 2)
    called = {line.split(" ", 1)[0]: line.split(" ")[1:] for line in errbacks(tracked, key)}
    assert called["old"] in (["1.0"], ["2.0"]), "the row that failed first may be any"
    assert called["new"] == [*called["old"], "TaskFailed"]
    assert tracked.notes(key) == []


@some_places
def test_the_errbacks_of_a_failed_body_are_called_once(tracked, submit_chord, key, eventually):
    stages = tracked.collect.s(key), with_errbacks(tracked, tracked.broken_body.s(key), key), tracked.one_argument.s()
    job = submit_chord([tracked.succeed.s(0)], chain(*stages))
    with pytest.raises(TaskFailed, match=f"^body 2 of 3 of job '{job.id}' failed .*: ValueError: body broken$"):
        job.body_result(PATIENCE)
    eventually(lambda: is_done(tracked, job) and len(errbacks(tracked, key)) == 2)
    assert errbacks(tracked, key) == ["new body-2 ValueError", "old body-2"]


@some_places
def test_a_body_that_cannot_get_its_list_ends_rejected(tracked, submit_chord, key, eventually):
    body = with_errbacks(tracked, tracked.collect.s(key), key)
    job = submit_chord([tracked.succeed.s(0), tracked.one_argument.s("x" * 300_000)], body)
    with pytest.raises(TaskFailed, match="result of task 1: it takes 300,002 bytes") as caught:
        job.body_result(PATIENCE)
    assert caught.value.status == Status.REJECTED
    eventually(lambda: is_done(tracked, job) and len(errbacks(tracked, key)) == 2)
    assert errbacks(tracked, key) == ["new success TaskFailed", "old success"]


@some_places
def test_a_body_may_retry_and_replace_itself(tracked, submit_chord, key, eventually):
    job = submit_chord([tracked.succeed.s(0)], tracked.retried_body.s(key) | tracked.replaced_body.s(key))
    assert job.body_result(PATIENCE) == [[0], "replaced"]
    assert tracked.notes(key) == ["begun", "begun", "collected 1"]
    eventually(lambda: is_done(tracked, job))


@some_places
def test_tolerated_failures_are_none_and_a_rerun_runs_the_body_again(tracked, submit_chord, key, eventually):
    header = [tracked.succeed.s(0), tracked.fail_until_fixed.s(f"{key}.row"), tracked.succeed.s(2)]
    body = with_errbacks(tracked, tracked.collect.s(key), key)
    job = submit_chord(header, body, max_failed="50%")
    assert job.body_result(PATIENCE) == [[0, None, 2]]
    (tracked.HOME / f"{key}.row.fixed").touch()
    job.rerun("failed")
    assert job.body_result(PATIENCE) == [[0, 2, 2]]
    eventually(lambda: is_done(tracked, job))
    assert (tracked.notes(key), errbacks(tracked, key)) == (["collected 3"] * 2, [])


@some_places
def test_each_generation_runs_the_body_with_its_results(tracked, submit_chord, key):
    header = [tracked.succeed.s(0), tracked.fail_until_fixed.s(f"{key}.row")]
    job = submit_chord(header, tracked.collect.s(key) | tracked.one_argument.s())
    with pytest.raises(TaskFailed):
        job.body_result(PATIENCE)
    (tracked.HOME / f"{key}.row.fixed").touch()
    job.rerun("failed")
    assert job.body_result(PATIENCE) == [[0, 2]]
    assert tracked.notes(key) == ["collected 2"]


@pytest.mark.slow
@pytest.mark.places(*SLOW_PLACES)
@pytest.mark.parametrize("window", ["after_deciding", "after_publishing", "after_stage"])
def test_the_body_runs_once_when_its_worker_dies(tracked, pool, key, start_worker, eventually, window):
    """The first worker dies after the end of the header, or after the end of the first stage of the body."""
    doomed = key if window != "after_stage" else f"{key}-2"
    worker = start_worker(doomed, pool="solo", TRACKED_FAULT=window)
    first = tracked.collect.s(key).set(queue=doomed if window == "after_stage" else pool)
    stages = first, tracked.one_argument.s().set(queue=pool)
    header = [tracked.succeed.s(number).set(queue=pool if window == "after_stage" else doomed) for number in range(1)]
    job = tracked.states.submit(chord(header, chain(*stages)))
    assert worker.process.wait(PATIENCE) == -9
    assert job.body_result(PATIENCE) == [[0]]
    eventually(lambda: is_done(tracked, job))
    assert tracked.notes(key) == ["collected 1"]


@pytest.mark.slow
@pytest.mark.places(*SLOW_PLACES)
def test_the_errbacks_of_a_body_whose_worker_dies_are_called_once(tracked, pool, key, start_worker, eventually):
    worker = start_worker(key, pool="solo")
    body = with_errbacks(tracked, tracked.slow_body.s(key), key)
    job = tracked.states.submit(chord([tracked.succeed.s(0).set(queue=pool)], routed(body, pool).set(queue=key)))
    eventually(lambda: tracked.notes(key))
    worker.kill()
    with pytest.raises(TaskFailed, match="lost with its worker"):
        job.body_result(PATIENCE)
    eventually(lambda: is_done(tracked, job) and len(errbacks(tracked, key)) == 2)
    assert errbacks(tracked, key) == ["new success TaskFailed", "old success"]
    assert tracked.states.store.get_cell(job.manager.ref, "success", CALLBACK_ROW).status == Status.LOST


KINDS = {"value": 12, "chain": 4, "retry": 3, "failing": 1, "killed": 1}
headers = st.lists(st.sampled_from([kind for kind, weight in KINDS.items() for _ in range(weight)]), max_size=8)
bodies = st.sampled_from(["task", "chain", "immutable", "broken", "task"])


class Canvas:
    """A chord of the test, made anew for each of its runs, under a key of its own."""

    def __init__(self, app, queue, kinds, body):
        self.app = app
        self.key = f"chord-{uuid.uuid4().hex[:8]}"
        self._queue = queue
        self._kinds = kinds
        self._body = body

    def _member(self, number, kind):
        app, again = self.app, self.app.states.tag(self.app.one_argument.s(), "again")
        return {
            "value": lambda: app.one_argument.s([number, "ß", None]),
            "chain": lambda: app.one_argument.s({"number": number}) | again,
            "retry": lambda: app.retry_then_return.s(number),
            "failing": lambda: app.retry_then_return.s(number, fails=1),
            "killed": lambda: app.die_once.s(f"{self.key}.{number}", number),
        }[kind]()

    def signature(self):
        app = self.app
        body = {
            "task": lambda: with_errbacks(app, app.collect.s(self.key, 1), self.key),
            "chain": lambda: with_errbacks(app, app.collect.s(self.key), self.key) | app.one_argument.s(),
            "immutable": lambda: with_errbacks(app, app.collect.si([1], self.key), self.key),
            "broken": lambda: with_errbacks(app, app.broken_body.s(self.key), self.key),
        }[self._body]()
        header = [routed(self._member(*each), self._queue) for each in enumerate(self._kinds)]
        return chord(header, routed(body, self._queue))

    def outcome(self, get):
        """Return what the body returns, or that the header or the body has failed."""
        try:
            return get(timeout=PATIENCE)
        except (ChordError, TaskFailed, ValueError) as error:
            return "body" if "body broken" in str(error) else "header"

    def calls(self):
        """Return how often the body and the errbacks were called, and whether by their own signature."""
        return self.app.notes(self.key), sorted(line.split()[0] for line in self.app.notes(f"{self.key}.errbacks"))


@pytest.fixture(scope="module")
def own(settings):
    """Return an app with a store of its own and a result backend, so that Celery's chords run on the same broker."""
    place = settings("redis-redis")
    url, key = place.environment["TRACKED_STORE"], f"chords-{uuid.uuid4().hex[:6]}"
    environment = {
        **place.environment,
        "TRACKED_STORE": url.replace("prefix=", f"prefix={key}-"),
        "TRACKED_RESULTS": place.environment["TRACKED_BROKER"],
    }
    app = load(environment)
    app.environment, app.queue = environment, key
    yield app
    del os.environ["TRACKED_RESULTS"]  # ``load`` has set it
    app.states.store.close()
    app.app.close()


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # of Celery before 5.7
@pytest.mark.timeout(900)
def test_random_chords_have_the_outcomes_that_celery_gives_them(own, request, start_configured_worker, eventually):
    examples = 200 if request.config.getoption("--full") else 12
    start_configured_worker(own.environment, "prefork", own.queue)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # an example that fails takes the time of ``PATIENCE``
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(headers, bodies)
    def compare(kinds, body):
        theirs, ours = (Canvas(own, own.queue, kinds, body) for _ in range(2))
        job, result = own.states.submit(ours.signature()), theirs.signature().apply_async()
        outcome = ours.outcome(job.body_result)
        assert outcome == theirs.outcome(result.get)
        # Celery does not call the errbacks of a task of a chain if the header fails.
        is_called = outcome == "body" or (outcome == "header" and body != "chain")
        called = ["new", "old"] if is_called else []
        eventually(lambda: ours.calls()[1] == theirs.calls()[1] == called and is_done(own, job), PATIENCE)
        assert ours.calls()[0] == theirs.calls()[0]

    compare()
