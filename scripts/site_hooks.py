"""Hooks of mkdocs: generated pages, links out of ``docs/``, a Markdown copy of each page, and ``llms.txt``."""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import site_pages

ROOT = Path(__file__).parents[1]
OUTSIDE = {"README.md": "index.md", "design.md": "design.md", "CHANGELOG.md": "changelog.md"}
"""Files outside ``docs/`` that are pages of the site, and the names of these pages."""

SECTIONS = {"": "Guides", "internals": "How it works"}
"""The section of the navigation that lists the pages of a folder which ``mkdocs.yml`` does not name."""

LINK = re.compile(r'(\]\(|\bsrc="|\bsrcset=")(?![a-z]+:|[#/])([^)#"\s]+)')
logger = logging.getLogger("mkdocs.hooks.site")
_copies: dict[str, tuple[str, str]] = {}


def on_config(config: Any) -> Any:
    """List the pages that the navigation does not name at the end of the section of their folder."""
    docs = Path(config.docs_dir)
    named = set(_leaves(config.nav))
    for path in sorted(docs.rglob("*.md")):
        page = path.relative_to(docs).as_posix()
        if page not in named and (section := SECTIONS.get(posixpath.dirname(page))):
            next(each[section] for each in config.nav if section in each).append(page)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside ``docs/`` and those that are generated from the code."""
    contents = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in OUTSIDE.items()}
    for page, content in {**contents, **site_pages.generated()}.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point each relative link at a page of the site, or at the repository if the site has no such page."""
    where = page.file.src_uri
    sources = {page: source for source, page in OUTSIDE.items()}
    folder = posixpath.dirname(sources.get(where, f"docs/{where}"))

    def replace(match: re.Match[str]) -> str:
        before, target = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        found = OUTSIDE.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(found) is None:
            if not (ROOT / path).exists():
                logger.warning("%s: no such file: %s", where, target)
            return f"{before}{config.repo_url}/blob/main/{path}"
        return before + posixpath.relpath(found, posixpath.dirname(where) or ".")

    linked = LINK.sub(replace, markdown)
    _copies[where] = (page.title or where, site_pages.expanded(linked))
    return linked


def on_post_build(config: Any) -> None:
    """Write the Markdown of each page beside its HTML, and ``llms.txt``, which lists them."""
    site = Path(config.site_dir)
    for page, (_, text) in _copies.items():
        target = site / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for section in config.nav:
        ((title, content),) = section.items()
        pages = [content] if isinstance(content, str) else [*_leaves(content)]
        lines += [f"## {title}", "", *(f"- [{_copies[page][0]}]({page})" for page in pages), ""]
    (site / "llms.txt").write_text("\n".join(lines), encoding="utf-8")
    whole = (f"<!-- {page} -->\n\n{_copies[page][1]}" for page in _leaves(config.nav))
    (site / "llms-full.txt").write_text("\n\n".join(whole), encoding="utf-8")


def _leaves(nav: Any) -> Any:
    """Yield the pages of a navigation in order."""
    for each in nav:
        value = next(iter(each.values())) if isinstance(each, dict) else each
        if isinstance(value, str):
            yield value
        else:
            yield from _leaves(value)
