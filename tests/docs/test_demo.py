"""The demo on a small folder, run as a user does."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from examples.report import lines

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "audited"
    (folder / "inner").mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"content {number % 3}")
    (folder / "inner" / "large.bin").write_bytes(bytes(100_000))
    return folder


def demo(folder, home, *prefix):
    command = [*prefix, sys.executable, "-m", "examples.demo", "--input", str(folder), "--shards", "4"]
    environment = {**os.environ, "EXAMPLES_DIR": str(home)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


def report(home):
    (path,) = home.glob("results/*/report.json")
    return json.loads(path.read_text())


def test_the_demo_audits_a_folder_and_prints_a_report(folder, tmp_path):
    done = demo(folder, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "7 files, 97.7 KiB in 4 shards" in done.stdout
    assert "inner/large.bin" in done.stdout
    assert re.search(r"while the demo runs: http://127\.0\.0\.1:\d+/jobs/\S+\?session=\S+\n", done.stdout)
    assert "Press Enter" not in done.stdout
    assert "celery -A examples web-state" in done.stdout
    saved = report(tmp_path / "home")
    assert sorted(len(each["paths"]) for each in saved["duplicates"]) == [2, 2, 2]
    assert saved["bytes_by_type"] == {".bin": 100_000, ".txt": 54}


@contextmanager
def demo_in_a_terminal(folder, home, **variables):
    """Run the demo with a terminal. Yield its process and the terminal as a file."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "examples.demo", "--input", str(folder), "--shards", "4", "--format", "table"]
    environment = {**os.environ, "EXAMPLES_DIR": str(home), "CI": "", **variables}
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment, stdin=child, stdout=child, stderr=child) as process,
        os.fdopen(parent, "r+b", buffering=0) as terminal,
    ):
        os.close(child)
        try:
            yield process, terminal
        finally:
            process.kill()


def lines_of(terminal):
    """Yield the lines of a terminal until its program has ended."""
    with suppress(OSError):
        yield from (line.decode().rstrip() for line in terminal)


@pytest.mark.parametrize("end", ["enter", "interrupt"])
def test_in_a_terminal_the_page_stays_after_the_job(folder, tmp_path, end):
    with demo_in_a_terminal(folder, tmp_path / "home") as (process, terminal):
        printed = []
        for line in lines_of(terminal):
            printed.append(line)
            if "Press Enter" in line:
                break
        else:
            pytest.fail("\n".join(printed))
        assert any("Done in" in line for line in printed)
        link = next(found[0] for line in printed if (found := re.search(r"http://\S+session=\S+", line)))
        with httpx.Client(trust_env=False, follow_redirects=True, timeout=30) as browser:
            assert browser.get(link).status_code == 200
            api = re.sub(r"/jobs/(\S+)\?.*", r"/api/jobs/\1", link)
            assert browser.get(api).json()["phase"] == "finished"
        if end == "enter":
            terminal.write(b"\n")
        else:
            process.send_signal(signal.SIGINT)
        rest = [*lines_of(terminal)]
        assert process.wait(30) == 0, rest
        assert not any("Traceback" in line for line in rest)


def test_in_a_terminal_of_continuous_integration_the_demo_ends_by_itself(folder, tmp_path):
    with demo_in_a_terminal(folder, tmp_path / "home", CI="true") as (process, terminal):
        assert not any("Press Enter" in line for line in lines_of(terminal))
        assert process.wait(30) == 0


def test_a_report_of_long_paths_fits_80_columns():
    path = f"/audited/{'long/' * 30}name.txt"
    files = {"largest": [{"bytes": 10**8, "path": path}], "duplicates": [{"bytes": 10**8, "paths": [path] * 1_000}]}
    totals = {"files": 1_000, "bytes": 10**11, "shards": 4, "failed_shards": [], "bytes_by_type": {".txt": 10**11}}
    printed = list(lines({**files, **totals}, "/audited"))
    assert max(map(len, printed)) <= 80
    assert [line.endswith("name.txt") for line in printed].count(True) == 2


def without_root_powers():
    """Return a command prefix under which file permissions apply to root, too."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root can read every file: install util-linux for setpriv, or run the tests as another user")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_an_unreadable_file_fails_its_shard_with_the_reason(folder, tmp_path):
    (folder / "3.txt").chmod(0)
    done = demo(folder, tmp_path / "home", *without_root_powers())
    assert done.returncode == 1, done.stderr
    assert "PermissionError" in done.stdout
    assert "without failed shards [3]" in done.stdout
    assert report(tmp_path / "home")["failed_shards"] == [3]


def test_a_missing_folder_is_rejected_in_one_line(tmp_path):
    done = demo(tmp_path / "missing", tmp_path / "home")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("demo: ")
