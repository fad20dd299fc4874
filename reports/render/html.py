"""The review as one self-contained HTML page: no script, nothing loaded, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from reports import text
from reports.model import Audit
from reports.render.markdown import anchor, located, sentence
from reports.render.review import review

TEMPLATES = Path(__file__).with_name("templates")


def render(audit: Audit) -> str:
    """The page of an audit; the same audit gives the same text."""
    return _template().render(r=review(audit)).strip("\n") + "\n"


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    environment.filters |= {
        "visible": text.one_line,
        "prose": prose,
        "source": source,
        "safe_url": text.safe_url,
        "located": located,
        "sentence": sentence,
        "anchor": anchor,
        "emphasised": emphasised,
    }
    return environment.get_template("review.html.j2")


def prose(words: str) -> Markup:
    """Words with code spans between single backticks, escaped."""
    pieces = text.spans(words)
    return Markup("").join(
        Markup("<code>{}</code>").format(p) if odd % 2 else escape(p) for odd, p in enumerate(pieces)
    )


def emphasised(words: str) -> Markup:
    """Our own words, with those between stars emphasised, escaped."""
    pieces = words.split("*")
    return Markup("").join(
        Markup("<em>{}</em>").format(p) if odd % 2 else escape(p) for odd, p in enumerate(pieces)
    )


def source(lines: Iterable[str]) -> Markup:
    """Quoted lines, escaped."""
    return escape("\n".join(text.visible(line.expandtabs(4)) for line in lines))
