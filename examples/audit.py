"""A folder audit: list a folder in N shards, and run each through two stages, ``scan`` and ``hash``.

Shards leave what they found in files, one a shard; the states carry only how far each has come.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import chain

from celery_statemanager import StatefulTask
from celery_statemanager.integration.submission.job import Job
from examples.app import HOME, app, states
from examples.report import make_report

BLOCK = 1 << 20
SKIPPED = {"site-packages", "dist-packages", ".git", ".demo"}


def audit(folder: str, shards: int = 16, job_id: str | None = None) -> Job:
    """Submit the audit of a folder. Raises: NotADirectoryError, ValueError."""
    root = Path(folder).resolve()
    if not root.is_dir():
        raise NotADirectoryError(f"{folder} is no folder: give one with INPUT=/some/folder")
    members = (chain(scan.s(str(root), shard, shards), digest.s()) for shard in range(shards))
    return states.submit(
        members,
        job_id=job_id,
        on_success=write_report.s(),
        on_failure=report_failure.s(),
        on_settled=write_partial_report.s(),
    )


@app.task(base=StatefulTask, bind=True, tag="scan")
def scan(self: Any, root: str, shard: int, shards: int) -> str:
    """Note size and type of every file of this shard."""
    paths = [path for number, path in enumerate(files(root)) if number % shards == shard]
    found = []
    for done, path in enumerate(paths, 1):
        info = path.stat(follow_symlinks=False)
        if stat.S_ISREG(info.st_mode):
            found.append({"path": str(path), "bytes": info.st_size, "type": path.suffix.lower() or "(none)"})
        self.state.progress(done, len(paths), path.name)
    return save(self.state.job_id, shard, found)


@app.task(base=StatefulTask, bind=True, tag="hash")
def digest(self: Any, result: str) -> None:
    """Add the SHA-256 of each file's content to what ``scan`` found."""
    found = json.loads(Path(result).read_text(encoding="utf-8"))
    total = sum(each["bytes"] for each in found) or 1
    done = 0
    for each in found:
        each["sha256"] = sha256(Path(each["path"]))
        done += each["bytes"]
        self.state.progress(min(done, total), total, Path(each["path"]).name)
    Path(result).write_text(json.dumps(found), encoding="utf-8")


@app.task(base=StatefulTask)
def write_report(job_id: str) -> None:
    """Merge the shards: every one of them is finished."""
    make_report(results(job_id), states.job(job_id).num_tasks)


@app.task(base=StatefulTask)
def report_failure(job_id: str) -> None:
    """Say at once that a shard has failed, and why."""
    worst = states.job(job_id).get_state()
    print(f"shard {worst.task_index} failed in {worst.tag}: {worst.message}", flush=True)


@app.task(base=StatefulTask)
def write_partial_report(job_id: str) -> None:
    """Merge what there is when some shard has failed: the others' work is not lost."""
    job = states.job(job_id)
    failed = job.summary("hash").failed_indexes
    if failed:
        make_report(results(job_id), job.num_tasks, failed=[*failed])


def files(root: str) -> Iterator[Path]:
    """Give all files below a folder, in the same order every time."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED)
        for name in sorted(names):
            yield Path(folder, name)


def sha256(path: Path) -> str:
    """Hash a file in blocks."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hashed.update(block)
    return hashed.hexdigest()


def results(job_id: str) -> Path:
    """Give the folder in which a job's shards leave what they found."""
    return HOME / "results" / job_id


def save(job_id: str, shard: int, found: list[dict[str, Any]]) -> str:
    """Write a shard's findings and give the file's path."""
    path = results(job_id) / f"shard-{shard:05}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    return str(path)
