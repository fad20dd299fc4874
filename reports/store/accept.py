"""An audit written down as the next round's prior review (TOML)."""

from __future__ import annotations

from collections.abc import Iterable

from reports.judge.prior import prior_of
from reports.model import Audit, PriorFinding

HEAD = "# The previous review as data: what it said of each variant, and the checks that ask the same.\n"
ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def accepted(audit: Audit) -> str:
    """The prior review that `reports.judge.prior` reads back."""
    subject = audit.run.subject
    prior = prior_of(audit, f"audit of {subject.name} {subject.version}")
    lines = [HEAD, f"title = {quoted(prior.title)}"]
    lines.append(f"subjects = [{', '.join(map(quoted, prior.subjects))}]")
    for old in prior.variants.values():
        lines += ["", "[[variant]]", f"variant = {quoted(old.variant)}", f"verdict = {quoted(old.verdict)}"]
        for found in old.findings:
            lines += _finding(found)
    return "\n".join(lines) + "\n"


def _finding(found: PriorFinding) -> Iterable[str]:
    yield "\n[[variant.finding]]"
    yield f"id = {quoted(found.id)}"
    yield f"tag = {quoted(found.tag)}"
    yield f"quote = {quoted(found.quote)}"
    for key, words in (("checks", found.checks), ("mistakes", found.mistakes)):
        yield f"{key} = [{', '.join(map(quoted, words))}]"
    cases = ", ".join(f"{quoted(id_)} = {number}" for id_, number in found.claims.items())
    yield f"claims = {{ {cases} }}"  # those that failed, each with the number of its cases


def quoted(text: str) -> str:
    """A TOML basic string; whatever is not printable is escaped."""
    return '"' + "".join(ESCAPES.get(c) or (c if c.isprintable() else _escaped(c)) for c in text) + '"'


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xD800 <= code < 0xE000:  # TOML knows no surrogates
        return f"\\\\u{code:04x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
