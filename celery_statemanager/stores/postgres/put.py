"""The server's function that changes one cell.

Python computes the new cell from the old one. If the old cell is still stored, the function stores the new cell and
all values that are derived from it. A call is a whole transaction, so a write takes one round trip.
"""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

from celery_statemanager.stores.kinds import Kind
from celery_statemanager.stores.postgres.cells import COLUMNS, NUMBERS, TALLY, TEXTS
from celery_statemanager.stores.postgres.names import SHARDS

CHANGED, DECIDES, FEW_LEFT = -1, -2, -3
"""Replies instead of the time of the change: nothing was changed.

``CHANGED``: the job, the cell or a later stage is not as expected. ``DECIDES``: this end decides a latch.
``FEW_LEFT``: so few cells have not ended that the end needs the exclusive lock.
"""

SHARED, EXCLUSIVE, HELD = 0, 1, 2
"""How the function locks the job. ``HELD``: the caller's transaction has the exclusive lock and gives the time."""

KEEP, STORE, DROP = 0, 1, 2
"""What happens to the value of the row."""

_ARGUMENTS = (
    "p_lock bigint",
    "p_lock_timeout text",
    "p_job bigint",
    "p_incarnation text",
    "p_revision bigint",
    "p_deadline bigint",
    "p_expected bigint",
    "p_checks_later boolean",
    "p_floor bigint",
    "p_tag bigint",
    "p_row bigint",
    "p_counted boolean",
    "p_tally bigint[]",
    "p_old_version bigint",
    "p_old_event bytea",
    "p_old_schema bigint",
    "p_value_action bigint",
    "p_value_row bigint",
    "p_value bytea",
)
_TYPES = {"event_id": "bytea", "open": "boolean", **dict.fromkeys(TEXTS, "text")}
_CELL_ARGUMENTS = tuple(f"n_{name} {_TYPES.get(name, 'bigint')}" for name in COLUMNS if name != "timestamp")
ARGUMENTS = len(_ARGUMENTS) + len(_CELL_ARGUMENTS)
NOW = 2**62
"""Stands for the time of the change in ``began_at``."""

LOCK_KEY = "('{job}'::regclass::oid::bigint << 32) + "
"""The beginning of the key of a job's advisory lock, which the number of the job completes."""

CLOCK = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


def _value(name: str) -> str:
    if name == "timestamp":
        return "v_now"
    if name == "began_at":
        return f"CASE n_began_at WHEN {NOW} THEN v_now ELSE n_began_at END"
    if name in NUMBERS:
        return f"nullif(n_{name}, {int(name == 'generation')})"
    return f"n_{name}"


_VALUES = {name: _value(name) for name in COLUMNS}
_SET = ", ".join(f'"{name}" = {value}' for name, value in _VALUES.items())

PUT = f"""
CREATE FUNCTION {{put}}({", ".join(_ARGUMENTS + _CELL_ARGUMENTS)}) RETURNS bigint LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off
AS $body$
DECLARE
  v_key bigint := {LOCK_KEY} p_job;
  v_now bigint := p_floor;
  v_touched bigint;
  v_left bigint;
  v_low bigint;
  v_high bigint;
BEGIN
  IF p_lock <> {HELD} THEN
    PERFORM set_config('lock_timeout', p_lock_timeout, true);
    IF p_lock = {EXCLUSIVE} THEN
      PERFORM pg_advisory_xact_lock(v_key);
    ELSE
      PERFORM pg_advisory_xact_lock_shared(v_key);
    END IF;
  END IF;
  SELECT touched INTO v_touched FROM {{job}}
  WHERE id = p_job AND revision = p_revision AND incarnation = p_incarnation;
  IF NOT FOUND THEN
    RETURN {CHANGED};
  END IF;
  IF p_checks_later AND EXISTS (
    SELECT FROM {{tag}} t JOIN {{cell}} c ON c.job = t.job AND c.tag = t.id
    WHERE t.job = p_job AND c.task_index = p_row AND c.blocked_by IS NOT NULL
  ) THEN
    RETURN {CHANGED};
  END IF;
  IF p_expected > 0 THEN
    SELECT p_expected - coalesce(sum(y.ended), 0) INTO v_left FROM {{tag}} t JOIN {{tally}} y
    ON y.job = t.job AND y.tag = t.id WHERE t.job = p_job AND t.kind = {Kind.EXPECTED:d};
    IF v_left <= 1 THEN
      RETURN {DECIDES};
    ELSIF p_lock = {SHARED} AND v_left <= current_setting('max_connections')::integer
        + current_setting('max_prepared_transactions')::integer THEN
      RETURN {FEW_LEFT};
    END IF;
  END IF;
  PERFORM pg_current_xact_id();
  IF p_lock <> {HELD} THEN
    SELECT "timestamp" + 1 INTO v_now FROM {{cell}}
    WHERE job = p_job ORDER BY job DESC, "timestamp" DESC LIMIT 1;
    v_now := greatest({CLOCK}, p_floor, v_now);
    IF p_deadline > 0 AND p_deadline <= v_now THEN
      RETURN {CHANGED};
    END IF;
  END IF;
  IF p_old_version = 0 THEN
    INSERT INTO {{cell}} (job, tag, task_index, xid, {", ".join(f'"{name}"' for name in COLUMNS)})
    VALUES (p_job, p_tag, p_row, pg_current_xact_id(), {", ".join(_VALUES.values())})
    ON CONFLICT DO NOTHING;
  ELSE
    UPDATE {{cell}} SET xid = pg_current_xact_id(), {_SET}
    WHERE job = p_job AND tag = p_tag AND task_index = p_row
      AND version = p_old_version AND event_id = p_old_event AND schema_version = p_old_schema;
  END IF;
  IF NOT FOUND THEN
    IF p_lock = {HELD} THEN
      RAISE serialization_failure USING MESSAGE = 'a cell was changed without the lock of its job';
    END IF;
    RETURN {CHANGED};
  END IF;
  IF p_tally IS NOT NULL THEN
    UPDATE {{tally}} SET {", ".join(f"{name} = {name} + p_tally[{at}]" for at, name in enumerate(TALLY, 1))}
    WHERE job = p_job AND tag = p_tag AND shard = p_row % {SHARDS};
    IF NOT FOUND THEN
      INSERT INTO {{tally}} AS y (job, tag, shard, {", ".join(TALLY)})
      VALUES (p_job, p_tag, p_row % {SHARDS}, {", ".join(f"p_tally[{at}]" for at in range(1, len(TALLY) + 1))})
      ON CONFLICT (job, tag, shard)
      DO UPDATE SET {", ".join(f"{name} = y.{name} + excluded.{name}" for name in TALLY)};
    END IF;
  END IF;
  IF p_counted AND p_old_version = 0 THEN
    SELECT low, high INTO v_low, v_high FROM {{gap}}
    WHERE job = p_job AND tag = p_tag AND shard = p_row % {SHARDS} AND high >= p_row / {SHARDS}
    ORDER BY high LIMIT 1;
    IF p_row / {SHARDS} < v_high THEN
      UPDATE {{gap}} SET low = p_row / {SHARDS} + 1
      WHERE job = p_job AND tag = p_tag AND shard = p_row % {SHARDS} AND high = v_high;
    ELSE
      DELETE FROM {{gap}}
      WHERE job = p_job AND tag = p_tag AND shard = p_row % {SHARDS} AND high = v_high;
    END IF;
    IF v_low < p_row / {SHARDS} THEN
      INSERT INTO {{gap}} (job, tag, shard, low, high)
      VALUES (p_job, p_tag, p_row % {SHARDS}, v_low, p_row / {SHARDS} - 1);
    END IF;
  END IF;
  IF p_value_action = {STORE} THEN
    INSERT INTO {{value}} (job, task_index, value) VALUES (p_job, p_value_row, p_value)
    ON CONFLICT (job, task_index) DO UPDATE SET value = excluded.value;
  ELSIF p_value_action = {DROP} THEN
    DELETE FROM {{value}} WHERE job = p_job AND task_index = p_value_row;
  END IF;
  IF v_now - v_touched >= 60000000 THEN
    UPDATE {{job}} SET touched = v_now WHERE id = p_job AND touched = v_touched;
  END IF;
  IF EXISTS (SELECT FROM {{watcher}} WHERE job = p_job AND until > v_now) AND pg_try_advisory_xact_lock(~v_key) THEN
    PERFORM pg_notify('{{channel}}' || '{{job}}'::regclass::oid, p_job::text);
  END IF;
  RETURN v_now;
END
$body$
"""
CALL = f"SELECT {{put}}({', '.join(['%s'] * ARGUMENTS)})"
