"""Against whom a finding stands: which references agree with the subject, which do not, which were not asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reports.model import Claim, OracleInfo

Ids = tuple[str, ...]
DIFFERS = ("fail", "error", "declared")


def standing(lead: Claim, claims: Iterable[Claim], oracles: Sequence[OracleInfo]) -> tuple[Ids, Ids, Ids]:
    """(agree, differ, not asked) on the question of ``lead``, ids in the run's order of oracles.

    What could not be told, or does not arise against an oracle, counts as not asked.
    """
    told = {c.oracle: c.outcome for c in claims if c.question == lead.question}
    there = [o.id for o in oracles if o.variant in (None, lead.variant)]
    asked = dict.fromkeys([*there, *told])
    agree = tuple(o for o in asked if told.get(o) == "pass")
    differ = tuple(o for o in asked if told.get(o) in DIFFERS)
    return agree, differ, tuple(o for o in asked if o not in (*agree, *differ))
