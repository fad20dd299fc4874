"""Profiles: how many examples a check gets. Apart from what asks them, so that options cost no slow import."""

from __future__ import annotations

from dataclasses import dataclass

PROFILES = {"quick": 4, "default": 12, "deep": 200}


@dataclass(frozen=True)
class Profile:
    """How many examples a check gets, and the seed everything follows from.

    ``caps``: checks of a fixed number, whole models most of them, get no more than half of that.
    """

    name: str
    examples: int
    seed: int
    caps: bool = False
