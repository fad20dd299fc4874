"""What people found when they read a library's source for what the audit calls a bug: `docs/survey/checked/`."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.model import Audit, Finding
from reports.text import listed

VERDICTS = ("true", "true, misnamed", "false")
PLACE = re.compile(r"[^\s:]+:\d+(-\d+)?")
DRAFT = ("issue_draft", "script", "fix", "searched")


class BadChecked(Exception):
    """A file of checked findings cannot be used; the text is one sentence."""


@dataclass(frozen=True)
class Checked:
    """One finding, read by hand. The fields are those of the file, which docs/survey/README.md describes."""

    library: str
    version: str
    variants: tuple[str, ...]
    read: tuple[str, ...]
    verdict: str
    note: str
    checks: tuple[str, ...] = ()
    title: str = ""
    issue_draft: str = ""
    script: str = ""
    fix: str = ""
    searched: str = ""
    reported: str = ""
    beside: bool = False  # no claim asks it: it was seen while reading

    @property
    def heading(self) -> str:
        """The title of its issue; without a draft, what it is about."""
        return self.issue_draft.strip().partition("\n")[0] or self.title or listed(self.checks)

    @property
    def text(self) -> str:
        """The issue without its title."""
        return self.issue_draft.strip().partition("\n")[2].strip()

    def is_about(self, finding: Finding, checks: frozenset[str]) -> bool:
        """Whether it speaks of a finding, which rests on these checks."""
        if self.beside or finding.variant not in self.variants or not set(self.checks) <= checks:
            return False
        return not self.title or _words(self.title) == _words(finding.title)


@dataclass(frozen=True)
class Standing:
    """How a finding stands: the entry about it, and in words whether and how it was checked."""

    entry: Checked | None
    words: str

    @property
    def is_checked(self) -> bool:
        return self.entry is not None


def load(folder: Path) -> dict[str, list[Checked]]:
    """library -> its entries, in the order of the file. Raises BadChecked."""
    return {file.stem: list(_entries(file)) for file in sorted(folder.glob("*.toml"))}


def _entries(file: Path) -> Iterator[Checked]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadChecked(f"{file.name} cannot be read: {error}") from error
    if set(document) - {"checked"} or not isinstance(document.get("checked", []), list):
        raise BadChecked(
            f"{file.name} has {listed(sorted(document))}, expected [[checked]] tables and no more"
        )
    for place, table in enumerate(document.get("checked", []), 1):
        yield _entry(f"{file.name}, entry {place}", file.stem, table)


def _entry(where: str, library: str, table: Mapping[str, Any]) -> Checked:
    fields = {f.name: f for f in dataclasses.fields(Checked) if f.name != "library"}
    if unknown := sorted(set(table) - set(fields)):
        raise BadChecked(f"{where} has {listed(unknown)}, expected some of {listed(fields)}")
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
    if lacking := [name for name in needed if not table.get(name)]:
        raise BadChecked(f"{where} lacks {listed(lacking)}")
    lists = ("variants", "read", "checks")
    if not isinstance(table.get("beside", False), bool):
        raise BadChecked(f"{where}: beside is {table['beside']!r}, expected true or false")
    for name, value in ((n, v) for n, v in table.items() if n != "beside"):
        _check_kind(where, name, value, name in lists)
    values: dict[str, Any] = {n: tuple(v) if n in lists else v for n, v in table.items()}
    made = Checked(library, **values)
    _check(where, made)
    return made


def _check_kind(where: str, name: str, value: Any, is_list: bool) -> None:
    items = value if is_list and isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items) or (is_list and not isinstance(value, list)):
        raise BadChecked(
            f"{where}: {name} is {value!r}, expected {'a list of strings' if is_list else 'a string'}"
        )


def _check(where: str, entry: Checked) -> None:
    if entry.verdict not in VERDICTS:
        raise BadChecked(
            f"{where}: verdict is {entry.verdict!r}, expected one of {listed(map(repr, VERDICTS))}"
        )
    if not entry.checks and not entry.title and not entry.beside:
        raise BadChecked(f"{where} says neither which checks nor which title it is about")
    if wrong := [place for place in entry.read if not PLACE.fullmatch(place)]:
        raise BadChecked(f"{where}: read has {wrong[0]!r}, expected file:line or file:line-line")
    given = [name for name in DRAFT if getattr(entry, name)]
    if given and len(given) < len(DRAFT):
        raise BadChecked(f"{where} has {listed(given)} without {listed(n for n in DRAFT if n not in given)}")
    if entry.beside and not given:
        raise BadChecked(f"{where} was seen beside the claims and has no draft")
    if given and entry.verdict == "false":
        raise BadChecked(f"{where} is false and has a draft for the maintainers")


def standing(audit: Audit, finding: Finding, entries: Iterable[Checked]) -> Standing:
    """How a finding of a library stands; an entry about another version of it counts as none."""
    about = [e for e in entries if e.is_about(finding, checks_of(audit, finding))]
    current = next((e for e in about if e.version == audit.run.subject.version), None)
    if current is not None:
        return Standing(current, f"checked by hand: {current.verdict}")
    older = (
        f" in {audit.run.subject.version}; in {about[0].version} it was {about[0].verdict}" if about else ""
    )
    return Standing(None, f"not checked{older}")


def checks_of(audit: Audit, finding: Finding) -> frozenset[str]:
    """The checks whose claims a finding rests on."""
    return frozenset(c.check for c in audit.run.claims if c.id in finding.claims)


def complaints(audit: Audit, library: str, entries: Sequence[Checked]) -> Iterator[str]:
    """What does not fit together, a sentence each: bugs unchecked, entries without a finding, false ones still told."""
    for finding in audit.findings:
        if finding.tag == "BUG" and not (found := standing(audit, finding, entries)).is_checked:
            yield f"{library}, {finding.variant} {finding.id} ({finding.title}): {found.words}"
    for entry in entries:
        for variant in entry.variants:
            yield from _complaint(audit, entry, variant)


def _complaint(audit: Audit, entry: Checked, variant: str) -> Iterator[str]:
    own = [f for f in audit.findings if f.variant == variant and entry.is_about(f, checks_of(audit, f))]
    what = f"{entry.library}, {variant}: the checked entry about {entry.title or listed(entry.checks)}"
    if entry.version != audit.run.subject.version:
        yield f"{what} is of version {entry.version}, and {audit.run.subject.version} was audited"
    elif entry.verdict == "false" and any(f.tag == "BUG" for f in own):
        yield f"{what} says that it is false, and the audit still tells it"
    elif entry.verdict != "false" and not own and not entry.beside:
        yield f"{what} matches no finding"


def _words(title: str) -> str:
    return " ".join(title.replace("`", "").split()).rstrip(".").lower()
