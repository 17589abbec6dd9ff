"""The table of outcomes of jobs that tolerate failed rows. Run this module as a script to write it into the guide."""

from __future__ import annotations

from pathlib import Path

from celery_statemanager.testing.contract_policies import POLICY_CASES, PolicyCase

PAGE = Path(__file__).parents[2] / "docs" / "guide.md"
BEGIN, END = "<!-- policies:begin -->\n", "<!-- policies:end -->\n"


def table() -> str:
    """Return the cases of the store contract in Markdown."""
    head = "| `max_failed` | four rows | callbacks | phase | `failed_rows` |\n|---|---|---|---|---|\n"
    return head + "".join(map(_line, POLICY_CASES))


def _line(case: PolicyCase) -> str:
    callbacks = ", ".join(f"`on_{name}`" for name in ("success", "failure", "settled") if name in case.decided)
    return f"| {case.max_failed} | {case.what} | {callbacks} | {case.phase.value} | {case.failed_rows} |\n"


def test_the_guide_shows_the_outcomes_that_the_contract_tests() -> None:
    """Run ``python tests/docs/test_policies.py`` to write the table."""
    assert PAGE.read_text().partition(BEGIN)[2].partition(END)[0] == table()


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
