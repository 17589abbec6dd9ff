"""What all commands share: finding the store and the job, and telling trouble in one line with an exit code.

Every command tells people in a table and programs in JSON (``--format``), colours only what a terminal shows, and
ends with a code of ``Exit``, which its ``--help`` lists.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
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

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""What writing an output meets; other such errors are no command's to explain."""


class Exit(IntEnum):
    """How a command ends; the numbers from 64 on are those of ``sysexits.h``."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_JOB = 66
    UNAVAILABLE = 69
    OUTPUT = 74
    CONFIGURATION = 78
    INTERRUPTED = 130


def option(*names: str, group: str, **settings: Any) -> Callable[[Command], Command]:
    """Declare an option under a heading of the help."""
    return click.option(*names, cls=CeleryOption, help_group=group, **settings)


def store_option(command: Command) -> Command:
    """Declare ``--store``."""
    told = f"URL of the store to read, in place of the app's {PREFIX}store_url. Needs no -A."
    return option("--store", "store_url", metavar="URL", help=told, group="Store")(command)


def job_argument(command: Command) -> Command:
    """Declare the job that a command is about."""
    return click.argument("job_id", metavar="JOB")(command)


def run_option(command: Command) -> Command:
    """Declare ``--run-token``."""
    told = "Which run, for a job that was created with one."
    return option("--run-token", metavar="R", help=told, group="Which job")(command)


def format_option(command: Command) -> Command:
    """Declare ``--format`` of a command that tells what it has to tell and ends."""
    styles = click.Choice(["table", "json"], case_sensitive=False)
    told = "table, the default, for people; json for programs."
    return option("--format", "style", type=styles, default="table", help=told, group="Output")(command)


def fail(message: str, code: Exit) -> NoReturn:
    """End the command with one line on stderr."""
    raise CeleryCommandException(" ".join(message.split()), int(code))


def note(message: str) -> None:
    """Tell something on stderr and go on."""
    click.echo(" ".join(message.split()), err=True)


@contextmanager
def opened_store(app: Celery, url: str | None) -> Iterator[FullStore]:
    """Open the store of an app, or the one at ``url``, and tell its trouble; none is made where none is."""
    shown = "" if url is None else masked(url)
    try:
        shown = masked(url or _settings(app).store_url)
        with _open(app, url) as store:
            store.require()
            try:
                yield store
            except JobNotFound as error:
                fail(f"{error} ({shown}){unseen(app, url)}{_others(store, JobKey(*error.args))}", Exit.NO_JOB)
    except SubscriptionLost as error:
        fail(str(error), Exit.UNAVAILABLE)
    except StoreError as error:
        fail(f"{error}" if shown in str(error) else f"{error} ({shown})", Exit.UNAVAILABLE)
    except ConfigurationError as error:
        fail(str(error), Exit.CONFIGURATION)


@contextmanager
def interruptible() -> Iterator[None]:
    """End quietly on Ctrl-C, and when nobody reads the output any more; tell of output that cannot be written."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.exceptions.Exit(int(Exit.INTERRUPTED)) from None
    except BrokenPipeError:
        _discard_output()
        raise click.exceptions.Exit(int(Exit.OK)) from None
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _discard_output()
        fail(f"the output cannot be written: {error.strerror}", Exit.OUTPUT)


def job_key(job_id: str, run_token: str | None) -> JobKey:
    """Give the pair that a job is kept under; end the command where it cannot be any job's."""
    try:
        return JobKey(check_name("--job", job_id), check_optional("--run-token", run_token))
    except ValueError as error:
        fail(str(error), Exit.USAGE)


def find_job(store: Store, job_id: str, run_token: str | None) -> JobRecord:
    """Give a job. Raises: JobNotFound, StoreError; ends the command where the names cannot be any job's."""
    return retention.find_job(store, job_key(job_id, run_token))


def checked_task(job: JobRecord, task_index: int | None) -> int | None:
    """Accept a row of the job; end the command where it has no such row."""
    try:
        return None if task_index is None else check_index(task_index, job.num_tasks)
    except ValueError:
        fail(f"--task is 0 … {job.num_tasks - 1} for job {job.job_id!r}, not {task_index}", Exit.USAGE)


def checked_tag(tag: str | None) -> str | None:
    """Accept a tag, known or not; end the command where it cannot be one."""
    try:
        return check_optional("--tag", tag)
    except ValueError as error:
        fail(str(error), Exit.USAGE)


def unseen(app: Celery, url: str | None) -> str:
    """Give the end of a sentence about what is not found, where a command cannot see what others keep."""
    memory = (url or _settings(app).store_url).startswith("memory:")
    return "; a memory store is seen by its own process only" if memory else ""


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
    nobodys = app is _state.default_app  # type: ignore[attr-defined]
    if nobodys and app.conf.get(f"{PREFIX}store_url") is None:
        fail("which app? write celery -A proj …, or name a store with --store URL", Exit.USAGE)
    return Settings.from_app(app)


def _others(store: Store, wanted: JobKey) -> str:
    """Give the end of a sentence that names what may have been meant."""
    found = look_alikes(store, wanted)
    if not found:
        return ""
    if found[0].job_id != wanted.job_id:
        return f"; did you mean {' or '.join(dict.fromkeys(repr(each.job_id) for each in found))}?"
    tokens = [f"--run-token {shlex.quote(each.run_token)}" for each in found if each.run_token is not None]
    return f"; there is {' or '.join([*(['one without --run-token'] if len(tokens) < len(found) else []), *tokens])}"


def _discard_output() -> None:
    """Keep the interpreter's last flush from failing once more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


class Age(click.ParamType):  # type: ignore[type-arg] # older click has no arguments for it
    """An age such as ``30d``, given as microseconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or end the command with the mend."""
        try:
            return round(parse_duration(value) * 1_000_000)
        except ValueError as error:
            self.fail(str(error), param, ctx)


AGE = Age()
