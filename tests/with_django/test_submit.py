"""Submission in a transaction of Django (rule R27)."""

import threading

import pytest
from django.db import connection, transaction
from django_kit import rolled_back

from celery_statemanager import ConfigurationError, JobExists, JobNotCommitted, JobNotFound, SubmitFailed
from celery_statemanager.integration.submission.transactions import warn_of_deferral

pytestmark = pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True)


def tables_of(db):
    with db.cursor() as cursor:
        return db.introspection.table_names(cursor)


def submit(states, rows=2, **options):
    return states.submit([states.pack.s(row) for row in range(rows)], using="default", **options)


def test_a_job_is_created_and_published_with_the_commit(states, orders, published):
    with transaction.atomic():
        orders.create(title="books")
        job = submit(states, job_id="order-1")
        assert (job.id, job.num_tasks) == ("order-1", 2)
        assert published(states) == 0
        with pytest.raises(JobNotFound):
            states.job("order-1")
    assert job.num_tasks == 2
    assert states.job("order-1") == job
    assert published(states) == 2
    assert orders.count() == 1


def test_until_the_commit_the_job_raises_an_error(states, orders):
    with transaction.atomic():
        orders.create(title="takes the lock of the file")
        job = submit(states)
        for ask in (
            lambda: job.settled,
            lambda: job.phase,
            lambda: job.paused,
            lambda: job.created_at,
            job.summary,
            job.cancel,
            job.pause,
            lambda: job.wait(0),
            lambda: job.rerun("failed"),
            job.list_states,
            job.subscribe,
            job.delete,
        ):
            with pytest.raises(JobNotCommitted, match=rf"{job.id}.*'default'"):
                ask()
        assert str(job) == job.id
    assert job.phase == "waiting"
    with transaction.atomic():
        assert job.phase == "waiting"  # also inside later transactions


def test_after_a_rollback_nothing_exists_and_nothing_was_sent(states, orders, published):
    with rolled_back():
        job = submit(states)
    with pytest.raises(JobNotFound) as raised:
        job.summary()
    assert not isinstance(raised.value, JobNotCommitted)
    assert published(states) == 0
    assert states.jobs().jobs == []


def test_a_savepoint_takes_only_its_own_jobs_along(states, orders, published):
    with transaction.atomic():
        kept = submit(states, 3)
        with rolled_back():
            undone = submit(states)
        with transaction.atomic():
            nested = submit(states, 1)
        with pytest.raises(JobNotCommitted):
            undone.summary()
    assert {job.id for job in states.jobs().jobs} == {kept.id, nested.id}
    assert published(states) == 4
    with pytest.raises(JobNotFound):
        undone.summary()


def test_a_failed_submission_leaves_the_transaction_usable(states, orders):
    submit(states, job_id="taken")
    with transaction.atomic():
        orders.create(title="books")
        with pytest.raises(JobExists):
            submit(states, job_id="taken")
        with pytest.raises(SubmitFailed):
            states.submit([states.pack.s(object())], using="default", job_id="other")
        job = submit(states, job_id="other")
        with pytest.raises(JobExists):
            submit(states, job_id="other")
    assert job.num_tasks == 2
    assert orders.count() == 1


def test_outside_of_a_transaction_the_job_is_published_at_once(states, published):
    job = submit(states)
    assert published(states) == 2
    assert job.phase == "waiting"


def test_the_tables_are_created_if_they_are_missing(new_app, empty_database, engine):
    states, database = new_app(), empty_database
    with rolled_back():
        submit(states)
        assert "celery_statemanager_job" in tables_of(database)
    assert ("celery_statemanager_job" in tables_of(database)) == (engine == "postgresql")  # on another connection
    with transaction.atomic():
        job = submit(states)
    assert job.num_tasks == 2


def test_members_may_be_read_from_the_database_meanwhile(states, orders):
    orders.bulk_create([orders.model(title=f"{number}") for number in range(50)])
    with transaction.atomic():
        job = states.submit((states.pack.s(each.id) for each in orders.all()), using="default")
    assert job.num_tasks == 50


def test_another_action_that_fails_after_the_commit_leaves_the_job_usable(states):
    def submit_after(action):
        with transaction.atomic():
            transaction.on_commit(action)
            jobs.append(submit(states))

    jobs = []
    with pytest.raises(ZeroDivisionError):
        submit_after(lambda: 1 / 0)
    assert jobs[0].phase == "waiting"  # a sweep publishes it


def test_an_action_after_the_commit_can_ask_the_job(states):
    found = []
    with transaction.atomic():
        jobs = []
        transaction.on_commit(lambda: found.append(jobs[0].phase))
        jobs.append(submit(states))
        transaction.on_commit(lambda: found.append(jobs[0].phase))
    assert found == ["waiting", "waiting"]


def test_a_chord_without_members_sends_its_body_with_the_commit(states, published):
    from celery import chord

    with transaction.atomic():
        job = states.submit(chord([], states.pack.s()), using="default")
        assert published(states) == 0
    assert published(states) == 1
    assert job.settled


def test_other_threads_see_the_transaction_through_the_job(states):
    errors = []

    def ask():
        try:
            job.summary()
        except JobNotCommitted as error:
            errors.append(error)

    with transaction.atomic():
        job = submit(states)
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(10)
    assert len(errors) == 1


def test_without_autocommit_the_job_is_part_of_the_transaction(states, orders, published):
    orders.count()  # connects
    transaction.set_autocommit(False)
    try:
        job = submit(states)
        with pytest.raises(JobNotCommitted):
            job.summary()
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert job.phase == "waiting"
    assert published(states) == 2


@pytest.mark.parametrize(
    ("store", "using", "reason"),
    [
        ("memory://", "default", "does not keep its data"),
        ("django://default", "other", "does not keep its data"),
        ("sqlite:///{folder}/states.db", "default", "does not keep its data"),
    ],
)
def test_another_store_creates_the_job_after_the_commit(new_app, published, tmp_path, caplog, store, using, reason):
    states = new_app(store.format(folder=tmp_path))
    states.store.now()
    warn_of_deferral.cache_clear()  # it is logged once in a process
    with transaction.atomic(using=using):
        members = [states.pack.s(1)]
        job = states.submit(iter(members), using=using, metadata={"title": "A"})
        members[0].args = (object(),)  # the caller may change its own
        assert (job.num_tasks, job.metadata) == (1, {"title": "A"})
        assert published(states) == 0
        assert states.jobs().jobs == []
        with pytest.raises(JobNotCommitted):
            job.summary()
    assert published(states) == 1
    assert job.num_tasks == 1
    assert states.job(job.id) == job
    with transaction.atomic(using=using):
        states.submit([states.pack.s(2)], using=using)
    assert sum(reason in record.getMessage() for record in caplog.records) == 1


def test_a_deferred_job_is_not_created_after_a_rollback(new_app, published):
    states = new_app("memory://")
    with rolled_back():
        job = submit(states)
    assert published(states) == 0
    with pytest.raises(JobNotFound):
        job.summary()


def test_an_error_of_a_deferred_job_reaches_the_caller(new_app):
    states = new_app("memory://")
    with pytest.raises(TypeError), transaction.atomic():
        states.submit(["no signature"], using="default")
    states.submit([states.pack.s(1)], job_id="taken")
    with pytest.raises(JobExists), transaction.atomic():
        job = submit(states, job_id="taken")
    with pytest.raises(JobNotFound):
        job.summary()


def test_eager_tasks_run_after_the_commit(new_app, orders):
    states = new_app(task_always_eager=True)
    with transaction.atomic():
        orders.create(title="books")
        job = submit(states)
        with pytest.raises(JobNotCommitted):
            job.summary()
    assert job.summary().finished == 2


@pytest.mark.parametrize("using", ["missing", 3, ""])
def test_a_wrong_alias_is_an_error(states, using):
    with pytest.raises((ConfigurationError, TypeError), match=r"default|alias"):
        states.submit([states.pack.s(1)], using=using)


async def _asubmit(states):
    await states.asubmit([states.pack.s(1)], using="default")


def test_asynchronous_submission_cannot_join(states):
    import asyncio

    with pytest.raises(TypeError, match="another thread"):
        asyncio.run(_asubmit(states))


def test_the_handle_of_a_committed_job_can_be_pickled(states):
    import pickle

    with transaction.atomic():
        job = submit(states)
        assert hash(job) == hash(job)
        stored = pickle.dumps(job)
        with pytest.raises(JobNotFound):
            pickle.loads(stored)
    assert pickle.loads(stored) == job


def test_the_connection_of_the_caller_is_the_only_one_in_use(states, orders):
    """Another connection would wait for the lock that the transaction holds, until its timeout."""
    states.store.now()
    with transaction.atomic():
        orders.create(title="takes the lock")
        connection.cursor().execute("BEGIN IMMEDIATE") if not connection.in_atomic_block else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(states.store, "get_job", lambda key: pytest.fail("asked on another connection"))
            submit(states)
