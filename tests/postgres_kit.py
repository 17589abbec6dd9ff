"""Real PostgreSQL servers for tests, each with a cluster of its own in a temporary directory and on a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from celery_statemanager.testing.ports import free_port

PATIENCE = 30.0
"""Seconds to wait for a server to start or stop."""

SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "listen_addresses": "127.0.0.1",
    "autovacuum_naptime": "10s",
    "lc_messages": "C",
}


def programs() -> Path:
    """Return the folder with PostgreSQL's programs. Without it, skip the test, or fail it if ``CI`` is ``true``."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    return Path(_required("initdb", "postgresql")).resolve().parent


def _required(program: str, package: str) -> str:
    path = shutil.which(program)
    if path is None:
        skip_or_fail = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        skip_or_fail(f"{program} is not installed: apt-get install {package}")
    return str(path)


def account() -> str | None:
    """Return the user to run servers as: they refuse to run as root. None for the user of this process."""
    if os.getuid() != 0:
        return None
    names = {each.pw_name for each in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class PostgresServer:
    """One server, restartable on its port and directory.

    Args:
        settings: as in postgresql.conf.
    """

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port = free_port()
        self.settings = {**SETTINGS, "unix_socket_directories": str(directory), **settings}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str = "postgres", user: str = "postgres", password: str = "") -> str:
        login = f"{user}:{password}" if password else user
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(self.url_of(database), autocommit=True)

    def execute(self, text: str, *values: object) -> list[tuple]:
        with self.connect() as connection:
            cursor = connection.execute(text, values or None)
            return cursor.fetchall() if cursor.description else []

    def create(self) -> PostgresServer:
        """Create the cluster. Local connections need no password."""
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        return self

    def copy_of(self, primary: PostgresServer) -> PostgresServer:
        """Create the cluster as a standby of another one."""
        source = f"postgresql://postgres@127.0.0.1:{primary.port}/postgres"
        self.run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-c", "fast", "-X", "stream")
        return self

    def start(self) -> PostgresServer:
        command = [str(programs() / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        log = (self.directory / "log").open("ab")
        with log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=account(), cwd=self.directory)
        _wait_for(self._responds, f"PostgreSQL on port {self.port}")
        return self

    def stop(self, *, kill: bool = False) -> None:
        """Stop the server and end its sessions."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT if kill else signal.SIGINT)
            self.process.wait(PATIENCE)
            self.process = None

    def promote(self) -> None:
        """Make a standby the primary."""
        self.execute("SELECT pg_promote(true, 30)")

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs."""
        done = subprocess.run(
            [str(programs() / program), *arguments],
            capture_output=True,
            text=True,
            user=account(),
            cwd="/",
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _responds(self) -> bool:
        assert self.process is None or self.process.poll() is None, (self.directory / "log").read_text()
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running_postgres(**settings: object) -> Iterator[PostgresServer]:
    """Run a server and yield it."""
    with server_directory("postgres-") as directory:
        server = PostgresServer(directory, **settings).create()
        try:
            yield server.start()
        finally:
            server.stop()


@contextmanager
def server_directory(prefix: str) -> Iterator[Path]:
    """Yield a temporary directory that belongs to the user of the servers."""
    programs()
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        user = account()
        if user is not None:
            shutil.chown(name, user)
        yield Path(name)


@contextmanager
def running_pgbouncer(server: PostgresServer, mode: str = "transaction") -> Iterator[str]:
    """Run PgBouncer in front of a server and yield a URL of it."""
    program = _required("pgbouncer", "pgbouncer")
    with server_directory("pgbouncer-") as directory:
        port = free_port()
        (directory / "users").write_text('"postgres" ""\n')
        (directory / "config").write_text(
            f"""
[databases]
* = host=127.0.0.1 port={server.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 4
auth_file = {directory}/users
"""
        )
        log = (directory / "log").open("wb")
        with (
            log,
            subprocess.Popen([program, str(directory / "config")], stdout=log, stderr=log, user=account()) as process,
        ):
            url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
            try:
                _wait_for(lambda: _accepts(url), "PgBouncer")
                yield url
            finally:
                process.terminate()


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def _wait_for(condition: Callable[[], object], what: str) -> None:
    deadline, pause = time.monotonic() + PATIENCE, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {PATIENCE} s: {what}"
        pause.wait(0.02)
