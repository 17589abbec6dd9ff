"""Jobs whose last end died before it could decide: found a few at a time, each seldom.

A planned job that has not settled carries the time after which somebody is to look at it. Looking costs a sum and a
write, and the next look is due after a quarter of the job's age: some ten looks in its first hour, one an hour then.
"""

from __future__ import annotations

from celery_statemanager.errors import JobNotFound
from celery_statemanager.records import JobRecord
from celery_statemanager.stores.firestore import requests
from celery_statemanager.stores.firestore.database import Database
from celery_statemanager.stores.firestore.documents import job_of
from celery_statemanager.stores.firestore.jobs import Jobs
from celery_statemanager.stores.firestore.latches import Latches
from celery_statemanager.stores.firestore.trouble import Refused
from celery_statemanager.stores.firestore.values import Moment

MOST_AT_ONCE = 10
FIRST = 60_000_000
LONGEST = 3_600 * 1_000_000


def look(database: Database, jobs: Jobs, latches: Latches) -> None:
    """Decide what is open in the jobs that are most overdue."""
    collection, now = database.names.address.collection, database.now()
    structured = requests.select(
        collection, ("checkAfter", "<", Moment(now)), order=("checkAfter",), limit=MOST_AT_ONCE
    )
    for document in database.query(database.names.address.root, structured, database.deadline()):
        job = job_of(document.fields, document.id)
        if job is not None:
            _look_at(database, jobs, latches, job, now)


def _look_at(database: Database, jobs: Jobs, latches: Latches, job: JobRecord, now: int) -> None:
    deadline = database.deadline()
    try:
        latches.decide(job.ref, jobs.current(job.ref, deadline), deadline)
        known = jobs.current(job.ref, deadline)
        if not known.job.settled:
            later = Moment(now + min(max((now - job.created_at) // 4, FIRST), LONGEST))
            name = database.names.job(job.key)
            database.insist([requests.touch(name, {"checkAfter": later}, known.stamp)], deadline)
    except (JobNotFound, Refused):
        return  # deleted, or changed by somebody who decides himself
