"""The design states each rule once, and the documents name tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = [f"R{number}" for number in (*range(1, 26), 27)]
CONTRACT = ROOT / "celery_statemanager" / "testing"


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def test_each_rule_is_stated_once_and_in_order():
    assert re.findall(r"^- \*\*(R\d+) ", text_of("design.md"), re.MULTILINE) == RULES


def test_each_rule_is_named_by_a_test_file():
    files = [*CONTRACT.glob("contract*.py"), *(ROOT / "tests").rglob("test_*.py")]
    sources = " ".join(path.read_text(encoding="utf-8") for path in files if path.parent.name != "docs")
    assert not [rule for rule in RULES if not re.search(rf"\b{rule}\b", sources)]


def test_each_failure_mode_names_tests_that_exist():
    names = re.findall(r"`((?:test|contract)_\w+\.py)`", text_of("docs/failure-modes.md"))
    existing = {path.name for folder in (CONTRACT, ROOT / "tests") for path in folder.rglob("*.py")}
    assert len(names) > 30
    assert not {*names} - existing
