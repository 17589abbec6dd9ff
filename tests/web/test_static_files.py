"""The files that browsers load: how large they are, and how they treat text."""

import gzip
import re

import pytest

from celery_statemanager.web.pages import STATIC

SCRIPTS = sorted(STATIC.glob("*.js"))


def test_the_element_is_one_small_file():
    source = (STATIC / "celery-job.js").read_bytes()
    assert len(gzip.compress(source, mtime=0)) < 6_000
    assert not re.search(rb"^import |import\(", source, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_texts_become_text_nodes_only(script):
    source = script.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", source)


@pytest.mark.parametrize("page", ["index.html", "job.html"])
def test_pages_load_no_inline_script_and_only_files_that_exist(page):
    source = (STATIC / page).read_text(encoding="utf-8")
    assert not re.search(r"<script(?! type=\"module\" src=)|<style| style=| on\w+=", source)
    names = re.findall(r"static/([\w.-]+)\"", source)
    assert "page.css" in names
    assert [name for name in names if not (STATIC / name).is_file()] == []
