"""Where the file may be, and which locations are rejected."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from sqlite_kit import in_child, opened, raw

from celery_statemanager import open_store
from celery_statemanager.errors import ConfigurationError
from celery_statemanager.manager import Manager
from celery_statemanager.stores.sqlite import location


class TestLocation:
    def test_a_relative_path_is_resolved_when_the_store_is_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(tmp_path)
        with open_store("sqlite:///states.db") as store:
            monkeypatch.chdir(elsewhere)
            Manager.create(store, "job", num_tasks=1)
        assert (tmp_path / "states.db").exists()
        assert not list(elsewhere.iterdir())

    def test_opening_a_store_does_not_connect_or_create_a_file(self, path: Path) -> None:
        opened(path)
        assert not list(path.parent.iterdir())

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("sqlite://", "does not name a file"),
            ("sqlite:///", "does not name a file"),
            ("sqlite://states.db", "does not name a file; use sqlite:///states.db"),
            ("sqlite:///dir/", "does not name a file"),
            ("sqlite:///:memory:", "memory://"),
            ("sqlite://:memory:", "memory://"),
            ("sqlite:///states.db?mode=ro", "may not contain options"),
            ("sqlite:///{tmp}", "is a directory; name a file"),
            ("sqlite:///{tmp}/none/states.db", "no directory .*/none; create it: mkdir -p"),
            ("sqlite:///{tmp}/text", "is not a SQLite database"),
            ("sqlite:///{tmp}/short", "is not a SQLite database"),
            ("sqlite:///{tmp}/text/states.db", "no directory"),
            ("sqlite:///{tmp}/fifo", "not a regular file"),
            ("sqlite:///{tmp}/" + "x" * 300, "name too long"),
            ("sqlite:///{tmp}/foreign.db", "another application"),
            ("sqlite:///{tmp}/marked.db", r"another application \(application_id 0x7, expected 0x"),
            ("sqlite:///{tmp}/newer.db", r"newer release \(schema 99, this release supports {schema}\): upgrade"),
        ],
    )
    def test_an_unusable_location_is_rejected_at_open_and_nothing_is_created(
        self, tmp_path: Path, url: str, message: str
    ) -> None:
        (tmp_path / "text").write_text("no database, but longer than the header of one " * 9)
        (tmp_path / "short").write_bytes(b"SQLite format 3\x00")
        os.mkfifo(tmp_path / "fifo")
        for name, script in {
            "foreign.db": "CREATE TABLE person (name)",
            "marked.db": "PRAGMA application_id = 7",
            "newer.db": f"PRAGMA application_id = {location.APPLICATION_ID}; PRAGMA user_version = 99",
        }.items():
            with raw(tmp_path / name) as db:
                db.executescript(script)
        before = sorted(tmp_path.iterdir())
        url, message = url.format(tmp=tmp_path), message.replace("{schema}", str(location.SCHEMA))
        with pytest.raises(ConfigurationError, match=f"(?i){message}") as caught:
            open_store(url)
        assert url.partition("?")[0] in str(caught.value) or "/" in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize("sealed", ["directory", "file"])
    def test_a_location_without_access_is_rejected_at_open(self, sealed: str) -> None:
        with tempfile.TemporaryDirectory() as directory:  # every user may enter its parent directories
            path = Path(directory, "states.db")
            path.write_bytes(b"")
            Path(directory).chmod(0o555 if sealed == "directory" else 0o777)
            path.chmod(0o444 if sealed == "file" else 0o666)

            def work() -> None:
                if os.getuid() == 0:
                    os.setuid(65534)
                with pytest.raises(ConfigurationError, match=f"{directory}.*(write access|change its mode)"):
                    opened(path)

            try:
                in_child(work)
            finally:
                Path(directory).chmod(0o755)

    @pytest.mark.parametrize("content", [b"", None])
    def test_an_empty_file_and_an_empty_database_are_accepted(self, path: Path, content: bytes | None) -> None:
        if content is None:
            with raw(path) as db:
                db.execute("PRAGMA user_version = 3")
        else:
            path.write_bytes(content)
        with opened(path) as store:
            assert Manager.create(store, "job", num_tasks=1).get_state().status == 0

    def test_another_applications_tables_in_the_log_are_found_at_the_first_call(self, path: Path) -> None:
        with raw(path) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("CREATE TABLE person (name)")
            with opened(path) as store, pytest.raises(ConfigurationError, match="another application"):
                store.list_jobs()

    def test_the_file_has_our_application_id_before_the_first_checkpoint(self, path: Path) -> None:
        with opened(path) as store:
            Manager.create(store, "job", num_tasks=1)
            header = path.read_bytes()[:108]
        assert int.from_bytes(header[68:72], "big") == location.APPLICATION_ID
        assert int.from_bytes(header[60:64], "big") == location.SCHEMA

    def test_the_repr_of_a_store_names_its_file(self, path: Path) -> None:
        assert repr(opened(path)) == f"<SQLiteStore {path}>"

    def test_unknown_options_and_invalid_timeouts_are_rejected(self, path: Path) -> None:
        with pytest.raises(ConfigurationError, match="colour"):
            opened(path, colour="red")
        for timeout in (-1, float("nan"), float("inf"), True, "5"):
            with pytest.raises(ConfigurationError, match="number of seconds"):
                opened(path, timeout=timeout)

    MOUNTS = r"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
31 22 0:27 / /home rw - autofs systemd-1 rw
32 31 0:45 / /home rw,relatime shared:2 master:9 - nfs4 server:/home rw
33 32 8:1 / /home/ann/local rw - xfs /dev/sda1 rw
34 22 0:50 / /mnt/my\040share rw - cifs //server/share rw
35 22 0:51 / /proc rw - proc proc rw
a line from the future
"""

    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/srv/states.db", "ext4"),
            ("/home/ann/states.db", "nfs4"),
            ("/home/ann/local/states.db", "xfs"),
            ("/home/ann/localhost/states.db", "nfs4"),
            ("/homestead/states.db", "ext4"),
            ("/mnt/my share/deep/states.db", "cifs"),
        ],
    )
    def test_the_longest_mount_point_above_a_file_determines_its_file_system(self, path: str, kind: str) -> None:
        assert location.file_system(path, self.MOUNTS) == kind
        assert location.file_system(path, "") is None

    @pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "afs", "fuse.sshfs"])
    def test_a_network_file_system_is_rejected_by_name(self, path: Path, kind: str) -> None:
        mounts = f"22 1 254:1 / / rw - ext4 /dev/root rw\n40 22 0:50 / {path.parent} rw - {kind} there rw"
        with pytest.raises(ConfigurationError, match=rf"network file system \({kind}\).*local disk"):
            location.locate(f"sqlite:///{path}", lambda: mounts)
        assert location.locate(f"sqlite:///{path}", lambda: mounts.replace(kind, "btrfs")) == str(path)

    def test_a_system_without_mountinfo_accepts_every_location(self, tmp_path: Path, path: Path) -> None:
        assert location.read_mountinfo(tmp_path / "none") == ""
        assert location.locate(f"sqlite:///{path}", lambda: "") == str(path)

    def test_a_symbolic_link_is_checked_by_its_target(self, tmp_path: Path, path: Path) -> None:
        (tmp_path / "link.db").symlink_to(path)
        assert location.locate(f"sqlite:///{tmp_path}/link.db") == str(path)
