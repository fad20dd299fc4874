"""The survey's pages: docs/survey.md, docs/survey.html, and a page for each library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.survey import unanswered
from harness.survey.hand_checked import Checked
from harness.survey.overview import Row, anchor, said
from harness.survey.unanswered import Asked
from reports import text
from reports.render import html, markdown
from reports.store import text_files

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Survey:
    """All of it. ``titles``: method -> what it is called, in the review's order."""

    rows: tuple[Row, ...]
    titles: Mapping[str, str]
    asked: tuple[Asked, ...]

    @property
    def said(self) -> str:
        return said(self.rows)

    @property
    def answered(self) -> list[Row]:
        return [r for r in self.rows if r.methods]

    @property
    def silent(self) -> list[Row]:
        return [r for r in self.rows if not r.methods]

    @property
    def drafts(self) -> list[tuple[Row, Checked]]:
        """Those that nobody has reported come first."""
        found = [(r, entry) for r in self.rows for entry in r.drafts]
        return sorted(found, key=lambda each: bool(each[1].reported))

    @property
    def unreported(self) -> int:
        return sum(not entry.reported for _, entry in self.drafts)

    @property
    def dead(self) -> list[Asked]:
        return unanswered.dead(self.asked)

    @property
    def at_home(self) -> list[Asked]:
        return unanswered.at_home(self.asked)

    @property
    def never_failed(self) -> list[Asked]:
        return unanswered.never_failed(self.asked)


def write(survey: Survey, docs: Path) -> list[Path]:
    """Every page, below ``docs``; those of libraries that have no answer are left as they are. Raises OSError."""
    pages = {docs / "survey.md": overview(survey), docs / "survey.html": page(survey)}
    pages |= {docs / "survey" / f"{r.library}.md": library(r) for r in survey.rows if r.methods}
    for path, words in pages.items():
        text_files.write_text(path, words)
    return list(pages)


def overview(survey: Survey) -> str:
    """`docs/survey.md`."""
    return _tidy(_markdown().get_template("survey.md.j2").render(s=survey))


def library(row: Row) -> str:
    """`docs/survey/<library>.md`."""
    return _tidy(_markdown().get_template("library.md.j2").render(r=row))


def page(survey: Survey) -> str:
    """`docs/survey.html`: one file, nothing loaded, everything escaped."""
    return _html().get_template("survey.html.j2").render(s=survey).strip("\n") + "\n"


def draft_anchor(entry: Checked) -> str:
    """The target of a link to a draft."""
    return anchor("draft", entry.library, Path(entry.script).stem)


def _tidy(words: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", words).strip("\n") + "\n"


@cache
def _markdown() -> Environment:
    # Markdown is escaped by the filters, value by value; HTML escaping would be the wrong one here.
    made = _environment(autoescape=False)
    made.filters |= {"plain": text.plain, "inline": text.inline, "cell": text.inline, "code": text.code}
    made.filters |= {"capitalise": markdown.capitalised}
    return made


@cache
def _html() -> Environment:
    made = _environment(autoescape=True)
    made.filters |= {"visible": text.one_line, "prose": html.prose}
    return made


def _environment(autoescape: bool) -> Environment:
    made = Environment(
        loader=FileSystemLoader([TEMPLATES, html.TEMPLATES]),
        undefined=StrictUndefined,
        autoescape=autoescape,
        trim_blocks=True,
    )
    made.filters |= {"sentence": markdown.sentence, "draft_anchor": draft_anchor}
    return made


def titles(names: Mapping[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """The methods that some library has, in the order of ``names``, each with its title."""
    there = {v for r in rows for v in r.methods}
    return {v: title for v, title in names.items() if v in there}
