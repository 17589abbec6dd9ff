"""The pages of the site that are generated from the code, and the navigation."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml

import celery_statemanager

ROOT = Path(__file__).parents[2]


class Loader(yaml.SafeLoader):
    """Reads ``mkdocs.yml`` without its Python objects."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
NAVIGATION = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]


@pytest.fixture(scope="module")
def site_pages():
    sys.path.insert(0, str(ROOT / "scripts"))
    yield importlib.import_module("site_pages")
    sys.path.remove(str(ROOT / "scripts"))


def leaves(nav):
    for each in nav:
        value = next(iter(each.values()))
        yield from [value] if isinstance(value, str) else leaves(value)


def test_the_navigation_names_each_page_once(site_pages):
    from_outside = {"index.md", "design.md", "changelog.md"}
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    named = [*leaves(NAVIGATION)]
    assert len({*named}) == len(named)
    assert {*named} <= pages | from_outside | {*site_pages.generated()}
    added_by_the_hook = {page for page in pages - {*named} if Path(page).parent.as_posix() in {".", "internals"}}
    assert not pages - {*named} - added_by_the_hook


def test_the_page_of_options_has_the_help_of_every_command(site_pages):
    page = site_pages.options()
    assert len(site_pages.commands()) >= 14
    for name, command in site_pages.commands().items():
        assert f"## {name}\n" in page
        assert all(option in page for each in command.params for option in each.opts if option.startswith("--"))


def test_the_page_of_the_wire_format_has_every_field(site_pages):
    page = site_pages.wire_format()
    for name in ("jobID", "taskID", "eventID", "failedIDs", "numTasks", "runToken", "replay", "tagOrder"):
        assert re.search(rf'["`]{name}["`]', page), name
    assert "| `2147483647` | `FINISHED` |" in page
    assert "`POST /api/jobs/{job_id}/rerun`" in page


def test_the_reference_names_every_public_name(site_pages):
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    named = {each.rpartition(".")[2] for each in re.findall(r"^::: (\S+)", page, re.MULTILINE)}
    errors = {*vars(celery_statemanager.errors)} if "errors" in named else set()
    assert {*celery_statemanager.__all__} <= named | errors


def test_the_markdown_copy_of_the_reference_contains_the_docstrings(site_pages):
    text = site_pages.expanded("Before.\n\n::: celery_statemanager.IndexSet\n    options:\n      x: y\n\nAfter.\n")
    assert text.startswith("Before.\n\n### IndexSet\n")
    assert "#### IndexSet.parse" in text
    assert text.endswith("After.\n")
