"""Render the lines above the bars, while a job runs and when it is over. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from celery_statemanager.cli.model import Counts, JobModel
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.jobs import generation
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, joined, spread
from celery_statemanager.liveness import Activity, Liveness
from celery_statemanager.records import to_datetime

_NO_PROGRESS = "no progress"


@dataclass(frozen=True)
class View:
    """A model and what else is known about the job.

    Attributes:
        now: by the store's clock.
        rate: cells per second; None while unknown.
        eta: seconds until the remaining cells are done; None while unknown.
        liveness: the workers of the job; None while unknown.
    """

    model: JobModel
    now: datetime
    connected: bool = True
    rate: float | None = None
    eta: float | None = None
    liveness: Liveness | None = None

    @property
    def elapsed(self) -> float:
        """Seconds from the job's creation until now or, if it is over, until its end."""
        return max(0.0, (self._end - to_datetime(self.model.job.created_at)).total_seconds())

    @property
    def standstill(self) -> str | None:
        """Why the job makes no progress; None if a worker processes it, it is over, or nothing is known."""
        known = self.liveness
        if known is None or self.model.over:
            return None
        if known.activity is Activity.NO_WORKER:
            return "no live worker"
        if known.activity is Activity.LOST:
            return f"waiting for {_sweep(known)}" if known.sweep_at is not None else _NO_PROGRESS
        return _NO_PROGRESS if known.activity is Activity.IDLE and self._idle_for(known.lease) else None

    @property
    def _end(self) -> datetime:
        settled = self.model.job.latches["settled"].decided_at
        if settled is not None:
            return to_datetime(settled)
        return self.model.last_write if self.model.over and self.model.last_write else self.now

    def _idle_for(self, seconds: float) -> bool:
        """Return whether the job has begun and nothing was written for so long."""
        last = self.model.last_write
        return last is not None and self.now - last >= timedelta(seconds=seconds)


def title(view: View, glyphs: Glyphs) -> Line:
    """Return the name of the job and of the watched part."""
    model = view.model
    parts: list[Line] = [
        [Span(clean(model.job.job_id), "head")],
        [Span(formatting.counted(model.job.num_tasks, "task"), "dim")],
    ]
    parts += generation(model.job)
    if model.job.run_token is not None:
        parts.append([Span(f"run {clean(model.job.run_token)}", "dim")])
    if model.scope.tag is not None:
        parts.append([Span(f"tag {clean(model.scope.tag)}", "dim")])
    if model.scope.task_index is not None:
        parts.append([Span(f"task {model.scope.task_index}", "dim")])
    return [Span(" "), *joined(parts, f" {glyphs.dot} ")]


def header(view: View, columns: int, glyphs: Glyphs) -> list[Line]:
    """Return the lines above the bars: name, condition, time, counts, rate and notes."""
    total = view.model.total()
    clock: Line = [*condition(view, total, glyphs), Span(f" {glyphs.dot} {formatting.duration(view.elapsed)} ")]
    lines = spread(title(view, glyphs), clock, columns)
    lines += spread([Span(" "), *counts_line(total, glyphs)], _speed(view, glyphs), columns)
    return lines + notes(view, glyphs)


def condition(view: View, total: Counts, glyphs: Glyphs) -> Line:
    """Return a short description of the condition of the job."""
    job = view.model.job
    if not view.connected:
        return [Span(f"reconnecting{glyphs.ellipsis}", "warn")]
    if view.model.loading:
        return [Span(f"reading{glyphs.ellipsis}", "dim")]
    if job.cancelled is not None:
        return [Span("cancelled", "bad")]
    if view.model.over:
        word = "settled" if job.settled else "all done"
        return [Span(word, "bad" if total.failed or total.not_run else "good")]
    if view.standstill is not None:
        last = view.model.last_write
        idle = f" for {formatting.age((view.now - last).total_seconds())}" if last is not None else ""
        text = view.standstill + (idle if view.standstill == _NO_PROGRESS else "")
        return [Span(text, "bad" if view.standstill == "no live worker" else "warn")]
    return [Span("running", "busy")] if total.passed or total.running else [Span("waiting", "dim")]


def counts_line(total: Counts, glyphs: Glyphs, *, zeros: bool = True) -> Line:
    """Return the counts by class, always in the same order; ``zeros`` keeps empty classes in their places."""
    finished = f"{formatting.number(total.finished)} of {formatting.number(total.expected)} finished"
    parts: list[Line] = [[Span(finished, "good" if total.finished else "dim")]]
    for name, style in (("running", "busy"), ("failed", "bad"), ("not_run", "bad"), ("waiting", "")):
        value = getattr(total, name)
        if value or (zeros and name != "not_run"):
            parts.append([Span(f"{formatting.number(value)} {name.replace('_', ' ')}", style if value else "dim")])
    return joined(parts, f" {glyphs.dot} ")


def notes(view: View, glyphs: Glyphs) -> list[Line]:
    """Return a line for each special fact about the job."""
    job = view.model.job
    found: list[Line] = []
    if job.cancelled is not None:
        reason = f": {clean(job.cancelled.reason)}" if job.cancelled.reason else ""
        found.append([Span(f" {glyphs.cross} cancelled", "bad"), Span(reason)])
    if job.flow is not None and job.flow.paused:
        reason = f": {clean(job.flow.pause_reason)}" if job.flow.pause_reason else ""
        found.append([Span(" paused", "warn"), Span(reason)])
    if job.tombstoned_at is not None:
        found.append([Span(" marked deleted: hidden from listings, deleted later", "warn")])
    if view.model.stalled:
        count = formatting.counted(len(view.model.stalled), "running task")
        found.append([Span(f" {count} stalled", "bad"), Span(": alive, but not moving; see why-state", "dim")])
    remark = worker_remark(view)
    if remark is not None:
        found.append([Span(f" {remark}", "warn")])
    return found


def limits(view: View, glyphs: Glyphs) -> list[Line]:
    """Return a line with the failed rows that a job tolerates and its deadline, unless it is over."""
    job, policy = view.model.job, view.model.job.policy
    if view.model.over or job.cancelled is not None:
        return []
    parts: list[Line] = []
    if policy.max_failed is not None:
        parts.append([Span(f"at most {formatting.counted(policy.max_failed, 'failed row')}", "dim")])
    if policy.deadline is not None:
        moment = to_datetime(policy.deadline)
        left = formatting.deadline((moment - view.now).total_seconds())
        parts.append([Span(f"deadline {left} ({moment.astimezone():%Y-%m-%d %H:%M:%S})", "dim")])
    return [[Span(" "), *joined(parts, f" {glyphs.dot} ")]] if parts else []


def worker_remark(view: View) -> str | None:
    """Return what is known about missing workers and what happens next; None if nothing is missing."""
    known = view.liveness
    if known is None or view.model.over:
        return None
    if known.lost:
        if known.sweep_at is None and known.activity is Activity.NO_WORKER:
            return "a worker died; no sweep is due: start a worker or beat, or run sweep-state"
        sweep = "the first sweep of a live worker" if known.sweep_at is None else _sweep(known)
        return f"a worker died; {sweep} marks its tasks or publishes them again"
    if known.activity is Activity.NO_WORKER:
        return "start a worker, or compare the store_url of the running ones"
    if view.standstill is not None:
        return "no live worker has received any of its tasks: check that a worker consumes their queue"
    return None


def _sweep(known: Liveness) -> str:
    """Return the next sweep with its local time."""
    moment = to_datetime(known.sweep_at or 0).astimezone()
    return f"the sweep at {moment:%H:%M:%S}"


def _speed(view: View, glyphs: Glyphs) -> Line:
    if view.rate is None:
        return []
    eta = [] if view.eta is None else [Span(f" {glyphs.dot} ETA {formatting.duration(view.eta)}", "head")]
    return [Span(formatting.rate(view.rate)), *eta, Span(" ")]
