"""From a URL to a file that SQLite may use: all that can be told without opening it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from celery_statemanager.errors import ConfigurationError

APPLICATION_ID = 0x43534D31
"""Marks our files in the SQLite header: "CSM1"."""

SCHEMA = 4
"""The newest layout of the file that this release knows; kept as ``PRAGMA user_version``."""

NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("9p", "acfs", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs2", "glusterfs"),
        *("gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs"),
        *("sshfs", "wekafs", "fuse.ceph", "fuse.ceph-fuse", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs"),
        *("fuse.goofys", "fuse.juicefs", "fuse.mfs", "fuse.moosefs", "fuse.objectivefs", "fuse.rclone", "fuse.s3fs"),
        *("fuse.smbnetfs", "fuse.sshfs"),
    }
)
"""Where SQLite's locks and shared memory do not hold between machines, by their names in mountinfo."""

_MAGIC = b"SQLite format 3\x00"
_EXAMPLE = "write sqlite:///states.db for a file in the working directory, sqlite:////var/lib/states.db for another"


def read_mountinfo(file: Path = Path("/proc/self/mountinfo")) -> str:
    """Give the system's list of mounts; empty where there is none to read."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def locate(url: str, mountinfo: Callable[[], str] = read_mountinfo) -> str:
    """Give the real absolute path of the file that a URL names. Creates nothing.

    Raises: ConfigurationError – SQLite could not work there, or the file is not ours.
    """
    path = Path(os.path.realpath(_named(url)))
    try:
        _check_directory(url, path, mountinfo)
        if path.exists():
            _check_file(url, path)
    except OSError as error:
        raise ConfigurationError(f"cannot use {url}: {error}; name another file") from error
    return str(path)


def require(path: str) -> None:
    """Accept a file that is there. Raises: ConfigurationError."""
    if not Path(path).exists():
        raise ConfigurationError(
            f"there is no file {path}: nothing was kept there yet; look at the path (a relative one begins at the "
            "working directory), or let a worker or a submitter make it"
        )


def file_system(path: str, mountinfo: str) -> str | None:
    """Give the type of the file system a path lies on: that of the longest mount point above it."""
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
    """Accept the first 108 bytes of an empty file, an empty database, or one of ours.

    The set-up writes our mark before the file is switched to WAL, so that it is always in the file itself.
    Raises: ConfigurationError.
    """
    if not header:
        return
    if len(header) < 108 or not header.startswith(_MAGIC):
        raise ConfigurationError(f"{path} is no SQLite database; give another path, or move the file away")
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    table_free = header[100] == 0x0D and header[103:105] == b"\x00\x00"
    check_identity(path, application, version, empty=table_free)


def check_identity(path: str, application: int, version: int, *, empty: bool) -> None:
    """Accept an empty database or one of ours that this release can read. Raises: ConfigurationError."""
    if application != APPLICATION_ID and not (application == 0 and empty):
        raise ConfigurationError(
            f"{path} is the SQLite database of another application (application_id {application:#x}, "
            f"ours is {APPLICATION_ID:#x}); give the states a file of their own"
        )
    if application == APPLICATION_ID and version > SCHEMA:
        raise ConfigurationError(
            f"{path} was made by a newer release (schema {version}, this one knows {SCHEMA}): "
            "upgrade celery-statemanager here, or give another file"
        )


def _named(url: str) -> str:
    rest = url.partition("://")[2]
    if rest.partition("?")[0].strip("/") == ":memory:":
        raise ConfigurationError(f"cannot use {url}: for states in memory write memory:// or memory://name")
    if not rest.startswith("/") or rest == "/" or rest.endswith("/"):
        raise ConfigurationError(f"cannot use {url}: it names no file; {_EXAMPLE}")
    if "?" in rest or "\x00" in rest:
        raise ConfigurationError(f"cannot use {url!r}: a path without options or '?' is wanted; {_EXAMPLE}")
    return rest[1:]


def _check_directory(url: str, path: Path, mountinfo: Callable[[], str]) -> None:
    parent = path.parent
    if not parent.is_dir():
        raise ConfigurationError(f"cannot use {url}: there is no directory {parent}; make it first: mkdir -p {parent}")
    kind = file_system(str(path), mountinfo())
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigurationError(
            f"cannot use {url}: {path} lies on a network file system ({kind}), where SQLite's locks are not to be "
            "trusted; put the file on a local disk, or use a redis:// store for several machines"
        )
    if not os.access(parent, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"cannot use {url}: SQLite keeps further files beside {path} and this user may not write into {parent}; "
            "give it write access to the directory"
        )


def _check_file(url: str, path: Path) -> None:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ConfigurationError(f"cannot use {url}: {path} is a directory; name a file, such as {url}/states.db")
    if not stat.S_ISREG(mode):
        raise ConfigurationError(f"cannot use {url}: {path} is not a regular file; name another one")
    if not os.access(path, os.R_OK | os.W_OK):
        raise ConfigurationError(
            f"cannot use {url}: {path} may not be read and written by this user; change its mode or owner"
        )
    with path.open("rb") as file:
        check_header(str(path), file.read(108))
