"""Run the services of a compose file as local processes, with their commands, environments, health checks and order.

Without a container engine, addresses and paths are translated: the name of a service to this machine, its port to a
free one, and a volume to a folder. Images are ignored, so their contents must be installed on this machine.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from celery_statemanager.testing.ports import free_port

TIMEOUT = 60.0
"""Seconds within which a service must become healthy or complete."""

CONDITIONS = {"service_started": "started", "service_healthy": "healthy", "service_completed_successfully": "completed"}


def read(path: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Read a compose file. ``${NAME:-default}`` is replaced by the variable, ``$$`` by ``$``."""

    def substitute(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match["name"], match["default"])

    return map_strings(
        yaml.safe_load(path.read_text(encoding="utf-8")),
        lambda text: re.sub(r"\$\$|\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", substitute, text),
    )


def map_strings(value: Any, change: Any) -> Any:
    """Apply a function to every string in nested lists and mappings."""
    if isinstance(value, dict):
        return {key: map_strings(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [map_strings(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


class Service:
    """One service as a process."""

    def __init__(self, name: str, described: dict[str, Any], home: Path) -> None:
        self.name = name
        self.log = home / f"{name}.log"
        self.home = home
        self.command = shlex.split(described["command"])
        self.environment = described.get("environment", {})
        self.check = described.get("healthcheck", {}).get("test")
        self.waits_for = {other: each["condition"] for other, each in described.get("depends_on", {}).items()}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self._environment(),
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def healthy(self) -> bool:
        """Return whether its health check passes. Raises: AssertionError if the service has ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended:\n{self.output}"
        check = subprocess.run(
            ["sh", "-c", self.check],
            env=self._environment(),
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=False,
        )
        return check.returncode == 0

    def completed(self) -> bool:
        """Return whether the service has ended with code 0. Raises: AssertionError if it has ended with another code."""
        assert self.process is not None
        code = self.process.poll()
        assert code in (None, 0), f"{self.name} ended with {code}:\n{self.output}"
        return code == 0

    def started(self) -> bool:
        return self.process is not None

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(TIMEOUT)

    def _environment(self) -> dict[str, str]:
        """Return the variables of the service without those of this machine, as in a container."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        basic = {"PATH": path, "HOME": str(self.home), "HOSTNAME": socket.gethostname(), "PYTHONUNBUFFERED": "1"}
        return {**basic, **self.environment}


class Project:
    """The services of one profile, started in order of dependency and stopped in reverse."""

    def __init__(self, file: Path, profile: str, home: Path, **environment: str) -> None:
        described = read(file, environment)
        chosen = {name: each for name, each in described["services"].items() if profile in each["profiles"]}
        self._ports = {str(port): str(free_port()) for port in (6379, 8787)}
        self.services: dict[str, Service] = {}
        for name, each in chosen.items():
            folders = dict(self._folders(each.get("volumes", ()), home))
            self.services[name] = Service(
                name, map_strings(each, lambda text, folders=folders: self._translate(text, chosen, folders)), home
            )

    def up(self) -> Iterator[Service]:
        """Start each service once its dependencies fulfil its conditions, and yield it."""
        for name in self.order():
            service = self.services[name]
            for other, condition in service.waits_for.items():
                state = CONDITIONS[condition]
                wait_until(getattr(self.services[other], state), f"{other} is not {state}")
            service.start()
            yield service

    def order(self) -> list[str]:
        """Return the names of the services, dependencies first."""
        placed: list[str] = []
        while len(placed) < len(self.services):
            ready = [name for name, each in self.services.items() if {*each.waits_for} <= {*placed}]
            placed += [name for name in ready if name not in placed]
        return placed

    def down(self) -> None:
        for name in reversed(self.order()):
            self.services[name].stop()

    def _translate(self, text: str, names: dict[str, Any], folders: dict[str, str]) -> str:
        """Replace addresses and paths of containers by those of this machine."""
        for port, free in self._ports.items():
            text = re.sub(rf"(?:\b(?:{'|'.join(names)}|localhost|0\.0\.0\.0)):{port}\b", f"127.0.0.1:{free}", text)
            text = re.sub(rf"(--port|-p) {port}\b", rf"\1 {free}", text)
        for target, source in folders.items():
            text = re.sub(rf"(?<![\w./]){target}(?![\w-])", source, text)
        return text

    @staticmethod
    def _folders(volumes: list[str], home: Path) -> Iterator[tuple[str, str]]:
        for volume in volumes:
            source, target = volume.split(":")[:2]
            folder = Path(source) if source.startswith(("/", ".")) else home / "volumes" / source
            folder.mkdir(parents=True, exist_ok=True)
            yield target, str(folder.resolve())


def wait_until(condition: Any, message: str) -> None:
    """Wait until a condition holds. Raises: AssertionError with the message after ``TIMEOUT`` seconds."""
    deadline, pause = time.monotonic() + TIMEOUT, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{message} after {TIMEOUT} s"
        pause.wait(0.1)
