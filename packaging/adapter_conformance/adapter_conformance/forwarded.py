"""The commands that the audit's folders have themselves, under this command's name and with the user's own paths."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO, cast

from adapter_conformance import house

PRIOR = "docs/audit/variants_review.toml"
PAGE = "docs/audit/probe.html"


@dataclass(frozen=True)
class Forwarded:
    """``module``'s ``main`` with ``before`` in front; ``default``: an option for where the user gives none."""

    module: str
    before: tuple[str, ...]
    spoken: str  # what the module calls itself in its usage
    words: str
    default: tuple[str, str] | None = None
    also: tuple[str, ...] = ()  # other spellings of the default's option


REPORTS, CHECKPOINTS = "python -m reports", "python -m harness.checkpoints"
COMMANDS = {
    "diff": Forwarded(
        "reports.__main__", ("diff",), REPORTS, "what changed between two audit.json; writes nothing"
    ),
    "accept": Forwarded(
        "reports.__main__", ("accept",), REPORTS, f"make an audit the prior review; writes {PRIOR}",
        ("-o", PRIOR), ("--output",),
    ),
    "merge": Forwarded(
        "reports.__main__", ("merge",), REPORTS, "put shards together; writes -o, and --report if asked"
    ),
    "render": Forwarded(
        "reports.__main__", ("render",), REPORTS, "an audit.json as md, html, sarif; writes -o or to stdout"
    ),
    "refs": Forwarded(
        "refs.__main__", (), "python -m refs", "the references; `refs sync` writes the authors' files into the cache"
    ),
    "bisect": Forwarded(
        "harness.bisect", (), "python -m harness bisect",
        "which PEFT release changed a claim; writes environments into the cache",
    ),
    "probe": Forwarded(
        "harness.probe.__main__", (), "python -m harness.probe", f"a subject on a pretrained model; writes {PAGE}",
        ("--html", PAGE),
    ),
    "verify-merge": Forwarded(
        "harness.checkpoints.__main__", ("verify-merge",), CHECKPOINTS,
        "is this merged checkpoint the base with this adapter; writes nothing",
    ),
    "inspect": Forwarded(
        "harness.checkpoints.__main__", ("inspect",), CHECKPOINTS, "what an adapter file holds; writes nothing"
    ),
    "vectors": Forwarded(
        "harness.checkpoints.__main__", ("vectors",), CHECKPOINTS,
        "checkpoint vectors: run a program on them, or export them; `export` writes the folder given",
    ),
}  # fmt: skip


def run(name: str, arguments: Sequence[str]) -> int:
    """The command's own exit code."""
    house.enter()
    command = COMMANDS[name]
    main = importlib.import_module(command.module).main
    given = [*command.before, *arguments]
    if {"-h", "--help"} & set(arguments):
        return _help(name, command, main, given)
    with _renamed(command.spoken, _our_name(name)):
        return int(main([*given, *_default(command, arguments)]))


def _our_name(name: str) -> str:
    return "adapter-conformance" if COMMANDS[name].before else f"adapter-conformance {name}"


def _default(command: Forwarded, arguments: Sequence[str]) -> tuple[str, ...]:
    if command.default is None:
        return ()
    options = (command.default[0], *command.also)
    given = any(a.partition("=")[0] in options for a in arguments)
    return () if given else command.default


def _help(name: str, command: Forwarded, main: Any, given: Sequence[str]) -> int:
    """The module's own help under this command's name, and what it writes."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(list(given))
    print(said.getvalue().replace(command.spoken, _our_name(name)).rstrip())
    print(f"\n{command.words[:1].upper()}{command.words[1:]}.")
    return 0


class _Renaming:
    """A stream that says one name for another."""

    def __init__(self, stream: TextIO, old: str, new: str) -> None:
        self._stream, self._old, self._new = stream, old, new

    def write(self, text: str) -> int:
        return self._stream.write(text.replace(self._old, self._new))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _renamed(old: str, new: str) -> Iterator[None]:
    """Usage and errors under this command's name."""
    with contextlib.redirect_stderr(cast(TextIO, _Renaming(sys.stderr, old, new))):
        yield
