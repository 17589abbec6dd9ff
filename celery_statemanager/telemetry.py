"""OpenTelemetry metrics, recorded at the store because every operation passes through it.

Only this module imports the OpenTelemetry API. Attributes have a few fixed values, and none names a job, a tag, a task
or a worker. The application configures the export: until it sets a meter provider, the API discards all measurements.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from opentelemetry.metrics import Histogram, Meter, MeterProvider, get_meter_provider

from celery_statemanager.errors import StateManagerError, StoreError, StoreUnavailable
from celery_statemanager.metrics import Metrics
from celery_statemanager.models import Scope, Status
from celery_statemanager.records import Batch, Begin, BeginReply, JobRef, Verdict, Write, WriteReply
from celery_statemanager.stores.base import Watch
from celery_statemanager.stores.capabilities import FullStore
from celery_statemanager.stores.wrapped import WrappedStore

BUCKETS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]
"""Seconds, from a write in memory to the default of ``statemanager_store_timeout``."""


_CLASSES = {int(status): status.name.lower() for status in Status}


class OpenTelemetry(Metrics):
    """The instruments of one meter provider.

    Args:
        provider: None for the application's global provider, even if it is set later.
    """

    def __init__(self, provider: MeterProvider | None = None) -> None:
        meter = (provider or get_meter_provider()).get_meter("celery_statemanager", version("celery-statemanager"))
        self.states = meter.create_counter("statemanager.states", "{state}", "states written, by class")
        self.writes = _durations(
            meter, "statemanager.write.duration", "duration of a write or begin in the store, by outcome"
        )
        self.watches = meter.create_up_down_counter(
            "statemanager.subscriptions", "{subscription}", "open subscriptions"
        )
        self.sweeps = meter.create_histogram("statemanager.sweep.duration", "s", "duration of a sweep")
        self.lost = meter.create_counter("statemanager.lost", "{attempt}", "attempts lost with their worker, by fate")
        self.callbacks = meter.create_counter("statemanager.callbacks", "{message}", "callbacks published, by latch")

    def measured(self, store: FullStore) -> FullStore:
        return MeasuredStore(store, self)

    def swept(self, seconds: float) -> None:
        self.sweeps.record(seconds)

    def published(self, latch: str) -> None:
        self.callbacks.add(1, {"latch": latch})


def _durations(meter: Meter, name: str, description: str) -> Histogram:
    """Create a histogram of seconds. Releases of the API before 1.30 choose its buckets themselves."""
    try:
        return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS)
    except TypeError:
        return meter.create_histogram(name, "s", description)


class MeasuredStore(WrappedStore):
    """A store that delegates every call and measures writes, begins and watches."""

    def __init__(self, inner: FullStore, instruments: OpenTelemetry) -> None:
        super().__init__(inner)
        self._instruments = instruments

    def write(self, ref: JobRef, write: Write) -> WriteReply:
        start = time.perf_counter()
        try:
            reply = self.inner.write(ref, write)
        except Exception as error:
            self._record_duration("write", outcome_of(error), start)
            raise
        self._record_duration("write", "done", start)
        if reply.changed:
            self._count_state(reply.cell.status)
            if write.counts_as_loss:
                self._count_loss("marked" if reply.cell.status == Status.LOST else "requeued")
        return reply

    def begin(self, ref: JobRef, begin: Begin) -> BeginReply:
        start = time.perf_counter()
        try:
            reply = self.inner.begin(ref, begin)
        except Exception as error:
            self._record_duration("begin", outcome_of(error), start)
            raise
        self._record_duration("begin", "done", start)
        if reply.verdict is Verdict.BEGUN:
            self._count_state(reply.cell.status)
            if begin.supersedes is not None and begin.counts_as_loss:
                self._count_loss("taken over")
        return reply

    def watch(self, ref: JobRef, scope: Scope, since: str | None = None) -> Watch:
        return _MeasuredWatch(self.inner.watch(ref, scope, since), self._instruments)

    def close(self) -> None:
        self.inner.close()

    def _record_duration(self, operation: str, outcome: str, start: float) -> None:
        attributes = {"operation": operation, "outcome": outcome}
        self._instruments.writes.record(time.perf_counter() - start, attributes)

    def _count_state(self, status: int) -> None:
        self._instruments.states.add(1, {"class": class_of(status)})

    def _count_loss(self, fate: str) -> None:
        self._instruments.lost.add(1, {"fate": fate})

    def __repr__(self) -> str:
        return repr(self.inner)


class _MeasuredWatch(Watch):
    """A watch that counts as an open subscription until its first ``close``."""

    def __init__(self, inner: Watch, instruments: OpenTelemetry) -> None:
        self._inner = inner
        self._open: list[Any] = [instruments.watches]
        instruments.watches.add(1)

    @property
    def cursor(self) -> str:
        return self._inner.cursor

    def read(self, timeout: float) -> Batch:
        return self._inner.read(timeout)

    def close(self) -> None:
        self._inner.close()
        try:
            self._open.pop().add(-1)  # ``pop`` is atomic: of two concurrent calls, one succeeds
        except IndexError:
            return


def class_of(status: int) -> str:
    """Return the class of a status, one of twelve.

    It is the name of the status in lower case, ``running`` for progress, or ``error`` for an application's error code.
    """
    return _CLASSES.get(status) or ("running" if status > 0 else "error")


def outcome_of(error: Exception) -> str:
    """Return the outcome of a call that raised an error: ``unavailable``, ``refused`` or ``error``."""
    if isinstance(error, StoreUnavailable):
        return "unavailable"
    return "refused" if isinstance(error, StateManagerError) and not isinstance(error, StoreError) else "error"
