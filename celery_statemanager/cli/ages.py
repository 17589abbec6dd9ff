"""Ages on the command line."""

from __future__ import annotations

from typing import Any

import click

from celery_statemanager.durations import parse_duration


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
