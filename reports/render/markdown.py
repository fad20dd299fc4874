"""The review in markdown (CommonMark with tables), by the template beside this file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from reports import text
from reports.model import Audit, Cite
from reports.render.review import review

TEMPLATES = Path(__file__).with_name("templates")


def render(audit: Audit) -> str:
    """The review of an audit; the same audit gives the same text."""
    body = _template().render(r=review(audit))
    return "\n".join(_tidy(body.strip("\n").split("\n"))) + "\n"


def _tidy(lines: Iterable[str]) -> Iterator[str]:
    """The lines without runs of blank ones, except inside quotes."""
    fence, last = "", "-"
    for line in lines:
        if line or last or fence:
            yield line
        if (inner := line.removeprefix("  ")).startswith("```"):  # in a list, a quote is indented
            ticks = inner[: len(inner) - len(inner.lstrip("`"))]
            fence = "" if fence == inner else fence or ticks
        last = line


@cache
def _template() -> Template:
    # Markdown is escaped by the filters, value by value; HTML escaping would be the wrong one here.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "plain": text.plain,
        "inline": text.inline,
        "cell": text.inline,
        "code": text.code,
        "fence": text.fence,
        "safe_url": text.safe_url,
        "capitalise": capitalised,
        "located": located,
        "sentence": sentence,
        "anchor": anchor,
    }
    return environment.get_template("review.md.j2")


def anchor(name: str) -> str:
    """A name as the target of a link: ASCII letters, digits and hyphens."""
    return "variant-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in name)


def capitalised(words: str) -> str:
    """The first letter large, the others left alone."""
    first = words.partition(" ")[0]
    # A tensor's name and a call stay as they are.
    name = "_" in first or first.endswith("()") or (len(first) == 1 and first not in "aA")
    return words[:1].upper() + words[1:] if words[:1].isascii() and not name else words


def sentence(words: str, capital: bool = True) -> str:
    """``words`` with a full stop, and beginning with a capital letter."""
    stopped = words.strip()
    stopped += "" if stopped.endswith((".", "!", "?")) else "."
    return capitalised(stopped) if capital else stopped


def located(cites: Iterable[Cite]) -> list[Cite]:
    """The cites that lead to lines, each place once."""
    return list({c.label: c for c in cites if c.start is not None}.values())
