"""Every example in a docstring of the package runs."""

import ast
import doctest
import importlib
import itertools
import textwrap
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from celery import Celery

import celery_statemanager
from celery_statemanager import StatefulTask, StateManager, open_store
from celery_statemanager.migrations.registry import Steps
from celery_statemanager.records import Cell, JobRecord
from celery_statemanager.testing import FaultyStore
from celery_statemanager.testing.celery import published

PACKAGE = Path(celery_statemanager.__file__).parent


def docstrings():
    """Yield the place and the text of every docstring in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE.parent)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    yield f"{module}:{getattr(node, 'name', 'module')}", text


def blocks(text):
    """Yield the indented blocks that follow a line ending with ``::``."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.endswith("::"):
            yield textwrap.dedent("\n".join(indented(lines[at + 1 :], indent(line)))).strip() + "\n"


def indented(lines, depth):
    return itertools.takewhile(lambda each: not each.strip() or indent(each) > depth, lines)


def indent(line):
    return len(line) - len(line.lstrip())


BLOCKS = [pytest.param(block, id=place) for place, text in docstrings() for block in blocks(text)]
DOCTESTS = [pytest.param(place, text, id=place) for place, text in docstrings() if ">>>" in text]


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Return the names that a block of code may use without defining them."""
    monkeypatch.chdir(tmp_path)
    app = Celery(f"docstrings_{uuid.uuid4().hex}", broker="memory://", set_as_current=False)
    app.conf.statemanager_store_url = "memory://"
    states = StateManager(app)

    @app.task(base=StatefulTask, tag="resize", shared=False)
    def resize(path):
        return path

    yield {
        **{each.__name__: each for each in (Cell, FaultyStore, JobRecord, Path, StateManager)},
        "__name__": "example",
        "app": app,
        "open_store": open_store,
        "published": published,
        "pytest": pytest,
        "replace": replace,
        "resize": resize,
        "states": states,
        "STEPS": Steps(),
    }
    app.close()


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_code_runs(names, block):
    exec(compile(block, "docstring", "exec"), names)


@pytest.mark.parametrize(("where", "text"), DOCTESTS)
def test_an_interactive_example_prints_what_it_shows(names, where, text):
    module = importlib.import_module(where.partition(".py:")[0].replace("/", ".").removesuffix(".__init__"))
    parsed = doctest.DocTestParser().get_doctest(text, {**names, **vars(module)}, where, None, 0)
    report = []
    failed = doctest.DocTestRunner(verbose=False).run(parsed, out=report.append).failed
    assert failed == 0, "".join(report)


def test_examples_are_found():
    assert len(BLOCKS) >= 4
    assert len(DOCTESTS) >= 3
