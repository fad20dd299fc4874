"""Which catalogued mistake a layer of another kind has in it, where the subject's linear layer has none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.cases.kind_cases import WORDS, KindCase
from harness.compare.context import Context
from harness.compare.in_one_state import FAILURE, REMEDY
from harness.compare.kind_faults import agrees
from harness.compare.kinds import Kinds
from harness.compare.layer import BadAnswer, SubjectRaised
from harness.compare.offered import adapts_linear
from harness.compare.outcome import NoSlot, NotOffered, OtherLayout, OutsideDomain
from harness.compare.rounding import coarser, roundoff
from oracles.implementation import Unsupported
from oracles.mistakes import Mistake, compose, mistakes_of
from oracles.variants import paper
from reports.model import Diagnosis

# A layer far from its start, and the rows that it, or what it is merged into, answers to the case's x.
Ask = Callable[[KindCase], tuple[Kinds, Tensor]]

NO_ANSWER = (SubjectRaised, BadAnswer, NoSlot, Unsupported, NotOffered, OtherLayout, OutsideDomain)
BROKEN_FORM = (RuntimeError, KeyError, ValueError)  # it wants a tensor or a shape that is not there


def explain(context: Context, case: KindCase, ask: Ask, *, merged: bool = False) -> Diagnosis | None:
    """The one mistake whose outputs are given, on the failing case and at another rank and alpha.

    ``merged``: it is in what is merged, and not in what is computed.
    """
    entries = mistakes_of(case.spec.variant)
    candidates = [m for m in entries if "output" in m.speaks_of and not m.agrees_with]
    for each in (case, case.but(rank=4 if case.spec.rank == 2 else 2, alpha=5.5, seed=case.seed + 1)):
        candidates = _having(context, each, ask, candidates)
    return _named(candidates[0], case, merged, adapts_linear(context.subject)) if candidates else None


def _having(context: Context, case: KindCase, ask: Ask, candidates: list[Mistake]) -> list[Mistake]:
    """Those candidates whose rows are answered on this case, and that show there."""
    if not candidates:
        return []
    try:
        layer, rows = ask(case)
    except NO_ANSWER:
        return []
    return [m for m in candidates if _is_in(context, m, case, layer, rows)]


def _is_in(context: Context, mistake: Mistake, case: KindCase, layer: Kinds, rows: Tensor) -> bool:
    try:
        wrong = _rows(compose([mistake]).forward, case, layer)
    except BROKEN_FORM:
        return False
    right = _rows(context.forward, case, layer)
    scale = float(rows.norm()) + float(case.rows(case.input).norm() * case.weight.double().norm())
    unit = roundoff(coarser(case.torch_dtype)) * scale
    return agrees(rows, wrong, unit) and not agrees(right, wrong, unit)


def _rows(forward: paper.Forward, case: KindCase, layer: Kinds) -> Tensor:
    """What some form of the equation answers, as rows."""
    b = case.bias_vector
    with torch.no_grad():
        weight, bias = paper.effective(
            forward, case.weight.double(), None if b is None else b.double(), layer.parameters(), case.spec
        )
    return case.rows(case.input) @ weight.mT * case.embed_scale + bias


def _named(mistake: Mistake, case: KindCase, merged: bool, beside_linear: bool) -> Diagnosis:
    on = WORDS[case.kind]
    if merged:
        summary = f"in what {on} is merged into, and not in what it computes, {mistake.summary}"
        return Diagnosis(f"layers.merge.{case.kind}.{mistake.id}", summary, FAILURE, remedy=REMEDY)
    summary = f"on {on}, {'and not on a linear layer, ' if beside_linear else ''}{mistake.summary}"
    remedy = f"where {on} is adapted, {mistake.remedy}"
    return Diagnosis(f"layers.{case.kind}.{mistake.id}", summary, mistake.failure_mode, remedy=remedy)
