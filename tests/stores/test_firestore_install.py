"""The script that installs the Firestore emulator, run with a local download server."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "firestore_emulator_install.sh"
NEEDED = ("bash", "curl", "cut", "dirname", "mkdir", "mktemp", "mv", "rm", "sha256sum")
JAR = b"stands for a jar"


class Installer:
    """Run the script with the checksum of a test file, without gcloud."""

    def __init__(self, folder: Path, server: str) -> None:
        self.cache = folder / "cache"
        self.served = folder / "served"
        self.bin = folder / "bin"
        for made in (self.served, self.bin):
            made.mkdir()
        for program in NEEDED:
            found = shutil.which(program)
            if found is None:
                pytest.skip(f"{program} is not installed")
            (self.bin / program).symlink_to(found)
        text = SCRIPT.read_text()
        self.name = f"cloud-firestore-emulator-v{re.search('^version=(.*)$', text, re.MULTILINE)[1]}.jar"
        self.script = folder / "install.sh"
        self.script.write_text(
            re.sub("^sha256=.*$", f"sha256={hashlib.sha256(JAR).hexdigest()}", text, flags=re.MULTILINE)
        )
        self.server = server

    def run(self) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.bin),
            "HOME": os.environ["HOME"],
            "XDG_CACHE_HOME": str(self.cache),
            "FIRESTORE_EMULATOR_DOWNLOADS": self.server,
        }
        command = [str(self.bin / "bash"), str(self.script)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def installer(tmp_path: Path) -> Iterator[Installer]:
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "served"))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Installer(tmp_path, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_the_emulator_is_downloaded_once(installer: Installer) -> None:
    (installer.served / installer.name).write_bytes(JAR)
    done = installer.run()
    installed = Path(done.stdout.strip())
    assert (done.returncode, installed.read_bytes()) == (0, JAR), done.stderr
    (installer.served / installer.name).unlink()
    assert installer.run().stdout == done.stdout


def test_a_file_with_another_checksum_is_rejected(installer: Installer) -> None:
    (installer.served / installer.name).write_bytes(b"something else")
    done = installer.run()
    assert done.returncode == 1
    assert f"has the SHA-256 {hashlib.sha256(b'something else').hexdigest()} instead of" in done.stderr
    assert list(installer.cache.rglob("*.jar*")) == []


def test_a_failed_download_is_reported_with_a_hint(installer: Installer) -> None:
    done = installer.run()
    assert done.returncode == 1
    assert (
        f"cannot download the Firestore emulator from {installer.server}/{installer.name}; allow access to it"
        in done.stderr
    )
    assert list(installer.cache.rglob("*.jar*")) == []


def test_a_damaged_emulator_is_downloaded_again(installer: Installer) -> None:
    (installer.served / installer.name).write_bytes(JAR)
    installed = Path(installer.run().stdout.strip())
    installed.write_bytes(b"half")
    assert installer.run().returncode == 0
    assert installed.read_bytes() == JAR
