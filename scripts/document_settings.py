"""Write the README's table of settings from the code that reads them: ``make docs``; ``--check`` only compares."""

import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from celery_statemanager.integration.settings import PREFIX, Settings

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- settings: written by make docs -->\n", "<!-- end of settings -->\n"


def meanings() -> dict[str, str]:
    """Give what the docstring of ``Settings`` says of each, in Markdown."""
    attributes = (Settings.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".").replace("``", "`") for name, text in found}


def table() -> str:
    """Give the table. Raises: KeyError – a setting without a meaning."""
    told = meanings()
    rows = ["| key | default | meaning |\n", "|---|---|---|\n"]
    for each in fields(Settings):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        shown = f'"{default}"' if isinstance(default, str) else repr(default)
        rows.append(f"| `{PREFIX}{each.name}` | `{shown}` | {told[each.name]} |\n")
    return "".join(rows)


def main() -> int:
    """Write the table; 1 if it was to be checked and is not current."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    written = before + BEGIN + table() + END + rest.split(END)[1]
    if "--check" in sys.argv:
        return int(written != text)
    README.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
