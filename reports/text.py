"""Text from subjects and references made harmless: visible on a terminal, literal in markdown.

Such text (names, docstrings, exceptions, paths, source lines) can hold anything. Every renderer passes it
through here: nothing unprintable survives, and markdown gets no syntax that we did not write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
# A bracket alone is literal; a link, an image or a definition needs what follows its end.
_SYNTAX = re.compile(r"[\\`*$&<>|]|\](?=[(\[:]|$)|~(?=~)|(?<=~)~|(?<![^\W_])_|_(?![^\W_])")
_LEADING = re.compile(r"^(?:([#+=-])|(\d{1,9})([.)])(?=\s|$))")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def visible(text: str) -> str:
    """``text`` with every unprintable character (controls, bidi overrides, surrogates) spelled out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _spelled(c) for c in text)


def _spelled(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str) -> str:
    """``text`` on one line, white space collapsed, everything visible."""
    return visible(" ".join(text.split()))


def plain(text: str) -> str:
    """``text`` as literal markdown, inside a paragraph, a heading or a table cell."""
    escaped = _SYNTAX.sub(lambda m: _ENTITIES.get(m[0], "\\" + m[0]), one_line(text))
    return _LEADING.sub(lambda m: f"\\{m[1]}" if m[1] else f"{m[2]}\\{m[3]}", escaped)


def code(text: str) -> str:
    """``text`` as a code span; with a pipe in it, which would end a table's cell, as literal text."""
    line = one_line(text)
    if not line or "|" in line:
        return plain(line)
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def inline(text: str) -> str:
    """Prose: words between single backticks become code spans, all the rest is literal."""
    pieces = spans(text)
    return "".join(code(p) if odd % 2 else _between(p) for odd, p in enumerate(pieces))


def spans(text: str) -> list[str]:
    """Prose taken apart: words, code, words, code, ... Everything visible, on one line."""
    return _SPAN.split(one_line(text))


def _between(piece: str) -> str:
    """Literal text between two code spans: the blanks at its ends count."""
    body = plain(piece)
    return f"{' ' * piece.startswith(' ')}{body}{' ' * (piece.endswith(' ') and bool(body))}"


def fence(lines: Iterable[str], language: str = "python") -> str:
    """A fenced block that no line inside can close."""
    shown = [visible(line.expandtabs(4)) for line in lines]
    ticks = "`" * max(3, _longest_run("\n".join(shown)) + 1)
    return "\n".join([ticks + language, *shown, ticks])


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)


def safe_url(url: str | None) -> str | None:
    """``url`` if it is a web page, with everything that could end a link escaped; else None."""
    if url is None or not re.match(r"https?://[\w.-]+(?:[:/?#]|$)", url):
        return None
    return quote(url, safe="/:?#=&%@+,;~!$'-._")


def shortened(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters, the number of those left out among them."""
    if len(text) <= limit:
        return text
    kept = text[: max(limit - 40, 0)]
    kept = kept.rpartition(" ")[0] or kept
    return f"{kept} … ({len(text) - len(kept)} more characters)"


def number(value: float | None) -> str:
    """A ratio or threshold with three significant digits; a dash for none."""
    return (
        "–" if value is None else f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    )


def listed(items: Iterable[str]) -> str:
    """``a, b and c``."""
    words = list(items)
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}" if words else ""
