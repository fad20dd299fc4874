"""Which release changed the answer to a claim: a search by halves between one that holds it and one that does not."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

from harness.cases.profiles import PROFILES, Profile
from harness.engine.session import claims_for, load_references
from harness.subjects import releases
from harness.subjects.resolve import BadSubject, Place, resolve

CLAIM = re.compile(
    r"(?P<check>[a-z0-9_]+\.[a-z0-9_]+)\[(?P<variant>[a-z0-9]+)(?:-(?P<mode>\w+))?-(?P<oracle>\w+)\]"
)
Judge = Callable[[str], str]  # a release -> its claim's outcome


class CannotSearch(Exception):
    """The search cannot be made; the text is one sentence."""


def between(releases: Sequence[str], good: str, bad: str) -> list[str]:
    """The releases from ``good`` to ``bad``, both included, in order. Raises CannotSearch."""
    for release in (good, bad):
        if release not in releases:
            raise CannotSearch(f"{release} is no release; there are {', '.join(releases)}")
    ordered = sorted(releases, key=_numbers)
    first, last = ordered.index(good), ordered.index(bad)
    return ordered[first : last + 1] if first < last else ordered[last : first + 1][::-1]


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", release))


def holds(outcome: str, release: str) -> bool | None:
    """Whether a claim's outcome is the good one; None where the release does not offer what is asked."""
    if outcome == "not_applicable":
        return None
    if outcome not in ("pass", "fail", "error", "unverified", "declared"):
        raise CannotSearch(f"{release} answered {outcome!r}")
    return outcome in ("pass", "declared")


def search(chain: list[str], judge: Judge, say: Callable[[str], None]) -> tuple[str, str]:
    """(the last release that holds the claim, the first that does not) along ``chain``. Raises CannotSearch.

    A release that does not offer what is asked is passed over.
    """
    known: dict[str, bool | None] = {}

    def is_good(release: str) -> bool | None:
        if release not in known:
            outcome = judge(release)
            say(f"{release}: {outcome}")
            known[release] = holds(outcome, release)
        return known[release]

    for release, wanted in ((chain[0], True), (chain[-1], False)):
        if is_good(release) is not wanted:
            raise CannotSearch(f"{release} was given as {'good' if wanted else 'bad'}, and it is not")
    low, high = 0, len(chain) - 1
    while high - low > 1:
        inner = sorted(range(low + 1, high), key=lambda i: abs(2 * i - low - high))
        middle = next((i for i in inner if is_good(chain[i]) is not None), None)
        if middle is None:
            break
        low, high = (middle, high) if is_good(chain[middle]) else (low, middle)
    return chain[low], chain[high]


def releases_of(package: str) -> list[str]:
    """The final releases of a package on the registry, as pip lists them. Raises CannotSearch."""
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    listed = re.search(r"^Available versions: (.*)$", found.stdout, re.MULTILINE)
    if found.returncode or listed is None:
        raise CannotSearch(f"pip cannot list the releases of {package}: {found.stderr.strip()[:300]}")
    return [v.strip() for v in listed[1].split(",") if re.fullmatch(r"\d+(\.\d+)+", v.strip())]


def judged(claim: str, profile: str, offline: bool, option: str = "") -> Judge:
    """Asks ``claim`` of a PEFT release in its own environment; ``option``: "+lora_bias", or "".

    Raises CannotSearch for what is no claim.
    """
    parts = CLAIM.fullmatch(claim)
    if parts is None:
        raise CannotSearch(
            f"{claim!r} is no claim; expected check[variant-oracle], as merge.weight[ia3-paper]"
        )
    place = Place(offline=offline, say=lambda line: print(line, file=sys.stderr, flush=True))

    def judge(release: str) -> str:
        try:
            subject = resolve(f"peft@{release}{option}", place).implementation
        except BadSubject as error:
            if "its variants are" in str(error):
                return "not_applicable"
            raise CannotSearch(str(error)) from error
        if parts["variant"] not in subject.variants:
            return "not_applicable"
        asked = claims_for(
            subject,
            variants=[parts["variant"]],
            oracles=[parts["oracle"]],
            checks=lambda check: check.id == parts["check"],
            profile=Profile(profile, PROFILES[profile], 0, caps=profile == "quick"),
        )
        found = [c for c in asked if c.id == claim]
        if not found:
            raise CannotSearch(f"{claim!r} is asked of no subject: there is no such check, variant or oracle")
        return str(found[0].outcome)

    return judge


def main(arguments: Sequence[str]) -> int:
    """`python -m harness bisect --subject peft --good A --bad B CLAIM`; exit 4 where the search cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m harness bisect", description=main.__doc__)
    subjects = ["peft", *(f"peft+{option}" for option in releases.OPTIONS if option)]
    parser.add_argument("--subject", choices=subjects, default="peft")
    parser.add_argument("--good", required=True, help="a release that holds the claim")
    parser.add_argument("--bad", required=True, help="one that does not, before or after it")
    parser.add_argument("--audit-profile", choices=sorted(PROFILES), default="quick")
    parser.add_argument("--offline", action="store_true", help="use environments that are there already")
    parser.add_argument("claim", help="check[variant-oracle], as the review names it")
    given = parser.parse_args(arguments)
    try:
        package, plus, option = given.subject.partition("+")
        judge = judged(given.claim, given.audit_profile, given.offline, plus + option)
        load_references()
        chain = between(releases_of(package), given.good, given.bad)
        last, first = search(chain, judge, lambda line: print(line, flush=True))
    except CannotSearch as error:
        print(f"bisect: {error}", file=sys.stderr)
        return 4
    print(f"{given.claim}: {last} holds it, {first} does not")
    return 0
