"""Against whom a finding stands: which references agree with the subject, which do not, which were not asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reports.model import Claim, OracleInfo, Witness

Ids = tuple[str, ...]
DIFFERS = ("fail", "error", "declared")


def standing(lead: Claim, claims: Iterable[Claim], oracles: Sequence[OracleInfo]) -> tuple[Ids, Ids, Ids]:
    """(agree, differ, not asked), ids in the run's order of oracles: on the failing case itself where they were asked
    about it, else on the question of ``lead``.

    What could not be told, or does not arise against an oracle, counts as not asked.
    """
    told = {c.oracle: c.outcome for c in claims if c.question == lead.question}
    there = [o.id for o in oracles if o.variant in (None, lead.variant)]
    asked = dict.fromkeys([*there, *told])
    if is_asked_of_all(lead.witness):
        agree = set(lead.witness.agree)  # type: ignore[union-attr]
        differ = {*lead.witness.differ, lead.oracle} - agree  # type: ignore[union-attr]
    else:
        agree = {o for o in asked if told.get(o) == "pass"}
        differ = {o for o in asked if told.get(o) in DIFFERS}
    asked |= dict.fromkeys(sorted(agree | differ))
    return (
        tuple(o for o in asked if o in agree),
        tuple(o for o in asked if o in differ),
        tuple(o for o in asked if o not in agree | differ),
    )


def is_asked_of_all(witness: Witness | None) -> bool:
    """Whether the references were asked about that very case."""
    return witness is not None and bool(witness.agree or witness.differ or witness.not_asked)
