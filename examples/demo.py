"""Start a worker, audit a folder with a live display, and stop the worker. Run by ``make demo``."""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from celery_statemanager.integration.submission.job import Job
from celery_statemanager.web.local import LocalServer
from examples.app import HOME, app, states
from examples.audit import audit, results
from examples.report import lines

CELERY = [sys.executable, "-m", "celery", "-A", "examples"]
PATIENCE = 30.0
STAYS = 600.0
"""Seconds for which the page of the job is served after the job, unless the user ends the demo."""


def main() -> int:
    """Run the demo. Return 0 if every shard has finished, 1 if one has failed and 2 if the folder is invalid."""
    options = parse_arguments()
    started = time.monotonic()
    folder = options.input or sysconfig.get_paths()["stdlib"]
    print(f"Auditing {folder}")
    print(f"in {options.shards} shards of 2 stages each: one Celery worker, no server.\n", flush=True)
    try:
        job = audit(folder, options.shards)
    except (OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    stays = is_interactive()
    with page_of(job) as link:
        print(f"Watch it in a browser{', also afterwards' if stays else ' while the demo runs'}: {link}\n", flush=True)
        with worker():
            monitor = subprocess.run([*CELERY, "monitor-state", "--job", job.id, *options.monitor], check=False)
            if monitor.returncode:
                return monitor.returncode
            job.wait(PATIENCE)
            report = wait_for_report(job)
            print("\n" + "\n".join(lines(report, os.path.realpath(folder))))
            print(f"\nDone in {time.monotonic() - started:.1f} s. Stopping the worker …", flush=True)
        print("Try next:")
        for step in next_steps(job.id):
            print(f"  {step}")
        if stays:
            wait_for_enter(link)
    return 1 if report["failed_shards"] else 0


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--input", help="the folder to audit (default: this Python's standard library)")
    parser.add_argument("--shards", type=int, default=16, help="rows of the job (default: 16)")
    parser.add_argument("--format", choices=["live", "table", "json"], help="format of the display")
    options = parser.parse_args()
    display = options.format or (None if sys.stdout.isatty() else "table")
    options.monitor = ["--format", display] if display else []
    return options


def is_interactive() -> bool:
    """Return whether a user can read the output and press a key."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("CI", "") in {"", "false"}


def wait_for_enter(link: str) -> None:
    """Wait until the user presses Enter or Ctrl-C, or the time is over."""
    print(f"\nThe page of the job stays open for {STAYS / 60:.0f} minutes: {link}")
    print("Press Enter to end the demo.", flush=True)
    with suppress(KeyboardInterrupt):
        select.select([sys.stdin], [], [], STAYS)


@contextmanager
def worker() -> Iterator[None]:
    """Run a Celery worker with two processes until the block ends."""
    log = HOME / "worker.log"
    with log.open("w") as output:
        running = subprocess.Popen(
            [*CELERY, "worker", "-c", "2", "-l", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


@contextmanager
def page_of(job: Job) -> Iterator[str]:
    """Serve the page of a job until the block ends. Yield a link that works in one browser."""
    server = LocalServer(states)
    serving = threading.Thread(target=server.run)
    serving.start()
    try:
        yield server.job_link(job)
    finally:
        server.stop()
        serving.join()


def wait_for_report(job: Job) -> dict:
    """Wait for the report, which a callback task writes after the job has settled."""
    path = results(job.id) / "report.json"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            time.sleep(0.05)
    raise SystemExit(f"demo: no report after {PATIENCE:.0f} s; see the worker's log {HOME / 'worker.log'}")


def command(arguments: str) -> str:
    """Return a command for the recorded jobs as it works in this folder."""
    prefix = ".venv/bin/" if Path(".venv/bin/celery").exists() else ""
    return f"{prefix}celery -A examples {arguments}"


def next_steps(job_id: str) -> list[str]:
    """Return commands that show more of the recorded job."""
    home = os.path.relpath(HOME)
    return [
        f"{command('web-state')}    # serves the pages of all jobs",
        command("list-state"),
        command(f"show-state {job_id}"),
        command(f"monitor-state {job_id} --tag hash"),
        f"less {home}/worker.log",
        "make demo-kill    # kills a worker in the middle",
        "make demo INPUT=/some/folder SHARDS=40",
    ]


if __name__ == "__main__":
    app.set_default()
    sys.exit(main())
