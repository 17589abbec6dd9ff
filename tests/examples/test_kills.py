"""The examples in which workers are killed: a chord does not end, a tracked job does."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_tracked_job_ends_and_the_chord_waits(tmp_path):
    options = ["--tasks", "8", "--seconds", "0.5", "--bound", "5"]
    done = run("examples.chord_migration.compare", *options, CHORD_DIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^chord +[2-7] of 8 tasks done, not complete after 5 s$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^tracked job +8 of 8 tasks done, complete after \d+ s$", done.stdout, re.MULTILINE)


def test_the_demo_recovers_from_the_kill(tmp_path):
    folder = tmp_path / "audited"
    folder.mkdir()
    for number in range(160):
        (folder / f"{number}.bin").write_bytes(bytes([number % 256]))
    options = ["--input", str(folder), "--shards", "8", "--bound", "5"]
    homes = {"EXAMPLES_DIR": str(tmp_path / "home"), "CHORD_DIR": str(tmp_path / "chord")}
    done = run("examples.demo_kill", *options, EXAMPLES_PACE="0.05", **homes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^done when killed +(9|1[0-5]) of 16 stages +[2-7] of 8 tasks$", done.stdout, re.MULTILINE), (
        done.stdout
    )
    assert re.search(r"^complete +after \d+ s +not after 5 s$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^done now +16 of 16 stages +[2-7] of 8 tasks$", done.stdout, re.MULTILINE)
    assert re.search(r"^state +finished +PENDING$", done.stdout, re.MULTILINE)
    (report,) = tmp_path.glob("home/results/*/report.json")
    assert '"files": 160' in report.read_text()
