"""`adapter-conformance COMMAND`: every command of the audit under one name. What it writes, its --help says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from adapter_conformance import forwarded, house

Run = Callable[[Sequence[str]], int]


def _audit(arguments: Sequence[str]) -> int:
    from adapter_conformance.audit import main as run

    return run(arguments)


def _new_subject(arguments: Sequence[str]) -> int:
    from adapter_conformance.new_subject import main as run

    return run(arguments)


def _ci(arguments: Sequence[str]) -> int:
    from adapter_conformance.shown import main as run

    return run(arguments)


OWN: Mapping[str, tuple[Run, str]] = {
    "audit": (_audit, "audit a subject; writes docs/audit/variants_review_v2.md and docs/audit/audit.json"),
    "new-subject": (
        _new_subject,
        "start a subject file; writes it, its deviations and a CI workflow",
    ),
    "ci": (_ci, "what CI shows of an audit.json; writes --summary, --sarif, --badges"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. 4: there is no such command, or it cannot be run here."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 4
    name, rest = given[0], given[1:]
    if name == "--version":
        return _version()
    try:
        if name in OWN:
            return OWN[name][0](rest)
        if name in forwarded.COMMANDS:
            return forwarded.run(name, rest)
    except house.Occupied as error:
        print(f"adapter-conformance: {error}", file=sys.stderr)
        return 4
    known = ", ".join([*OWN, *forwarded.COMMANDS])
    print(f"adapter-conformance: there is no command {name!r}; expected one of {known}", file=sys.stderr)
    return 4


def usage() -> str:
    """The commands, each with a line on what it does and writes."""
    lines = ["usage: adapter-conformance COMMAND [--help] ...", ""]
    listed = {name: words for name, (_, words) in OWN.items()}
    listed |= {name: command.words for name, command in forwarded.COMMANDS.items()}
    return "\n".join([*lines, *(f"  {name:<13} {words}" for name, words in listed.items())])


def _version() -> int:
    house.enter()
    from reports.version import TOOL, VERSION

    print(f"{TOOL} {VERSION}")
    return 0
