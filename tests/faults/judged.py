"""What the audits of a report's two releases say: recall, and false alarms after."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.faults.audits import Found, Result, Run
from tests.faults.table import Fault, Outside, run_of

Fate = Literal["named", "found", "told", "missed", "error"]
WORDS = {
    "named": "found, with the right name",
    "found": "found, under another name",
    "told": "told, but not as a bug",
    "missed": "missed",
    "error": "could not be audited",
}
SCALE = (
    "language models that are given paper and code find 46.7 % of real discrepancies "
    "(SciCoQA, arXiv 2601.12910; another task)"
)


@dataclass(frozen=True)
class Judged:
    """One report: its fate in the release that has the fault, and the alarms in the one that has not."""

    fault: Fault
    fate: Fate
    by: str  # the title of the finding, or why there is none
    alarms: tuple[str, ...]  # titles of bugs in the good release that are of the same cause


def judged(fault: Fault, results: Mapping[Run, Result]) -> Judged:
    """Compare the two audits.

    A finding under the right name counts where the good release has none of that name; one under another name where
    one of its claims holds, or is not asked, in the good release.
    """
    bad, good = results[run_of(fault, fault.bad, results)], results[run_of(fault, fault.good, results)]
    if bad.error or good.error:
        return Judged(fault, "error", str(bad.error or good.error), ())
    alarms, named = _named(fault, good), _named(fault, bad)
    titles = () if fault.shared else tuple(f.title for f in alarms)
    if named and (fault.shared or not alarms):
        return Judged(fault, "named", named[0].title, titles)
    own = [f for f in bad.findings if _concerns(fault, f) and any(_is_new(claim, good) for claim in f.asked)]
    if bugs := [f for f in own if f.tag == "BUG"]:
        return Judged(fault, "found", bugs[0].title, titles)
    if told := [f for f in own if _is_named(fault, f)]:
        return Judged(fault, "told", f"{told[0].tag}: {told[0].title}", titles)
    why = f"also in {fault.good}: {named[0].title}" if named else _silence(fault, bad)
    return Judged(fault, "missed", why, titles)


def _named(fault: Fault, result: Result) -> list[Found]:
    """The bugs that the report is about, by their name."""
    return [f for f in result.findings if f.tag == "BUG" and _is_named(fault, f) and _concerns(fault, f)]


def _is_named(fault: Fault, finding: Found) -> bool:
    return re.search(fault.right, finding.text, re.IGNORECASE | re.DOTALL) is not None


def _concerns(fault: Fault, finding: Found) -> bool:
    return any(claim.startswith(fault.checks) for claim in finding.asked)


def _is_new(claim: str, good: Result) -> bool:
    return good.outcomes.get(claim) in ("pass", "declared", "not_applicable")


def _silence(fault: Fault, bad: Result) -> str:
    """Why nothing was said: what was asked held, or was not asked."""
    asked = {c: o for c, o in bad.outcomes.items() if c.startswith(fault.checks)}
    held = sum(o == "pass" for o in asked.values())
    not_asked = [c for c, o in asked.items() if o == "not_applicable"]
    return f"{held} of {len(asked)} claims hold" + (
        f", not asked: {', '.join(not_asked[:3])}" if not_asked else ""
    )


def recall(found: Sequence[Judged]) -> tuple[int, int, int]:
    """(found with the right name, found, all that could be audited)."""
    counts = Counter(j.fate for j in found)
    return counts["named"], counts["named"] + counts["found"], len(found) - counts["error"]


def report(found: Sequence[Judged], outside: Sequence[Outside]) -> str:
    """The table, the totals by kind, what was missed and why, and what is outside the audit's scope."""
    lines = ["| report | variant | with it | without | before | after |", "|---|---|---|---|---|---|"]
    lines += [_row(j) for j in found]
    lines += ["", "| kind | reports | right name | found | missed |", "|---|--:|--:|--:|--:|"]
    lines += [_kind(kind, found) for kind in dict.fromkeys(j.fault.kind for j in found)]
    named, bugs, whole = recall(found)
    alarms = [j for j in found if j.alarms]
    lines += [
        "",
        f"{whole} reports in {len({j.fault.library for j in found if j.fate != 'error'})} libraries: "
        f"{bugs} found ({_percent(bugs, whole)}), "
        f"{named} with the right name ({_percent(named, whole)}); false alarms after: {len(alarms)}.",
        f"For scale: {SCALE}.",
    ]
    lines += _list(
        "Missed or not told as a bug", [f"{_link(j)}: {j.by}" for j in found if j.fate in ("missed", "told")]
    )
    lines += _list("Found under another name", [f"{_link(j)}: {j.by}" for j in found if j.fate == "found"])
    lines += _list("Could not be audited", [f"{_link(j)}: {j.by}" for j in found if j.fate == "error"])
    lines += _list(
        "False alarms after", [f"{_link(j)}, {j.fault.good}: {', '.join(j.alarms)}" for j in alarms]
    )
    lines += _list(
        "The same name after, for another fault",
        [f"{_link(j)}: {j.fault.shared}" for j in found if j.fault.shared],
    )
    lines += _list("Outside the audit's scope", [f"<{o.link}>: {o.because}" for o in outside])
    return "\n".join(lines) + "\n"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def _link(j: Judged) -> str:
    return f"[{j.fault.id}]({j.fault.link})"


def _row(j: Judged) -> str:
    f = j.fault
    after = "; ".join(j.alarms) or "quiet"
    what = f"{WORDS[j.fate]}: {j.by}"
    cells = (f"{_link(j)}: {f.said}", f.variant, f.bad, f.good, what, "-" if j.fate == "error" else after)
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def _kind(kind: str, found: Sequence[Judged]) -> str:
    own = [j for j in found if j.fault.kind == kind]
    named, bugs, whole = recall(own)
    return f"| {kind} | {whole} | {named} | {bugs} | {whole - bugs} |"


def _list(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"{title}:", "", *(f"- {line}" for line in lines)] if lines else []
