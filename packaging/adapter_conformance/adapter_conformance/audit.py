"""`adapter-conformance audit`: pytest over the audit's questions, from the folder where the user stands."""

from __future__ import annotations

import importlib.util
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from adapter_conformance import after, house

REVIEW = Path("docs/audit/variants_review_v2.md")
AUDIT_JSON = Path("docs/audit/audit.json")
SETTINGS = Path(__file__).with_name("pytest.ini")
USAGE = 4
HELP = f"""Audit a subject, and write the review to {REVIEW} and the result to {AUDIT_JSON}, both below
the folder you stand in. Exit 0: every applicable claim is verified or declared; 1: one is not, or none could be; 3: the
audit itself failed somewhere; 4: the command line cannot be used.

All of pytest's options work (-k, -x, -n, --junitxml), and the audit's own:
  --subject REF          path/to/file.py:Class, package.module:Class, or the name of one that is shipped
  --subject-python PATH  run the subject's file in this interpreter; --offline: set up nothing from the network
  --variant, --oracle    narrow, comma-separated
  --audit-profile NAME   quick, default or deep: 4, 12 or 200 cases per check
  --report[=PATH]        another place for the review; - is stdout
  --audit-json PATH, --sarif PATH, --html PATH, --prior PATH, --deviations PATH, --shard I/N
A claim that a review names is asked alone, and nothing is written, with the line that the review prints:
  adapter-conformance audit 'harness/test_forward.py::test_random_parameters[lora-peft]' --subject ..."""


def main(arguments: Sequence[str]) -> int:
    """Run the audit in this process; its exit code."""
    options, rest = parser().parse_known_args(list(arguments))
    if _needs_subject(rest):
        print(
            "adapter-conformance audit: --subject is missing, expected path/to/file.py:Class", file=sys.stderr
        )
        return USAGE
    house.enter()
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(
            here
        )  # last: a package.module:Attr that lies here, and nothing that hides the audit's own
    try:
        before = after.baseline(options)
    except after.Refused as error:
        print(f"adapter-conformance audit: {error}", file=sys.stderr)
        return USAGE
    import pytest

    status = int(pytest.main(command_line(rest)))
    if status == USAGE or not after.is_asked(options):
        return status
    return after.finish(options, _result(rest), before, status)


def parser() -> ArgumentParser:
    """The options that pytest does not know."""
    made = ArgumentParser(
        prog="adapter-conformance audit", description=HELP, allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter, usage="adapter-conformance audit --subject REF [options]",
    )  # fmt: skip
    after.add_options(made)
    return made


def _result(rest: Sequence[str]) -> Path:
    """Where this run's audit.json is."""
    asked = ArgumentParser(add_help=False, allow_abbrev=False)
    asked.add_argument("--audit-json", type=Path, default=AUDIT_JSON)
    return Path(asked.parse_known_args(list(rest))[0].audit_json)


def command_line(rest: Sequence[str]) -> list[str]:
    """pytest's own command line: the audit's plugin and settings, the user's folder as the root of all paths."""
    claims = [a for a in rest if _is_claim(a)]
    others = [a for a in rest if not _is_claim(a)]
    settings = ["-p", "adapter_conformance.plugin", "-c", str(SETTINGS), "--rootdir", str(Path.cwd())]
    asked = [str(house.HOUSE / a) for a in claims] or [str(house.HOUSE / "harness")]
    return [*settings, *asked, *others, *([] if claims else _outputs(others))]


def _is_claim(argument: str) -> bool:
    return argument.startswith("harness/test_") and (house.HOUSE / argument.partition("::")[0]).is_file()


def _outputs(rest: Sequence[str]) -> list[str]:
    """Where the results go if the user does not say."""
    missing = [] if _given(rest, "--report") else [f"--report={REVIEW.absolute()}"]
    return [*missing, *([] if _given(rest, "--audit-json") else [f"--audit-json={AUDIT_JSON}"])]


def _given(rest: Sequence[str], option: str) -> bool:
    return any(a.partition("=")[0] == option for a in rest)


def _needs_subject(rest: Sequence[str]) -> bool:
    """The checkout's default subject is a library of its own, which the audit does not bring along."""
    return not _given(rest, "--subject") and importlib.util.find_spec("lora_lite") is None
