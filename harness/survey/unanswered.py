"""Which of the audit's questions told something: those that no library answers, and those that none fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from refs.vocabulary import ASPECTS
from reports.model import Audit, CheckInfo, Claim
from reports.order import rank

ANSWERED = ("pass", "fail", "declared", "error")
FAILED = ("fail", "error")
AT_HOME = {"peft", "lora_lite"}  # a reference itself, and this repository's own library
MANY = 5


@dataclass(frozen=True)
class Asked:
    """One check over all the libraries. ``why``: for what reason most of its claims have no answer."""

    check: str
    question: str
    answered: tuple[str, ...]
    failed: tuple[str, ...]
    why: str

    @property
    def who(self) -> str:
        """The libraries that answer, by name where they are few."""
        return ", ".join(self.answered) if len(self.answered) <= MANY else f"{len(self.answered)} libraries"


def asked(audits: Mapping[str, Audit], checks: Mapping[str, CheckInfo]) -> list[Asked]:
    """Every check, in the review's order of aspects, with the libraries that answer and that fail it."""
    of_check: dict[str, list[tuple[str, Claim]]] = {}
    for library, audit in audits.items():
        for claim in audit.run.claims:
            of_check.setdefault(claim.check, []).append((library, claim))
    found = [_asked(info, of_check.get(id_, [])) for id_, info in checks.items()]
    return sorted(found, key=lambda a: rank(a.check.partition(".")[0], ASPECTS))


def _asked(info: CheckInfo, claims: list[tuple[str, Claim]]) -> Asked:
    answered = _libraries(claims, ANSWERED)
    question = info.question.replace("``", "`")  # as in docstrings, told as in prose
    return Asked(info.id, question, answered, _libraries(claims, FAILED), _why(c for _, c in claims))


def _libraries(claims: Iterable[tuple[str, Claim]], outcomes: Iterable[str]) -> tuple[str, ...]:
    wanted = set(outcomes)
    return tuple(dict.fromkeys(library for library, claim in claims if claim.outcome in wanted))


def _why(claims: Iterable[Claim]) -> str:
    silent = Counter(_reason(c) for c in claims if c.outcome not in ANSWERED)
    return silent.most_common(1)[0][0] if silent else "asked of no library"


def _reason(claim: Claim) -> str:
    if claim.cause == "not_offered" and claim.detail:
        return f"`{claim.detail}` is not offered"
    return claim.reason or claim.outcome.replace("_", " ")


def dead(found: Iterable[Asked]) -> list[Asked]:
    """Those that no library answers."""
    return [a for a in found if not a.answered]


def at_home(found: Iterable[Asked]) -> list[Asked]:
    """Those that nobody answers but a reference itself, or this repository's own library."""
    return [a for a in found if a.answered and AT_HOME.issuperset(a.answered)]


def never_failed(found: Iterable[Asked]) -> list[Asked]:
    """Those that some library answers and none fails."""
    return [a for a in found if a.answered and not a.failed]
