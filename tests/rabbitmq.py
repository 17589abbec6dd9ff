"""A real RabbitMQ server for tests, with its own ports, node name, directories and Erlang port mapper."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celery_statemanager.testing.ports import free_port

PROGRAM = "/usr/lib/rabbitmq/bin/rabbitmq-server"
PATIENCE = 60


@contextmanager
def running_rabbitmq() -> Iterator[str]:
    """Run a server and yield its URL. If it is not installed, skip the test, or fail it if ``CI`` is ``true``."""
    if shutil.which("epmd") is None or not Path(PROGRAM).exists():
        skip_or_fail = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        skip_or_fail("RabbitMQ is not installed: apt-get install rabbitmq-server")
    with tempfile.TemporaryDirectory(prefix="rabbitmq-", ignore_cleanup_errors=True) as directory:
        port, environment = _environment(Path(directory))
        server = subprocess.Popen(
            [PROGRAM],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines: list[str] = []
        started = threading.Event()
        threading.Thread(target=_read_output, args=(server, lines, started), daemon=True).start()
        try:
            if not started.wait(PATIENCE) or server.poll() is not None:
                raise RuntimeError("RabbitMQ did not start:\n" + "".join(lines))
            yield f"amqp://guest:guest@127.0.0.1:{port}//"
        finally:
            server.terminate()
            server.wait(PATIENCE)
            subprocess.run(["epmd", "-kill"], env=environment, capture_output=True, check=False)


def _read_output(server: "subprocess.Popen[str]", lines: list[str], started: threading.Event) -> None:
    assert server.stdout is not None
    with server.stdout as output:
        for line in output:
            lines.append(line)
            if "completed with" in line:
                started.set()
    started.set()


def _environment(home: Path) -> tuple[int, dict[str, str]]:
    port, distribution, mapper = (free_port() for _ in range(3))
    return port, {
        **os.environ,
        "HOME": str(home),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": str(home / "none"),
        "RABBITMQ_SERVER_START_ARGS": "-setcookie test",
    }
