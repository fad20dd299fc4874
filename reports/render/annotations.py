"""Findings as workflow commands: a code host's CI shows each beside the line that it is about."""

from __future__ import annotations

from refs.vocabulary import SEVERITIES
from reports.model import Audit, Finding
from reports.order import rank
from reports.places import place_of
from reports.text import one_line, shortened

LEVELS = {"critical": "error", "major": "warning", "minor": "notice"}
LONGEST = 1000


def render(audit: Audit) -> str:
    """One line per finding, the most severe first: hosts show the first few only."""
    found = [f for f in audit.findings if f.severity in LEVELS]
    ordered = sorted(found, key=lambda f: rank(f.severity, SEVERITIES))
    return "".join(f"{_command(audit, f)}\n" for f in ordered)


def _command(audit: Audit, finding: Finding) -> str:
    place = place_of(audit.run, finding)
    level = LEVELS[finding.severity] if finding.tag != "OK-doc" else "notice"
    title = f"{finding.variant} {finding.id} {finding.tag} {finding.severity}"
    where = f"file={_property(place.path)},line={place.start},endLine={place.end},title={_property(title)}"
    words = shortened(one_line(f"{finding.title.rstrip('.')}: {finding.failure_mode}"), LONGEST)
    return f"::{level} {where}::{_data(words)}"


def _data(text: str) -> str:
    """What stands behind the command; its text ends at a line's end."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(one_line(text)).replace(":", "%3A").replace(",", "%2C")
