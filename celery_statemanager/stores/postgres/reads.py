"""Reads of one job, each in one statement and so of one moment: cells, the lowest cell, the columns."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_statemanager import aggregate
from celery_statemanager.errors import JobNotFound
from celery_statemanager.indexset import IndexSet
from celery_statemanager.models import FINISHED, Scope, State
from celery_statemanager.records import Cell, Column, JobRecord, JobRef, Tally
from celery_statemanager.stores.kinds import Kind, column_kind, kind_of
from celery_statemanager.stores.postgres import jobs
from celery_statemanager.stores.postgres.cells import COLUMNS, SELECTED, TALLY, cell_of
from celery_statemanager.stores.postgres.connection import Connection
from celery_statemanager.stores.postgres.jobs import CachedJob, JobCache
from celery_statemanager.stores.postgres.names import SHARDS, Names

_IN_COLUMN = "c.job = t.job AND c.tag = t.id"
_HEAD = f"SELECT {jobs.COLUMNS}"
_CELL = f"""
{_HEAD}, {SELECTED} FROM {{job}} j
LEFT JOIN {{tag}} t ON t.job = j.id AND t.kind = %s AND t.name = %s
LEFT JOIN {{cell}} c ON {_IN_COLUMN} AND c.task_index = %s
WHERE j.id = %s AND j.incarnation = %s
"""
_ROW = f"""
{_HEAD}, t.kind, t.name, {SELECTED} FROM {{job}} j
LEFT JOIN {{tag}} t ON t.job = j.id AND t.kind = {Kind.EXPECTED:d}
LEFT JOIN {{cell}} c ON {_IN_COLUMN} AND c.task_index = %s
WHERE j.id = %s AND j.incarnation = %s
"""
_LOWEST = f"""
LEFT JOIN LATERAL (
  (SELECT c.task_index, {SELECTED} FROM {{cell}} c WHERE {_IN_COLUMN} AND c.status <> {FINISHED}
   ORDER BY c.status, c.task_index LIMIT 1)
  UNION ALL
  (SELECT c.task_index, {SELECTED} FROM {{cell}} c WHERE {_IN_COLUMN} ORDER BY c.job, c.tag, c.task_index LIMIT 1)
  LIMIT 1
) c ON true
LEFT JOIN LATERAL (
  SELECT c.task_index, {SELECTED} FROM {{cell}} c WHERE {_IN_COLUMN} AND c.status = 0 AND NOT c.open
  ORDER BY c.task_index LIMIT 1
) w ON true
LEFT JOIN LATERAL (
  SELECT min(g.low * {SHARDS} + g.shard) AS row FROM generate_series(0, {SHARDS - 1}) s(shard)
  CROSS JOIN LATERAL (
    SELECT g.low, g.shard FROM {{gap}} g WHERE g.job = t.job AND g.tag = t.id AND g.shard = s.shard
    ORDER BY g.high LIMIT 1
  ) g
) gap ON true
"""
_TALLY = f"""
LEFT JOIN LATERAL (
  SELECT {", ".join(f"coalesce(sum(y.{name}), 0)::bigint AS {name}" for name in TALLY)}
  FROM {{tally}} y WHERE y.job = t.job AND y.tag = t.id
) y ON true
"""


def _rows(condition: str) -> str:
    return f"(SELECT array_agg(c.task_index) FROM {{cell}} c WHERE {_IN_COLUMN} AND {condition})"


_OWNED = (
    "c.owner IS NOT NULL AND (c.open OR (c.began_at <> 0 AND c.status >= 0 AND c.status < 2147483647)) "
    "AND c.stalled_since IS NOT NULL"
)
_NEGATIVE = f"c.status < 0 AND c.status <> {FINISHED}"
_BLOCKED = "NOT c.open AND c.blocked_by IS NOT NULL"
_INDEXES = f"""
  CASE WHEN y.failed > 0 THEN {_rows(f"{_NEGATIVE} AND NOT ({_BLOCKED})")} END,
  CASE WHEN y.running > 0 THEN {_rows(f"c.status BETWEEN 1 AND {FINISHED - 1} AND c.status <> {FINISHED}")} END,
  CASE WHEN y.not_run > 0 THEN {_rows(f"{_NEGATIVE} AND {_BLOCKED}")} END,
  CASE WHEN y.stalled > 0 THEN {_rows(_OWNED)} END,
  {_rows(f"c.status = 0 AND c.status <> {FINISHED}")},
  (SELECT array_agg(ARRAY[g.shard, g.low, g.high]) FROM {{gap}} g WHERE g.job = t.job AND g.tag = t.id)
"""
_FOUND = f"t.kind, t.name, gap.row, c.task_index, {SELECTED}, w.task_index, {SELECTED.replace('c.', 'w.')}"
_FROM = "FROM {job} j LEFT JOIN {tag} t ON t.job = j.id AND t.kind = ANY(%s) AND t.name = coalesce(%s, t.name)"
_WHERE = "WHERE j.id = %s AND j.incarnation = %s"
_LOWEST_ONLY = f"{_HEAD}, {_FOUND} {_FROM} {_LOWEST} {_WHERE}"
_SUMMARY = f"{_HEAD}, {_FOUND}, {', '.join(f'y.{name}' for name in TALLY)} {_FROM} {_LOWEST} {_TALLY} {_WHERE}"
_WITH_INDEXES = (
    f"{_HEAD}, {_FOUND}, {', '.join(f'y.{name}' for name in TALLY)}, {_INDEXES} {_FROM} {_LOWEST} {_TALLY} {_WHERE}"
)
_CELL_WIDTH = len(COLUMNS)
_TALLY_AT = 5 + 2 * _CELL_WIDTH
_KINDS = [int(Kind.EXPECTED), int(Kind.EXTRA)]


class Reader:
    """Reads of a store's jobs."""

    def __init__(self, names: Names, cache: JobCache) -> None:
        self._names = names
        self._jobs = cache

    def cell(self, db: Connection, ref: JobRef, tag: str, task_index: int) -> Cell | None:
        """Read a cell of any kind. Raises: JobNotFound."""
        cached = self._jobs.get_cached(db, ref)
        kind = kind_of(cached.job, tag, task_index)
        cell = self._read(db, ref, _CELL, (int(kind), tag, task_index))[0][jobs.WIDTH :]
        return None if cell[0] is None else cell_of(cell)

    def lowest(self, db: Connection, ref: JobRef, scope: Scope) -> State:
        """Return the lowest cell of a scope, missing cells included. Raises: JobNotFound."""
        row = scope.task_index
        if row is None:
            rows = self._read(db, ref, _LOWEST_ONLY, (_KINDS, scope.tag))
            job = self._decoded(db, rows).job
            found = _by_tag(job, rows)
            tags = _expected_tags(job, found) if scope.tag is None else [scope.tag]
            states = [_lowest_of(job, tag, found.get(tag)) for tag in tags]
            return aggregate.lowest(states) or aggregate.missing_state(job, scope.tag or "", 0)
        if scope.tag is not None:
            kind = int(kind_of(self._jobs.get_cached(db, ref).job, scope.tag, row))
            rows = self._read(db, ref, _CELL, (kind, scope.tag, row))
            job, cell = self._decoded(db, rows).job, rows[0][jobs.WIDTH :]
            return aggregate.visible_state(job, scope.tag, row, None if cell[0] is None else cell_of(cell))
        rows = self._read(db, ref, _ROW, (row,))
        job = self._decoded(db, rows).job
        cells = {each[jobs.WIDTH + 1]: each[jobs.WIDTH + 2 :] for each in rows if each[jobs.WIDTH] is not None}
        states = [
            aggregate.visible_state(job, tag, row, _optional_cell(cells.get(tag)))
            for tag in aggregate.expected_tags(job, cells)
            if aggregate.expects(job, tag, row)
        ]
        return aggregate.lowest(states) or aggregate.missing_state(job, "", row)

    def column_summaries(
        self, db: Connection, ref: JobRef, tag: str | None, *, indexes: bool
    ) -> tuple[JobRecord, list[Column]]:
        """Return the job and its expected columns, or one column. Raises: JobNotFound."""
        rows = self._read(db, ref, _WITH_INDEXES if indexes else _SUMMARY, (_KINDS, tag))
        job = self._decoded(db, rows).job
        found = _by_tag(job, rows)
        tags = _expected_tags(job, found) if tag is None else [tag]
        return job, [_column(job, each, found.get(each), indexes=indexes) for each in tags]

    def _read(self, db: Connection, ref: JobRef, text: str, values: tuple[Any, ...]) -> list[Any]:
        """Return rows that begin with the columns of the job; at least one. Raises: JobNotFound."""
        statement = self._names.fill(text)
        cached = self._jobs.get_cached(db, ref)
        rows = db.execute(statement, (*values, cached.id, ref.incarnation)).fetchall()
        if not rows:  # deleted, or restored under another number
            cached = self._jobs.read(db, ref)
            rows = db.execute(statement, (*values, cached.id, ref.incarnation)).fetchall()
        if not rows:
            raise JobNotFound(*ref.key)
        return rows

    def _decoded(self, db: Connection, rows: Sequence[Any]) -> CachedJob:
        return self._jobs.decode(db, rows[0][: jobs.WIDTH])


def _by_tag(job: JobRecord, rows: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
    """Return the columns by their tags, without those of another kind than the job's plan gives to their tags."""
    found = (row[jobs.WIDTH :] for row in rows)
    return {each[1]: each for each in found if each[0] is not None and column_kind(job, each[1]) == each[0]}


def _expected_tags(job: JobRecord, found: dict[str, tuple[Any, ...]]) -> list[str]:
    return aggregate.expected_tags(job, (tag for tag, each in found.items() if each[0] == Kind.EXPECTED))


def _optional_cell(row: Sequence[Any] | None) -> Cell | None:
    return None if row is None or row[0] is None else cell_of(row)


def _lowest_of(job: JobRecord, tag: str, found: Sequence[Any] | None) -> State:
    if found is None or found[3] is None:
        return aggregate.missing_state(job, tag, aggregate.expected_rows(job, tag).first)
    gap, row, waiting = found[2], found[3], found[4 + _CELL_WIDTH]
    states = [aggregate.visible_state(job, tag, row, cell_of(found[4 : 4 + _CELL_WIDTH]))]
    if gap is not None:
        states.append(aggregate.missing_state(job, tag, gap))
    if waiting is not None and job.cancelled:
        states.append(aggregate.visible_state(job, tag, waiting, cell_of(found[5 + _CELL_WIDTH : _TALLY_AT])))
    return aggregate.lowest(states) or states[0]


def _column(job: JobRecord, tag: str, found: Sequence[Any] | None, *, indexes: bool) -> Column:
    rows = aggregate.expected_rows(job, tag)
    tally = Tally(*found[_TALLY_AT : _TALLY_AT + len(TALLY)]) if found is not None else Tally()
    column = Column(tag, len(rows), tally, _lowest_of(job, tag, found))
    if indexes and found is None:
        column.failed = column.running = column.not_run = column.stalled = IndexSet()
        column.missing = rows
    elif indexes and found is not None:
        failed, running, not_run, stalled, waiting, gaps = found[_TALLY_AT + len(TALLY) :]
        column.failed, column.running = IndexSet(failed or ()), IndexSet(running or ())
        column.not_run, column.stalled = IndexSet(not_run or ()), IndexSet(stalled or ())
        column.missing = joined(gaps or ()).union(IndexSet(waiting or ()))
    return column


def joined(gaps: Sequence[Sequence[int]]) -> IndexSet:
    """Return the rows of ranges that are divided among the shards."""
    changes: dict[int, list[tuple[int, bool]]] = {}
    for shard, low, high in gaps:
        changes.setdefault(low, []).append((shard, True))
        changes.setdefault(high + 1, []).append((shard, False))
    ranges: list[tuple[int, int]] = []
    missing: set[int] = set()
    places = sorted(changes)
    for place, following in zip(places, [*places[1:], None]):
        for shard, begins in sorted(changes[place]):  # an end sorts before a beginning
            (missing.add if begins else missing.discard)(shard)
        if following is None:
            break
        if len(missing) == SHARDS:
            ranges.append((place * SHARDS, following * SHARDS - 1))
        elif missing:
            shards = sorted(missing)
            ranges += [(at * SHARDS + shard,) * 2 for at in range(place, following) for shard in shards]
    return IndexSet.from_ranges(_merged(ranges))


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for low, high in ranges:
        if found and found[-1][1] + 1 == low:
            found[-1] = (found[-1][0], high)
        else:
            found.append((low, high))
    return found
