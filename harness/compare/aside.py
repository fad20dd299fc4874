"""What is said during one call, among all that is said while a claim is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.compare import ear


@contextmanager
def saying(who: str) -> Iterator[set[str]]:
    """Holds afterwards what ``who`` said aloud inside, though it has said so before; the claim hears it as ever."""
    said: set[str] = set()
    earlier = ear._heard.pop(who, {})
    try:
        yield said
    finally:
        now = ear._heard.pop(who, {})
        said.update(now)
        ear._heard[who] = {**earlier, **now}
