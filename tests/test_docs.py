"""Links between the pages of docs/ lead somewhere, and every page is in the site's contents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def local_links(page: Path) -> list[str]:
    """Targets of a page's links, without those that lead out of the project."""
    return [m[1] for m in LINK.finditer(page.read_text(encoding="utf-8")) if "://" not in m[1]]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not [link for link in local_links(page) if not (page.parent / link).exists()]


def test_every_page_is_in_the_contents() -> None:
    """`make docs` warns of one that is not, and fails; so does this, without the site's environment."""
    told = re.findall(r"([\w/]+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert {p.name for p in PAGES} <= set(told)
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]


def test_a_dead_link_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[here](page.md), [there](nowhere.md#x), [out](https://example.org)", encoding="utf-8")
    assert local_links(page) == ["page.md", "nowhere.md"]
