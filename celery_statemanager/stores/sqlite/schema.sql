-- One row per stored job. `touched` is at most a minute older than the last write of a cell.
CREATE TABLE job (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id TEXT NOT NULL,
  run_token TEXT NOT NULL,
  incarnation TEXT NOT NULL,
  num_tasks INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  touched INTEGER NOT NULL,
  due INTEGER NOT NULL,
  tombstoned INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  schema_version INTEGER NOT NULL,
  control TEXT NOT NULL,
  plan TEXT,
  UNIQUE (job_id, run_token)
);
CREATE INDEX job_due ON job (due) WHERE due = 1;
CREATE INDEX job_touched ON job (touched);
CREATE INDEX job_tombstoned ON job (tombstoned) WHERE tombstoned = 1;

-- One row per tag and kind of cell (see stores.kinds), with the tally of the column's written cells.
CREATE TABLE tag (
  job INTEGER NOT NULL,
  id INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  running INTEGER NOT NULL DEFAULT 0,
  finished INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  not_run INTEGER NOT NULL DEFAULT 0,
  succeeded INTEGER NOT NULL DEFAULT 0,
  ended INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0,
  pending INTEGER NOT NULL DEFAULT 0,
  rows INTEGER NOT NULL DEFAULT 0,
  failed_rows INTEGER NOT NULL DEFAULT 0,
  stalled INTEGER NOT NULL DEFAULT 0,
  progress INTEGER NOT NULL DEFAULT 0,
  name TEXT NOT NULL,
  PRIMARY KEY (job, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX tag_name ON tag (job, kind, name);

-- One row per written cell. `seq` numbers the changes of a job. Columns whose values may be long come last. The index
-- by status leaves out FINISHED, so that the end of a task removes an entry and adds none.
CREATE TABLE cell (
  job INTEGER NOT NULL,
  tag INTEGER NOT NULL,
  task_index INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  status INTEGER NOT NULL,
  timestamp INTEGER NOT NULL,
  version INTEGER NOT NULL,
  event_id NOT NULL,
  attempt INTEGER NOT NULL,
  open INTEGER NOT NULL,
  publication INTEGER NOT NULL DEFAULT 0,
  replacements INTEGER NOT NULL,
  retries INTEGER NOT NULL,
  losses INTEGER NOT NULL,
  began_at INTEGER NOT NULL,
  schema_version INTEGER NOT NULL,
  generation INTEGER NOT NULL DEFAULT 1,
  failures INTEGER NOT NULL DEFAULT 0,
  stall_after INTEGER NOT NULL DEFAULT 0,
  stalled_since INTEGER NOT NULL DEFAULT 0,
  owner TEXT,
  blocked_by TEXT,
  stands_in TEXT,
  message TEXT,
  payload TEXT,
  kept TEXT,
  PRIMARY KEY (job, tag, task_index)
) WITHOUT ROWID;
CREATE INDEX cell_seq ON cell (job, seq);
CREATE INDEX cell_status ON cell (job, tag, status, task_index) WHERE status <> 2147483647;
CREATE INDEX cell_waiting ON cell (job, tag, task_index) WHERE status = 0 AND open = 0;
CREATE INDEX cell_owned ON cell (job, tag, task_index)
WHERE owner IS NOT NULL AND (open = 1 OR (began_at <> 0 AND status >= 0 AND status < 2147483647));

-- The expected rows of a column that were never written, as inclusive ranges.
CREATE TABLE gap (
  job INTEGER NOT NULL,
  tag INTEGER NOT NULL,
  high INTEGER NOT NULL,
  low INTEGER NOT NULL,
  PRIMARY KEY (job, tag, high)
) WITHOUT ROWID;

-- Deleted jobs whose rows have not been removed yet.
CREATE TABLE garbage (
  job INTEGER PRIMARY KEY,
  incarnation TEXT
);

-- The messages of jobs and of drafts.
CREATE TABLE block (
  incarnation TEXT NOT NULL,
  first INTEGER NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (incarnation, first)
);

-- Jobs that were not created yet, although blocks of them are stored.
CREATE TABLE draft (
  incarnation TEXT PRIMARY KEY,
  lease_until INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX draft_lease ON draft (lease_until);

-- How many rows of a job have been claimed.
CREATE TABLE outbox (
  job INTEGER PRIMARY KEY,
  claimed INTEGER NOT NULL
);

-- The newest claim of each publisher.
CREATE TABLE claim (
  job INTEGER NOT NULL,
  publisher TEXT NOT NULL,
  rows TEXT NOT NULL,
  at INTEGER NOT NULL,
  until INTEGER NOT NULL,
  PRIMARY KEY (job, publisher)
) WITHOUT ROWID;

-- The rows that are to be claimed again, as inclusive ranges.
CREATE TABLE returned (
  job INTEGER NOT NULL,
  begun INTEGER NOT NULL,
  low INTEGER NOT NULL,
  high INTEGER NOT NULL,
  PRIMARY KEY (job, begun, low)
) WITHOUT ROWID;

-- What rows keep of their newest finished stage.
CREATE TABLE value (
  job INTEGER NOT NULL,
  task_index INTEGER NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (job, task_index)
);

CREATE TABLE worker (
  worker_id TEXT PRIMARY KEY,
  renewed_at INTEGER NOT NULL,
  lease_until INTEGER NOT NULL,
  body TEXT NOT NULL
) WITHOUT ROWID;
