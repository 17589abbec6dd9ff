"""Services of a compose file as local processes: their own commands, environments, health checks and order.

What a container engine does is done by translation: a service's name is this machine, its port a free one, a volume a
folder. Images are not looked at: what they bring must be installed here.
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

PATIENCE = 60.0
"""Seconds after which a service that should be healthy, or ended, is given up."""

ENDINGS = {"service_started": "started", "service_healthy": "healthy", "service_completed_successfully": "completed"}


def read(path: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Read a compose file: ``${NAME:-default}`` filled in, ``$$`` a dollar."""

    def filled(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match["name"], match["default"])

    return mapped(
        yaml.safe_load(path.read_text(encoding="utf-8")),
        lambda text: re.sub(r"\$\$|\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", filled, text),
    )


def mapped(value: Any, change: Any) -> Any:
    """Change every text of nested lists and mappings."""
    if isinstance(value, dict):
        return {key: mapped(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [mapped(each, change) for each in value]
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
                env=self._surroundings(),
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def healthy(self) -> bool:
        """Whether its own check says so. Raises: AssertionError – it has ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended:\n{self.said}"
        checked = subprocess.run(
            ["sh", "-c", self.check],
            env=self._surroundings(),
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=False,
        )
        return checked.returncode == 0

    def completed(self) -> bool:
        """Whether it has ended well. Raises: AssertionError – it has ended otherwise."""
        assert self.process is not None
        code = self.process.poll()
        assert code in (None, 0), f"{self.name} ended with {code}:\n{self.said}"
        return code == 0

    def started(self) -> bool:
        return self.process is not None

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(PATIENCE)

    def _surroundings(self) -> dict[str, str]:
        """A container sees its image and what it was given, nothing else of this machine."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        given = {"PATH": path, "HOME": str(self.home), "HOSTNAME": socket.gethostname(), "PYTHONUNBUFFERED": "1"}
        return {**given, **self.environment}


class Project:
    """The services of one profile; started in their order, stopped in reverse."""

    def __init__(self, file: Path, profile: str, home: Path, **environment: str) -> None:
        described = read(file, environment)
        chosen = {name: each for name, each in described["services"].items() if profile in each["profiles"]}
        self._ports = {str(port): str(free_port()) for port in (6379, 8787)}
        self.services: dict[str, Service] = {}
        for name, each in chosen.items():
            folders = dict(self._folders(each.get("volumes", ()), home))
            self.services[name] = Service(
                name, mapped(each, lambda text, folders=folders: self._here(text, chosen, folders)), home
            )

    def up(self) -> Iterator[Service]:
        """Start each service once those it waits for are as it wants them."""
        for name in self.order():
            service = self.services[name]
            for other, condition in service.waits_for.items():
                wait_until(getattr(self.services[other], ENDINGS[condition]), f"{other} is not {ENDINGS[condition]}")
            service.start()
            yield service

    def order(self) -> list[str]:
        """Give the names, those waited for first."""
        placed: list[str] = []
        while len(placed) < len(self.services):
            ready = [name for name, each in self.services.items() if {*each.waits_for} <= {*placed}]
            placed += [name for name in ready if name not in placed]
        return placed

    def down(self) -> None:
        for name in reversed(self.order()):
            self.services[name].stop()

    def _here(self, text: str, names: dict[str, Any], folders: dict[str, str]) -> str:
        """Translate addresses and paths of containers to those of this machine."""
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


def wait_until(condition: Any, complaint: str) -> None:
    """Ask again and again until it holds. Raises: AssertionError after ``PATIENCE``."""
    deadline, pause = time.monotonic() + PATIENCE, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{complaint} after {PATIENCE} s"
        pause.wait(0.1)
