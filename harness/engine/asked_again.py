"""The command that asks a claim again, as a reader of the review can paste it: in the checkout, or installed."""

from __future__ import annotations

from pathlib import Path

# In the wheel, the audit's folders lie below this name, and pytest is reached through the installed command.
INSTALLED = "_house"


def is_installed(place: Path = Path(__file__)) -> bool:
    """Whether this is the wheel's copy of the audit: nothing is written beside it."""
    return place.resolve().parents[2].name == INSTALLED


def command(place: Path = Path(__file__)) -> str:
    """``pytest``, which finds `harness/` in the checkout; ``adapter-conformance audit`` where that is not there."""
    return "adapter-conformance audit" if is_installed(place) else "pytest"
