"""The audit on one page of a CI job: the verdicts, what to fix first, the findings; below what a host takes."""

from __future__ import annotations

from collections.abc import Iterator

from reports.model import Audit, Finding
from reports.places import place_of
from reports.render.fixes import Fix, next_fixes
from reports.text import code, inline, plain

LARGEST = 900_000  # bytes; a job's summary may have 1 MiB, and others write to it, too


def render(audit: Audit) -> str:
    """Markdown of at most LARGEST bytes; what does not fit is counted."""
    titles = {v.id: v.title for v in audit.run.variants}
    names = {v: titles.get(v, v) for v in audit.verdicts}
    subject = f"{audit.run.subject.name} {audit.run.subject.version}"
    head = [f"## Adapter conformance: {plain(subject)}", "", *_table(audit, names)]
    fixes = [_fix(f) for f in next_fixes(audit, names)]
    lines = [*head, *(["", "**What to fix next**", "", *fixes] if fixes else [])]
    return "\n".join([*lines, *_findings(audit, names, LARGEST - _size(lines))]) + "\n"


def _table(audit: Audit, names: dict[str, str]) -> Iterator[str]:
    yield "| variant | verdict | verified | why |"
    yield "|---|---|---|---|"
    for variant, v in audit.verdicts.items():
        count = f"{v.verified} of {v.applicable}"
        yield f"| {plain(names[variant])} | **{v.verdict}** | {count} | {inline(v.reason)} |"


def _fix(fix: Fix) -> str:
    where = "".join(f" {code(c.label)}" for c in fix.places)
    return f"- **{plain(fix.who)}** ({fix.severity}): {inline(fix.what)}. {inline(fix.why)}.{where}"


def _findings(audit: Audit, names: dict[str, str], room: int) -> list[str]:
    found = [f for f in audit.findings if f.severity != "none"]
    lines = ["", f"<details><summary>{len(found)} findings</summary>", ""] if found else []
    room -= 200
    for n, finding in enumerate(found):
        line = _finding(audit, finding, names)
        room -= _size([line])
        if room < 0:
            lines.append(f"- and {len(found) - n} more: see the review")
            break
        lines.append(line)
    return [*lines, "", "</details>"] if found else lines


def _finding(audit: Audit, finding: Finding, names: dict[str, str]) -> str:
    place = place_of(audit.run, finding)
    where = code(f"{place.path}:L{place.start}")
    who = plain(names.get(finding.variant, finding.variant))
    return f"- {who} {finding.id} [{finding.tag}], {finding.severity}, {where}: {inline(finding.title)}"


def _size(lines: list[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)
