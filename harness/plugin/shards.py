"""`--shard I/N`: one machine's part of the claims. Every machine finds the same parts, from the claims' ids alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass


class BadShard(Exception):
    """The option's value cannot be used; the text is one sentence."""


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (from 1) of ``count``."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def part(self, ids: Sequence[str]) -> list[str]:
        """This shard's ids, in the order given; the parts are disjoint, together all, and differ by one at most.

        By hash, so that neighbours, which cost alike, are dealt out evenly.
        """
        own = set(sorted(ids, key=_digest)[self.index - 1 :: self.count])
        return [id_ for id_ in ids if id_ in own]


def _digest(id_: str) -> str:
    return hashlib.sha256(id_.encode()).hexdigest()


def parse(given: str | None) -> Shard | None:
    """The shard that ``--shard`` names; None for the whole, which 1/1 is too. Raises BadShard."""
    if given is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", given)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise BadShard(f"--shard {given!r}: expected I/N with 1 ≤ I ≤ N, such as 1/3")
    return Shard(index, count) if count > 1 else None


def part_of(shard: Shard | None, ids: Sequence[str]) -> list[str]:
    """The ids that this run is to ask. Raises BadShard where a shard would be empty."""
    if shard is None:
        return list(ids)
    if shard.count > len(ids):
        raise BadShard(f"--shard {shard}: there are only {len(ids)} claims, so at most as many shards")
    return shard.part(ids)
