"""From a URL to a file that SQLite can use: every check that is possible without opening the database."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from celery_statemanager.errors import ConfigurationError

APPLICATION_ID = 0x43534D31
"""The application id in the SQLite header of the store's files: "CSM1"."""

SCHEMA = 10
"""The schema of the file that this release writes, stored as ``PRAGMA user_version``."""

NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("9p", "acfs", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs2", "glusterfs"),
        *("gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs"),
        *("sshfs", "wekafs", "fuse.ceph", "fuse.ceph-fuse", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs"),
        *("fuse.goofys", "fuse.juicefs", "fuse.mfs", "fuse.moosefs", "fuse.objectivefs", "fuse.rclone", "fuse.s3fs"),
        *("fuse.smbnetfs", "fuse.sshfs"),
    }
)
"""File systems on which SQLite's locks and shared memory do not work between machines, by their mountinfo names."""

_MAGIC = b"SQLite format 3\x00"
_EXAMPLE = "use sqlite:///states.db for a file in the working directory, or sqlite:////var/lib/states.db"


def read_mountinfo(file: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the system's list of mounts, or an empty string where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def locate(url: str, mountinfo: Callable[[], str] = read_mountinfo, *, is_shared: bool = False) -> str:
    """Return the real absolute path of the file that a URL names, and check it without creating anything.

    Args:
        is_shared: whether the file belongs to another application, which shares it.

    Raises: ConfigurationError – SQLite cannot work there, or the file belongs to another application.
    """
    path = Path(os.path.realpath(_path_in(url)))
    try:
        _check_directory(url, path, mountinfo)
        if path.exists():
            _check_file(url, path, is_shared=is_shared)
    except OSError as error:
        raise ConfigurationError(f"cannot use {url}: {error}; name another file") from error
    return str(path)


def require(path: str) -> None:
    """Check that a file exists. Raises: ConfigurationError."""
    if not Path(path).exists():
        raise ConfigurationError(
            f"there is no file {path}, so no state was stored there; check the path (a relative path starts at the "
            "working directory), or let a worker or a submitter create the file"
        )


def file_system(path: str, mountinfo: str) -> str | None:
    """Return the type of the file system that holds a path, by the longest mount point above it."""
    best, found = "", None
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.partition(" ")[0]
        if len(fields) < 5 or not kind:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if len(mount) >= len(best) and (path == mount or path.startswith(mount.rstrip("/") + "/")):
            best, found = mount, kind
    return found


def check_header(path: str, header: bytes) -> None:
    """Check that the first 108 bytes are those of an empty file, an empty database, or a database of this store.

    The application id is always in the file itself: it is written before the file is switched to WAL.
    Raises: ConfigurationError.
    """
    if not header:
        return
    if len(header) < 108 or not header.startswith(_MAGIC):
        raise ConfigurationError(f"{path} is not a SQLite database; name another path, or move the file away")
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    table_free = header[100] == 0x0D and header[103:105] == b"\x00\x00"
    check_identity(path, application, version, empty=table_free)


def check_identity(path: str, application: int, version: int, *, empty: bool) -> None:
    """Check that a database is empty, or one of this store that this release supports. Raises: ConfigurationError."""
    if application != APPLICATION_ID and not (application == 0 and empty):
        raise ConfigurationError(
            f"{path} is the SQLite database of another application (application_id {application:#x}, "
            f"expected {APPLICATION_ID:#x}); name a separate file for the states"
        )
    if application == APPLICATION_ID:
        check_schema(path, version)


def check_schema(path: str, version: int) -> None:
    """Check that this release supports the schema of a file. Raises: ConfigurationError."""
    if version > SCHEMA:
        raise ConfigurationError(
            f"{path} was written by a newer release (schema {version}, this release supports {SCHEMA}): "
            "upgrade celery-statemanager here, or name another file"
        )


def _path_in(url: str) -> str:
    rest = url.partition("://")[2]
    if rest.partition("?")[0].strip("/") == ":memory:":
        raise ConfigurationError(f"cannot use {url}: to keep states in memory, use memory:// or memory://name")
    if not rest.startswith("/") or rest == "/" or rest.endswith("/"):
        raise ConfigurationError(f"cannot use {url}: it does not name a file; {_EXAMPLE}")
    if "?" in rest or "\x00" in rest:
        raise ConfigurationError(f"cannot use {url!r}: the path may not contain options, '?' or NUL; {_EXAMPLE}")
    return rest[1:]


def _check_directory(url: str, path: Path, mountinfo: Callable[[], str]) -> None:
    parent = path.parent
    if not parent.is_dir():
        raise ConfigurationError(f"cannot use {url}: there is no directory {parent}; create it: mkdir -p {parent}")
    kind = file_system(str(path), mountinfo())
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigurationError(
            f"cannot use {url}: {path} is on a network file system ({kind}), where SQLite's locks are unreliable; "
            "put the file on a local disk, or use a redis:// store for several machines"
        )
    if not os.access(parent, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"cannot use {url}: SQLite creates more files beside {path} and this user cannot write to {parent}; "
            "grant write access to the directory"
        )


def _check_file(url: str, path: Path, *, is_shared: bool) -> None:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ConfigurationError(f"cannot use {url}: {path} is a directory; name a file, such as {url}/states.db")
    if not stat.S_ISREG(mode):
        raise ConfigurationError(f"cannot use {url}: {path} is not a regular file; name another one")
    if not os.access(path, os.R_OK | os.W_OK):
        raise ConfigurationError(f"cannot use {url}: this user cannot read and write {path}; change its mode or owner")
    if not is_shared:
        with path.open("rb") as file:
            check_header(str(path), file.read(108))


def file_identity(path: str) -> tuple[int, int] | None:
    """Return the identity of the file under a path; None if there is none."""
    try:
        file = os.stat(path)  # noqa: PTH116 - called at every use of the store, and ten times as fast
    except OSError:
        return None
    return file.st_dev, file.st_ino
