"""Where the audit itself is (harness, oracles, refs, reports), and how a process takes it up.

Nothing here happens on import: those four names are on no import path until an audit begins.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Beside this file in a wheel; the checkout's root where this package is used unbuilt.
HOUSE = HERE / "_house" if (HERE / "_house").is_dir() else HERE.parents[2]
ROOMS = ("harness", "oracles", "refs", "reports")
INTERFACE = ("implementation", "array_implementation")


class Occupied(Exception):
    """One of the audit's names is somebody else's in this process; the text is one sentence."""


def enter() -> None:
    """Make `harness` and its neighbours importable in this process, ahead of the user's own. Raises Occupied."""
    for name in ROOMS:
        module = sys.modules.get(name)
        if module is not None and not _ours(module):
            raise Occupied(
                f"a module named {name} is loaded from {getattr(module, '__file__', 'elsewhere')}, and the audit has "
                f"one of that name: run `adapter-conformance audit`, which has a process of its own"
            )
    if str(HOUSE) not in sys.path:
        sys.path.insert(0, str(HOUSE))
    for (
        name
    ) in INTERFACE:  # a subject that is there already was made of these classes: the audit has to know them
        if (module := sys.modules.get(f"adapter_conformance.{name}")) is not None:
            sys.modules.setdefault(f"oracles.{name}", module)


def _ours(module: object) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(HOUSE)
