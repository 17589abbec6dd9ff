"""Options, error handling and lookups that all commands share.

Every command writes tables for people and JSON for programs (``--format``), uses colour only on a terminal, reports
an error in one line on stderr, and exits with a code of ``Exit`` that its ``--help`` lists.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from celery import Celery, _state
from celery.bin.base import CeleryOption
from celery.exceptions import CeleryCommandException

from celery_statemanager import retention
from celery_statemanager.durations import parse_duration
from celery_statemanager.errors import ConfigurationError, JobNotFound, StoreError, SubscriptionLost
from celery_statemanager.integration.settings import PREFIX, Settings
from celery_statemanager.limits import check_index, check_name, check_optional
from celery_statemanager.overview import look_alikes
from celery_statemanager.records import JobKey, JobRecord
from celery_statemanager.stores import FullStore, Store, masked, open_store

Command = TypeVar("Command", bound=Callable[..., Any])

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
"""Errors of writing the output that are reported in one line; others are raised."""


class Exit(IntEnum):
    """Exit codes; those from 64 on are taken from ``sysexits.h``."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_JOB = 66
    UNAVAILABLE = 69
    OUTPUT = 74
    CONFIGURATION = 78
    INTERRUPTED = 130


EXITS = """\
    2  usage error
   66  no such job
   69  the store is unavailable
   74  the output cannot be written
   78  invalid store URL or setting, or the store's file does not exist
  130  interrupted by Ctrl-C
"""
"""The exit codes from 2 on, in the help of a command about one job."""


def option(*names: str, group: str, **settings: Any) -> Callable[[Command], Command]:
    """Return a decorator that adds an option under a heading of the help."""
    return click.option(*names, cls=CeleryOption, help_group=group, **settings)


def store_option(command: Command) -> Command:
    """Add the option ``--store``."""
    text = f"URL of the store, instead of the app's {PREFIX}store_url. Needs no -A."
    return option("--store", "store_url", metavar="URL", help=text, group="Store")(command)


def job_argument(command: Command) -> Command:
    """Add the argument ``JOB``."""
    return click.argument("job_id", metavar="JOB")(command)


def run_option(command: Command) -> Command:
    """Add the option ``--run-token``."""
    text = "The run, if the job was created with a run token."
    return option("--run-token", metavar="R", help=text, group="Which job")(command)


def format_option(command: Command) -> Command:
    """Add the option ``--format`` to a command that prints a result and exits."""
    styles = click.Choice(["table", "json"], case_sensitive=False)
    text = "table (the default) for people, json for programs."
    return option("--format", "style", type=styles, default="table", help=text, group="Output")(command)


def fail(message: str, code: Exit) -> NoReturn:
    """Exit with one line on stderr. Raises: CeleryCommandException."""
    raise CeleryCommandException(" ".join(message.split()), int(code))


def note(message: str) -> None:
    """Write one line on stderr and continue."""
    click.echo(" ".join(message.split()), err=True)


@contextmanager
def opened_store(app: Celery, url: str | None) -> Iterator[FullStore]:
    """Open the store of an app, or the one at ``url``; report its errors and exit. A missing store is not created."""
    shown = "" if url is None else masked(url)
    try:
        shown = masked(url or _settings(app).store_url)
        with _open(app, url) as store:
            store.require()
            try:
                yield store
            except JobNotFound as error:
                key = JobKey(error.job_id, error.run_token)
                fail(f"{JobNotFound(*key)} ({shown}){memory_hint(app, url)}{_others(store, key)}", Exit.NO_JOB)
    except SubscriptionLost as error:
        fail(str(error), Exit.UNAVAILABLE)
    except StoreError as error:
        fail(f"{error}" if shown in str(error) else f"{error} ({shown})", Exit.UNAVAILABLE)
    except ConfigurationError as error:
        fail(str(error), Exit.CONFIGURATION)


@contextmanager
def interruptible() -> Iterator[None]:
    """Exit quietly on Ctrl-C and when the reader of the output has exited; report output that cannot be written.

    A command does its work without output if its standard output is closed.
    """
    _replace_closed_streams()
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(int(Exit.INTERRUPTED)) from None
    except BrokenPipeError:
        _discard_output()
        raise click.exceptions.Exit(int(Exit.OK)) from None
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _discard_output()
        fail(f"cannot write the output: {error.strerror}", Exit.OUTPUT)


def job_key(job_id: str, run_token: str | None, *, named_by: str = "JOB") -> JobKey:
    """Return the key of a job; exit if a name is invalid."""
    try:
        return JobKey(check_name(named_by, job_id), check_optional("--run-token", run_token))
    except ValueError as error:
        fail(str(error), Exit.USAGE)


def find_job(store: Store, job_id: str, run_token: str | None) -> JobRecord:
    """Return a job's record; exit if a name is invalid. Raises: JobNotFound, StoreError."""
    return retention.find_job(store, job_key(job_id, run_token))


def checked_task(job: JobRecord, task_index: int | None) -> int | None:
    """Return the index of a row; exit if the job has no such row."""
    try:
        return None if task_index is None else check_index(task_index, job.num_tasks)
    except ValueError:
        fail(f"--task is 0 … {job.num_tasks - 1} for job {job.job_id!r}, not {task_index}", Exit.USAGE)


def checked_tag(tag: str | None) -> str | None:
    """Return a tag, planned or not; exit if it is invalid."""
    try:
        return check_optional("--tag", tag)
    except ValueError as error:
        fail(str(error), Exit.USAGE)


def memory_hint(app: Celery, url: str | None) -> str:
    """Return the end of a message about a missing job if the store is in memory, else an empty text."""
    memory = (url or _settings(app).store_url).startswith("memory:")
    return "; a memory store is visible only in its own process" if memory else ""


def _open(app: Celery, url: str | None) -> FullStore:
    if url is not None:
        return open_store(url)
    from celery_statemanager.integration.app import StateManager

    states = StateManager.installed(app)
    if states is not None:
        return states.store
    settings = _settings(app)
    return open_store(settings.store_url, timeout=settings.store_timeout, **settings.store_options)


def _settings(app: Celery) -> Settings:
    is_default = app is _state.default_app  # type: ignore[attr-defined]
    if is_default and app.conf.get(f"{PREFIX}store_url") is None:
        fail("no app and no store: write celery -A proj …, or name a store with --store URL", Exit.USAGE)
    return Settings.from_app(app)


def _others(store: Store, wanted: JobKey) -> str:
    """Return the end of a message about a missing job that names similar jobs, or an empty text."""
    found = look_alikes(store, wanted)
    if not found:
        return ""
    if found[0].job_id != wanted.job_id:
        return f"; did you mean {' or '.join(dict.fromkeys(repr(each.job_id) for each in found))}?"
    tokens = [f"--run-token {shlex.quote(each.run_token)}" for each in found if each.run_token is not None]
    return f"; there is {' or '.join([*(['one without --run-token'] if len(tokens) < len(found) else []), *tokens])}"


def _replace_closed_streams() -> None:
    """Open the null device for each standard stream that was closed when the process started, as by ``>&-``."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - until the process ends


def _discard_output() -> None:
    """Redirect stdout to the null device, so that the interpreter's last flush succeeds."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


class Age(click.ParamType):  # type: ignore[type-arg] # older click has no arguments for it
    """An age such as ``30d``, converted to microseconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the age in microseconds; exit if it is invalid."""
        try:
            return round(parse_duration(value) * 1_000_000)
        except ValueError as error:
            self.fail(str(error), param, ctx)


AGE = Age()
