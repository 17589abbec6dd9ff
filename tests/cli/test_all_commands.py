"""What all commands have in common."""

import re
from importlib.metadata import entry_points

import pytest

from celery_statemanager.cli.common import Exit

COMMANDS = sorted(
    each.name for each in entry_points(group="celery.commands") if each.value.startswith("celery_statemanager.")
)
ABOUT_A_JOB = {
    "monitor-state",
    "show-state",
    "export-state",
    "why-state",
    "pause-state",
    "rerun-state",
    "resume-state",
    "cancel-state",
    "delete-state",
}
NEEDED = {
    "monitor-state": ["x"],
    "gc-state": ["--tombstone-age", "1d", "--delete-age", "2d"],
    "migrate-state": ["--target", "1"],
}


@pytest.fixture(params=COMMANDS)
def helped(request, command):
    """A command's name and its help."""
    result = command(request.param, "--help")
    assert result.exit_code == Exit.OK
    return request.param, result.stdout


def test_help_has_examples_exit_codes_and_both_formats(helped):
    name, text = helped
    assert len(re.findall(rf"^    celery (-A proj )?{name}\b", text, re.MULTILINE)) >= 2
    listed = {int(code) for code in re.findall(r"^ +(\d+)  \w", text.partition("Exit status:")[2], re.MULTILINE)}
    every = {Exit.OK, Exit.USAGE, Exit.UNAVAILABLE, Exit.CONFIGURATION, Exit.INTERRUPTED}
    every -= {Exit.OK} if name == "web-state" else set()  # it serves until it is interrupted
    assert listed >= (every | {Exit.NO_JOB} if name in ABOUT_A_JOB else every)
    if name not in {"export-state", "web-state"}:  # JSON lines, pages
        assert re.search(r"--format \[(json\|table\|live|table\|json)\]", text)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if name not in {"sweep-state", "rerun-state", "web-state"}]
)  # they take an app
def test_a_mistyped_store_is_reported_in_one_line(name, command, error_of):
    given = NEEDED.get(name, ["x"] if name in ABOUT_A_JOB else [])
    result = command(name, *given, "--store", "sqlit:///states.db")
    assert result.exit_code == Exit.CONFIGURATION
    assert error_of(result).endswith("did you mean 'sqlite'?")
