"""A folder audit: list a folder in N shards and run each shard through two stages, ``scan`` and ``hash``.

Each shard stores its results in a file. The states contain only its progress. A stage may run twice, because its second
run writes the same file; ``on_lost="requeue"`` states that.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import chain

from celery_statemanager import StatefulTask
from celery_statemanager.integration.submission.job import Job
from examples.app import HOME, app, states
from examples.report import make_report

BLOCK = 1 << 20
PACE = float(os.environ.get("EXAMPLES_PACE", "0"))
"""Additional seconds for each file, to watch the audit of a small folder."""

SKIPPED = {"site-packages", "dist-packages", ".git", ".demo"}


def audit(folder: str, shards: int = 16, job_id: str | None = None) -> Job:
    """Submit the audit of a folder. Raises: NotADirectoryError; ValueError if ``shards`` or ``job_id`` is invalid."""
    root = Path(folder).resolve()
    if not root.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: choose one with INPUT=/some/folder")
    members = (chain(scan.s(str(root), shard, shards), digest.s()) for shard in range(shards))
    return states.submit(
        members,
        job_id=job_id,
        on_success=write_report.s(),
        on_failure=report_failure.s(),
        on_settled=write_partial_report.s(),
    )


@app.task(base=StatefulTask, bind=True, tag="scan", on_lost="requeue")
def scan(self: Any, root: str, shard: int, shards: int) -> str:
    """Record the size and type of every file of a shard, and return the path of the results."""
    paths = [path for number, path in enumerate(files(root)) if number % shards == shard]
    entries = []
    for done, path in enumerate(paths, 1):
        info = path.stat(follow_symlinks=False)
        if stat.S_ISREG(info.st_mode):
            entries.append({"path": str(path), "bytes": info.st_size, "type": path.suffix.lower() or "(none)"})
        self.state.progress(done, len(paths), path.name)
    return save(self.state.job_id, shard, entries)


@app.task(base=StatefulTask, bind=True, tag="hash", on_lost="requeue")
def digest(self: Any, result: str) -> None:
    """Add the SHA-256 of each file's content to the results of ``scan``."""
    entries = json.loads(Path(result).read_text(encoding="utf-8"))
    total = sum(each["bytes"] for each in entries) or 1
    done = 0
    for each in entries:
        each["sha256"] = sha256(Path(each["path"]))
        time.sleep(PACE)
        done += each["bytes"]
        self.state.progress(min(done, total), total, Path(each["path"]).name)
    Path(result).write_text(json.dumps(entries), encoding="utf-8")


@app.task(base=StatefulTask)
def write_report(job_id: str) -> None:
    """Merge the results after all shards have finished."""
    make_report(results(job_id), states.current_job().num_tasks)


@app.task(base=StatefulTask)
def report_failure(_job_id: str) -> None:
    """Print the first failed shard and the reason."""
    worst = states.current_job().get_state()
    print(f"shard {worst.task_index} failed in {worst.tag}: {worst.message}", flush=True)


@app.task(base=StatefulTask)
def write_partial_report(job_id: str) -> None:
    """Merge the results of the finished shards if any shard has failed."""
    job = states.current_job()
    hashed = job.summary("hash")
    failed = {*(hashed.failed_indexes or ()), *(hashed.not_run_indexes or ())}
    if failed:
        make_report(results(job_id), job.num_tasks, failed=sorted(failed))


def files(root: str) -> Iterator[Path]:
    """Yield all files below a folder in a fixed order."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED)
        for name in sorted(names):
            yield Path(folder, name)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, which is read in blocks."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hashed.update(block)
    return hashed.hexdigest()


def results(job_id: str) -> Path:
    """Return the folder of the results of a job's shards."""
    return HOME / "results" / job_id


def save(job_id: str, shard: int, entries: list[dict[str, Any]]) -> str:
    """Save the results of a shard and return the path of the file."""
    path = results(job_id) / f"shard-{shard:05}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")
    return str(path)
