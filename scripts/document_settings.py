"""Write the table of ``docs/settings.md`` from the code that reads the settings: ``make docs``.

With ``--check``, write nothing and exit with 1 if the table is not current.
"""

import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from celery_statemanager.integration.settings import PREFIX, Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
BEGIN, END = "<!-- settings: written by make docs -->\n", "<!-- end of settings -->\n"


def descriptions() -> dict[str, str]:
    """Return the description of each setting from the docstring of ``Settings``, in Markdown."""
    attributes = (Settings.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".").replace("``", "`") for name, text in entries}


def table() -> str:
    """Return the table. Raises: KeyError – a setting has no description."""
    described = descriptions()
    rows = ["| key | default | meaning |\n", "|---|---|---|\n"]
    for each in fields(Settings):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        shown = f'"{default}"' if isinstance(default, str) else repr(default)
        rows.append(f"| `{PREFIX}{each.name}` | `{shown}` | {described[each.name]} |\n")
    return "".join(rows)


def main() -> int:
    """Write or check the table, and return the exit code."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    written = before + BEGIN + table() + END + rest.split(END)[1]
    if "--check" in sys.argv:
        return int(written != text)
    PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
