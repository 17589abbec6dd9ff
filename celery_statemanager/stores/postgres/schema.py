"""The tables and the function of a schema, as a list of statements. Nothing here connects to a server."""

# ruff: noqa: S608 - only names of our own columns and tables are interpolated; every value is bound

from __future__ import annotations

from celery_statemanager.stores.postgres.cells import NUMBERS, TALLY, TEXTS
from celery_statemanager.stores.postgres.names import SHARDS, Names
from celery_statemanager.stores.postgres.put import PUT

UPGRADES: dict[int, tuple[str, ...]] = {}
"""The statements that lead to each version from the previous one."""

VERSION = 1
"""The version of the tables. A release that changes them raises it and adds the statements that lead to it."""

_TABLES = f"""
CREATE TABLE {{meta}} (
  version integer NOT NULL
);

-- One row for each stored job. "touched" is at most a minute older than the last write of a cell.
CREATE TABLE {{job}} (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  created_at bigint NOT NULL,
  touched bigint NOT NULL,
  num_tasks integer NOT NULL,
  revision integer NOT NULL,
  schema_version integer NOT NULL,
  due boolean NOT NULL,
  tombstoned boolean NOT NULL,
  job_id text COLLATE "C" NOT NULL,
  run_token text COLLATE "C" NOT NULL,
  incarnation text COLLATE "C" NOT NULL,
  control text NOT NULL,
  plan text,
  UNIQUE (job_id, run_token)
) WITH (fillfactor = 70);
CREATE INDEX [job_due] ON {{job}} (id) WHERE due;
CREATE INDEX [job_touched] ON {{job}} (touched, id);
CREATE INDEX [job_tombstoned] ON {{job}} (id) WHERE tombstoned;

-- One row for each tag and kind of cell (see stores.kinds).
CREATE TABLE {{tag}} (
  job bigint NOT NULL,
  id integer NOT NULL,
  kind smallint NOT NULL,
  name text COLLATE "C" NOT NULL,
  PRIMARY KEY (job, id),
  UNIQUE (job, kind, name)
);

-- The tallies of a column. A shard counts the rows whose number modulo {SHARDS} is its own.
CREATE TABLE {{tally}} (
  job bigint NOT NULL,
  {" bigint NOT NULL, ".join(TALLY)} bigint NOT NULL,
  tag integer NOT NULL,
  shard smallint NOT NULL,
  PRIMARY KEY (job, tag, shard)
) WITH (fillfactor = 40);

-- The expected rows of a shard that were never written, as inclusive ranges of row numbers divided by {SHARDS}.
CREATE TABLE {{gap}} (
  job bigint NOT NULL,
  tag integer NOT NULL,
  high integer NOT NULL,
  low integer NOT NULL,
  shard smallint NOT NULL,
  PRIMARY KEY (job, tag, shard, high)
) WITH (fillfactor = 70);

-- One row for each written cell. "xid" is the transaction of the last change. Numbers that are rarely set are NULL
-- where they have their default. The index by status leaves out FINISHED, so that the end of a task adds no entry.
CREATE TABLE {{cell}} (
  job bigint NOT NULL,
  xid xid8 NOT NULL,
  "timestamp" bigint NOT NULL,
  began_at bigint NOT NULL,
  tag integer NOT NULL,
  task_index integer NOT NULL,
  status integer NOT NULL,
  version integer NOT NULL,
  attempt integer NOT NULL,
  schema_version smallint NOT NULL,
  open boolean NOT NULL,
  event_id bytea NOT NULL,
  {" integer, ".join(name for name in NUMBERS if name not in {"stall_after", "stalled_since"})} integer,
  stall_after bigint,
  stalled_since bigint,
  {" text, ".join(TEXTS)} text,
  PRIMARY KEY (job, tag, task_index)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX [cell_timestamp] ON {{cell}} (job, "timestamp");
CREATE INDEX [cell_status] ON {{cell}} (job, tag, status, task_index) WHERE status <> 2147483647;
CREATE INDEX [cell_waiting] ON {{cell}} (job, tag, task_index) WHERE status = 0 AND NOT open;
CREATE INDEX [cell_owned] ON {{cell}} (job, tag, task_index)
WHERE owner IS NOT NULL AND (open OR (began_at <> 0 AND status >= 0 AND status < 2147483647));

-- Deleted jobs whose rows have not been removed yet.
CREATE TABLE {{garbage}} (
  job bigint PRIMARY KEY,
  incarnation text COLLATE "C" NOT NULL
);

-- The messages of jobs and of drafts.
CREATE TABLE {{block}} (
  incarnation text COLLATE "C" NOT NULL,
  first integer NOT NULL,
  data bytea NOT NULL,
  PRIMARY KEY (incarnation, first)
);
ALTER TABLE {{block}} ALTER COLUMN data SET STORAGE EXTERNAL;

-- Jobs that were not created yet, although blocks of them are stored.
CREATE TABLE {{draft}} (
  incarnation text COLLATE "C" PRIMARY KEY,
  lease_until bigint NOT NULL
);
CREATE INDEX [draft_lease] ON {{draft}} (lease_until);

-- How many rows of a job have been claimed.
CREATE TABLE {{outbox}} (
  job bigint PRIMARY KEY,
  claimed integer NOT NULL
) WITH (fillfactor = 50);

-- The newest claim of each publisher.
CREATE TABLE {{claim}} (
  job bigint NOT NULL,
  at bigint NOT NULL,
  until bigint NOT NULL,
  publisher text COLLATE "C" NOT NULL,
  rows text NOT NULL,
  PRIMARY KEY (job, publisher)
) WITH (fillfactor = 50);

-- The rows that are to be claimed again, as inclusive ranges.
CREATE TABLE {{returned}} (
  job bigint NOT NULL,
  low integer NOT NULL,
  high integer NOT NULL,
  begun boolean NOT NULL,
  PRIMARY KEY (job, begun, low)
);

-- What rows keep of their newest finished stage.
CREATE TABLE {{value}} (
  job bigint NOT NULL,
  task_index integer NOT NULL,
  value bytea NOT NULL,
  PRIMARY KEY (job, task_index)
);

CREATE TABLE {{worker}} (
  worker_id text COLLATE "C" PRIMARY KEY,
  renewed_at bigint NOT NULL,
  lease_until bigint NOT NULL,
  body text NOT NULL
) WITH (fillfactor = 50);

-- Jobs whose changes are announced by NOTIFY, until a time.
CREATE TABLE {{watcher}} (
  job bigint PRIMARY KEY,
  until bigint NOT NULL
) WITH (fillfactor = 50);

INSERT INTO {{meta}} (version) VALUES ({VERSION})
"""


def create_statements(names: Names) -> list[str]:
    """Return the statements that create the tables and the function. The schema itself must exist."""
    text = names.fill(_TABLES)
    for index in ("job_due", "job_touched", "job_tombstoned", "draft_lease"):
        text = text.replace(f"[{index}]", names.index(index))
    for index in ("cell_timestamp", "cell_status", "cell_waiting", "cell_owned"):
        text = text.replace(f"[{index}]", names.index(index))
    return [*(statement.strip() for statement in text.split(";\n")), names.fill(PUT)]


def drop_statements(names: Names) -> list[str]:
    """Return the statements that drop everything that ``create_statements`` creates."""
    tables = ", ".join(names.fill(f"{{{table}}}") for table in ("meta", "job", "tag", "tally", "gap", "cell"))
    others = ("garbage", "block", "draft", "outbox", "claim", "returned", "value", "worker", "watcher")
    return [
        names.fill("DROP FUNCTION {put}"),
        f"DROP TABLE {tables}, {', '.join(names.fill(f'{{{table}}}') for table in others)}",
    ]
