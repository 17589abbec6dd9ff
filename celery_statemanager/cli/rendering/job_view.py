"""Render everything about one job, for ``show-state``. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from celery_statemanager.cli.model import Column, Counts
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.bars import tag_lines
from celery_statemanager.cli.rendering.final_summary import failure_lines
from celery_statemanager.cli.rendering.frame import WIDEST
from celery_statemanager.cli.rendering.header import counts_line
from celery_statemanager.cli.rendering.jobs import PHASE_STYLES, generation, name
from celery_statemanager.cli.rendering.lines import Table
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, cut, joined, left, width, wrapped_line
from celery_statemanager.indexset import IndexSet
from celery_statemanager.inspection import Callback, JobView
from celery_statemanager.models import status_name
from celery_statemanager.records import ERRBACKS, split_latch, to_datetime

_LABEL = 12
_MOST_RANGES = 60
_MOST_LINES = 3
"""Lines of one fact, for instance of the reason of a cancellation."""


def job_lines(view: JobView, columns: int, glyphs: Glyphs) -> list[Line]:
    """Return the lines, at most ``columns`` wide."""
    body = min(columns, WIDEST)
    lines = [_title(view, glyphs), []]
    for fact in _facts(view, glyphs):
        lines += wrapped_line(fact, columns, _LABEL, _MOST_LINES, glyphs)
    lines += [[], *_tags(view, body, glyphs)] if view.overview.tags else []
    for block in (_callbacks(view), _failures(view, columns, glyphs), _running(view, columns, glyphs)):
        found = list(block)
        lines += [[], *found] if found else []
    return [cut(line, columns, glyphs.ellipsis) for line in lines]


def _title(view: JobView, glyphs: Glyphs) -> Line:
    shown = view.overview
    parts: list[Line] = [
        [Span(name(shown.job, glyphs), "head")],
        [Span(formatting.counted(shown.job.num_tasks, "task"), "dim")],
        *generation(shown.job),
        [Span(shown.phase.value, PHASE_STYLES[shown.phase])],
    ]
    return joined(parts, f" {glyphs.dot} ")


def _facts(view: JobView, glyphs: Glyphs) -> Iterator[Line]:
    job = view.overview.job
    yield [_label("cells"), *counts_line(Counts.from_summary(view.overview.summary), glyphs, zeros=False)]
    yield from _failed_rows(view)
    summary = view.overview.summary
    if summary.stalled:
        rows = formatting.ranges(summary.stalled_indexes or IndexSet(), _MOST_RANGES, glyphs.ellipsis)
        count = formatting.counted(summary.stalled, "running cell")
        yield [_label("stalled"), Span(count, "warn"), Span(f", alive but not moving: {rows}")]
    yield _moment(view, "created", job.created_at)
    yield _moment(view, "last write", job.last_activity)
    failed = job.latches["failure"].decided_at
    if failed is not None and not view.callbacks["failure"].task:
        why = "the first cell failed permanently" if job.policy.max_failed is None else "too many rows have failed"
        yield [*_moment(view, "failing", failed), Span(f": {why}")]
    if job.policy.deadline is not None and job.cancelled is None and not job.settled:
        moment = to_datetime(job.policy.deadline)
        left_over = formatting.deadline((moment - view.now).total_seconds())
        yield [_label("deadline"), Span(f"{left_over} ({moment.astimezone():%Y-%m-%d %H:%M:%S})")]
    settled = job.latches["settled"].decided_at
    if settled is not None:
        yield [
            *_moment(view, "settled", settled),
            Span(f", after {formatting.duration((settled - job.created_at) / 1e6)}"),
        ]
    if job.cancelled is not None:
        reason = clean(job.cancelled.reason or "no reason given")
        yield [*_moment(view, "cancelled", job.cancelled.at), Span(f": {reason}", "warn")]
    if view.outbox is not None:
        yield _published(view, view.outbox.claimed)
    if job.flow is not None and job.flow.paused:
        reason, count = clean(job.flow.pause_reason or "no reason given"), formatting.counted(view.in_flight, "row")
        yield [_label("paused"), Span(reason, "warn"), Span(f"; {count} in flight")]
    if job.tombstoned_at is not None:
        yield [*_moment(view, "deleted", job.tombstoned_at), Span(": hidden from listings, deleted later", "warn")]
    if job.plan is None:
        yield [_label("plan"), Span("none: every row is expected under every tag seen", "dim")]


def _failed_rows(view: JobView) -> Iterator[Line]:
    """Yield the number of failed rows of a job that tolerates some."""
    summary = view.overview.summary
    if summary.max_failed is not None:
        failed, most = formatting.number(summary.failed_rows), formatting.number(summary.max_failed)
        style = "bad" if summary.failed_rows > summary.max_failed else ""
        yield [_label("failed"), Span(f"{failed} of at most {most} failed rows", style)]


def _published(view: JobView, rows: int) -> Line:
    job = view.overview.job
    line: Line = [_label("published"), Span(f"{formatting.number(rows)} of {formatting.counted(job.num_tasks, 'row')}")]
    if job.max_in_flight is not None:
        line.append(Span(f", at most {formatting.number(job.max_in_flight)} in flight"))
    return line


def _tags(view: JobView, columns: int, glyphs: Glyphs) -> list[Line]:
    tags = view.overview.tags
    labels = min(max((width(clean(tag)) for tag in tags), default=0), 24, columns // 4)
    shown = [(Column(tag, IndexSet(), counts=True), Counts.from_summary(summary)) for tag, summary in tags.items()]
    return tag_lines(shown, columns, labels, glyphs)


def _callbacks(view: JobView) -> Iterator[Line]:
    shown = {latch: each for latch, each in view.callbacks.items() if each.task}
    wide = max((width(clean(each.task)) for each in shown.values() if each.task), default=1)
    for latch, each in sorted(shown.items(), key=lambda item: not item[1].latch.is_body):
        task, (_, number) = left(clean(each.task or ""), min(wide, 30)), split_latch(latch)
        earlier = [Span(f"generation {number}, ", "dim")] if number else []
        yield [_label(view.overview.job.label(latch)), Span(f"{task}  "), *earlier, *_fate(view, latch, each)]


def _fate(view: JobView, latch: str, each: Callback) -> Line:
    decided = each.latch.decided_at
    if decided is None:
        settled = view.overview.job.settled and latch != "settled" and not _body_runs(view)
        return [Span("will not be called" if settled else "not decided yet", "dim")]
    ago = f"decided {_ago(view, decided)}"
    if split_latch(latch)[0] == ERRBACKS and not each.latch.due:
        return [Span(f"called {_ago(view, decided)}")]
    if each.cell is None:
        return [Span(f"{ago}, {'not published yet' if each.latch.due else 'published, not begun'}", "busy")]
    message = f": {clean(each.cell.message)}" if each.cell.message else ""
    style = "bad" if each.cell.status < 0 else "good" if each.cell.final else "busy"
    return [Span(f"{ago}, "), Span(status_name(each.cell.status), style), Span(message)]


def _body_runs(view: JobView) -> bool:
    """Return whether a stage of the body is decided and has not ended."""
    callbacks = view.callbacks.values()
    return any(
        each.latch.is_body and each.latch.decided_at is not None and not (each.cell and each.cell.final)
        for each in callbacks
    )


def _failures(view: JobView, columns: int, glyphs: Glyphs) -> Iterator[Line]:
    """Yield the failures by cause, the cause before the stages that were not run because of it."""
    yield from failure_lines(view.failures, columns, glyphs, tags=len(view.overview.columns) > 1)


def _running(view: JobView, columns: int, glyphs: Glyphs) -> Iterator[Line]:
    """Yield a table of running cells."""
    if view.running:
        table = Table(view.overview.job, columns, glyphs)
        yield table.header()
        yield from map(table.row, view.running)
    hidden = sum(map(len, (column.running or () for column in view.overview.columns))) - len(view.running)
    if hidden > 0:
        count = formatting.number(hidden)
        yield [Span(f"{glyphs.ellipsis} and {count} more running: --limit shows them", "dim")]


def _moment(view: JobView, label: str, microseconds: int) -> Line:
    moment = to_datetime(microseconds).astimezone()
    return [_label(label), Span(f"{moment:%Y-%m-%d %H:%M:%S}, {_ago(view, microseconds)}")]


def _ago(view: JobView, microseconds: int) -> str:
    return formatting.ago((view.now - to_datetime(microseconds)).total_seconds())


def _label(text: str) -> Span:
    return Span(left(text, _LABEL), "dim")
