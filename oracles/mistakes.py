"""The catalogue of known wrong implementations, which stand in the variants' files: found, composed, made to run.

It serves three times: as broken subjects that the audit must catch, as the diagnosis of a failing claim (the
mistake whose values equal the subject's is named), and as the failure-mode text of the finding. Entries with
``agrees_with`` are no mistakes but a reference's other form; a subject that has it differs, and is not wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from oracles.equation import Equation
from oracles.variants import VARIANTS, Form
from oracles.variants.record import Mistake

__all__ = ["Mistake", "catalogue", "compose", "mistake", "mistaken", "mistakes_of"]


def mistakes_of(variant: str) -> Sequence[Mistake]:
    """The catalogue's entries for a variant, in the order in which a diagnosis tries them."""
    return VARIANTS[variant].mistakes


def catalogue() -> list[Mistake]:
    """All entries."""
    return [entry for variant in VARIANTS for entry in mistakes_of(variant)]


def mistake(id_: str) -> Mistake:
    """One entry. Raises KeyError naming what there is."""
    found = {entry.id: entry for entry in catalogue()}
    if id_ not in found:
        raise KeyError(f"no mistake {id_!r}; there are {', '.join(found)}")
    return found[id_]


def compose(mistakes: Sequence[Mistake]) -> Form:
    """The form of one variant with all of these in it; of two that replace the same part the later one stands.

    Raises ValueError for none, and for mistakes of several variants.
    """
    variants = {m.variant for m in mistakes}
    if len(variants) != 1:
        raise ValueError(f"expected mistakes of one variant, got those of {sorted(variants) or 'none'}")
    form = VARIANTS[variants.pop()].form
    for each in mistakes:
        form = each.apply(form)
    return form


def mistaken(*ids: str, name: str | None = None) -> Equation:
    """An implementation with these mistakes in it; those of one variant are composed. Raises KeyError."""
    entries = [mistake(id_) for id_ in ids]
    variants = dict.fromkeys(entry.variant for entry in entries)
    forms = {v: compose([entry for entry in entries if entry.variant == v]) for v in variants}
    return Equation(forms, name or " + ".join(ids), kind="mistake")
