"""Docstrings begin with a verb of the field."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "celery_statemanager"
REJECTED = re.compile(r"(Give|Tell|Say|Gives|Tells|Says|Does)\b")


def test_no_docstring_begins_with_a_word_of_speech():
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module))
        and REJECTED.match(ast.get_docstring(node) or "")
    ]
    assert found == []
