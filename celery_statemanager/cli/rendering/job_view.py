"""Everything about one job, for ``show-state``. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone

from celery_statemanager.cli.model import Column, Counts
from celery_statemanager.cli.rendering import formatting
from celery_statemanager.cli.rendering.bars import tag_lines
from celery_statemanager.cli.rendering.frame import WIDEST
from celery_statemanager.cli.rendering.header import counts_line
from celery_statemanager.cli.rendering.jobs import PHASE_STYLES, name
from celery_statemanager.cli.rendering.lines import Table
from celery_statemanager.cli.rendering.text import Glyphs, Line, Span, clean, cut, joined, left, width
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import State, status_name
from celery_statemanager.overview import Overview
from celery_statemanager.records import Cell, Latch, to_datetime

_LABEL = 12


@dataclass(frozen=True, slots=True)
class Callback:
    """One of a job's latches, and what became of the callback that waits for it.

    Attributes:
        task: the callback's name; None where there is none, and only the decision falls.
        cell: its run; None until it began.
    """

    latch: Latch
    task: str | None
    cell: Cell | None


@dataclass(frozen=True, slots=True)
class Card:
    """What is shown of a job.

    Attributes:
        callbacks: by the latch's name.
        states: of some rows, failed ones first.
        hidden: how many failed and running cells there are beside them.
        now: by the store's clock.
    """

    overview: Overview
    callbacks: dict[str, Callback]
    states: list[State] = field(default_factory=list)
    hidden: int = 0
    now: datetime = datetime.min.replace(tzinfo=timezone.utc)


def card_lines(card: Card, columns: int, glyphs: Glyphs) -> list[Line]:
    """Give the lines, none wider than ``columns``."""
    body = min(columns, WIDEST)
    lines = [_title(card, glyphs), [], *_facts(card, glyphs)]
    lines += [[], *_tags(card, body, glyphs)] if card.overview.tags else []
    for block in (_callbacks(card), _states(card, columns, glyphs)):
        told = list(block)
        lines += [[], *told] if told else []
    return [cut(line, columns, glyphs.ellipsis) for line in lines]


def _title(card: Card, glyphs: Glyphs) -> Line:
    shown = card.overview
    parts: list[Line] = [
        [Span(name(shown.job, glyphs), "head")],
        [Span(formatting.counted(shown.job.num_tasks, "task"), "dim")],
        [Span(shown.phase.value, PHASE_STYLES[shown.phase])],
    ]
    return joined(parts, f" {glyphs.dot} ")


def _facts(card: Card, glyphs: Glyphs) -> Iterator[Line]:
    job = card.overview.job
    yield [_label("cells"), *counts_line(Counts.from_summary(card.overview.summary), glyphs, zeros=False)]
    yield _moment(card, "created", job.created_at)
    yield _moment(card, "last write", job.last_activity)
    failed = job.latches["failure"].decided_at
    if failed is not None and not card.callbacks["failure"].task:
        yield [*_moment(card, "failing", failed), Span(": the first cell failed for good")]
    settled = job.latches["settled"].decided_at
    if settled is not None:
        yield [
            *_moment(card, "settled", settled),
            Span(f", after {formatting.duration((settled - job.created_at) / 1e6)}"),
        ]
    if job.cancelled is not None:
        reason = clean(job.cancelled.reason or "no reason given")
        yield [*_moment(card, "cancelled", job.cancelled.at), Span(f": {reason}", "warn")]
    if job.submission is not None:
        yield _submission(card)
    if job.tombstoned_at is not None:
        yield [*_moment(card, "deleted", job.tombstoned_at), Span(": hidden from lists, collected later", "warn")]
    if job.plan is None:
        yield [_label("plan"), Span("none: every row is expected under every tag seen", "dim")]


def _submission(card: Card) -> Line:
    job, submission = card.overview.job, card.overview.job.submission
    assert submission is not None
    sent = f"{formatting.number(submission.published)} of {formatting.counted(job.num_tasks, 'message')}"
    line: Line = [_label("submitted"), Span(sent)]
    if not submission.done:
        alive = to_datetime(submission.alive_until) > card.now
        line.append(Span(", goes on" if alive else ", its publisher is gone", "busy" if alive else "bad"))
    return line


def _tags(card: Card, columns: int, glyphs: Glyphs) -> list[Line]:
    tags = card.overview.tags
    labels = min(max(width(clean(tag)) for tag in tags), 24, columns // 4)
    shown = [(Column(tag, IndexSet(), counts=True), Counts.from_summary(summary)) for tag, summary in tags.items()]
    return tag_lines(shown, columns, labels, glyphs)


def _callbacks(card: Card) -> Iterator[Line]:
    told = {latch: each for latch, each in card.callbacks.items() if each.task}
    wide = max((width(clean(each.task)) for each in told.values() if each.task), default=1)
    for latch, each in told.items():
        task = left(clean(each.task or ""), min(wide, 30))
        yield [_label(f"on_{latch}"), Span(f"{task}  "), *_fate(card, latch, each)]


def _fate(card: Card, latch: str, each: Callback) -> Line:
    decided = each.latch.decided_at
    if decided is None:
        settled = card.overview.job.settled and latch != "settled"
        return [Span("will not be called" if settled else "not decided yet", "dim")]
    ago = f"decided {_ago(card, decided)}"
    if each.cell is None:
        return [Span(f"{ago}, {'not published yet' if each.latch.due else 'published, not begun'}", "busy")]
    message = f": {clean(each.cell.message)}" if each.cell.message else ""
    style = "bad" if each.cell.status < 0 else "good" if each.cell.final else "busy"
    return [Span(f"{ago}, "), Span(status_name(each.cell.status), style), Span(message)]


def _states(card: Card, columns: int, glyphs: Glyphs) -> Iterator[Line]:
    if not card.states:
        return
    table = Table(card.overview.job, columns, glyphs)
    yield table.head()
    yield from map(table.row, card.states)
    if card.hidden:
        yield [
            Span(
                f"{glyphs.ellipsis} and {formatting.number(card.hidden)} more, failed or running: --limit shows them",
                "dim",
            )
        ]


def _moment(card: Card, label: str, microseconds: int) -> Line:
    moment = to_datetime(microseconds).astimezone()
    return [_label(label), Span(f"{moment:%Y-%m-%d %H:%M:%S}, {_ago(card, microseconds)}")]


def _ago(card: Card, microseconds: int) -> str:
    return formatting.ago((card.now - to_datetime(microseconds)).total_seconds())


def _label(text: str) -> Span:
    return Span(left(text, _LABEL), "dim")
