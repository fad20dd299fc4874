"""Which catalogued mistake a merged layer has in it, where the adapted one has none."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.cases.layer_cases import Case
from harness.compare.context import Context
from harness.compare.layer import BadAnswer, SubjectRaised
from harness.compare.life_model import completed
from harness.compare.outcome import NoSlot
from harness.compare.probing import beneath, far_layer, plain_layer
from harness.compare.thresholds import SAME_UPDATE
from oracles.implementation import Unsupported
from oracles.mistakes import Mistake, compose, mistakes_of
from oracles.variants import paper
from reports.model import Diagnosis

# A case on which forms that are alike on the failing one need not be.
FRESH = {"in_features": 7, "out_features": 5, "rank": 4, "alpha": 5.5, "bias": True}
NO_ANSWER = (SubjectRaised, BadAnswer, NoSlot, Unsupported, RuntimeError, KeyError, ValueError)


# Of a merged layer with a mistake in it, whatever it is.
FAILURE = "what is deployed would answer as another model"
REMEDY = "merge into the weight and bias with which forward computes, this step included"


def explain(context: Context, case: Case) -> Diagnosis | None:
    """The one mistake whose weight and bias are merged, on the failing case and on another one."""
    candidates = [m for m in mistakes_of(context.variant.id) if "output" in m.speaks_of]
    for each in (case, context.abilities.fitted(case.but(**FRESH))):
        candidates = _having(context, each, candidates)
    return _named(candidates[0]) if candidates else None


def _having(context: Context, case: Case, candidates: list[Mistake]) -> list[Mistake]:
    """Those candidates that the subject's merged layer has in it on this case, and that show there."""
    if not candidates:
        return []
    try:
        layer = far_layer(context, case)
        W, values = beneath(context, case, layer), completed(layer.values(), case.weight.double(), case.spec)
        merged = plain_layer(context.calling("merge", context.subject.merge, layer.adapted), "merge")
        if merged.weight.shape != W.shape:
            return []
        right = _effective(context.forward, case, W, values)
        return [m for m in candidates if _is_in(m, case, W, values, merged, right)]
    except NO_ANSWER:
        return []


def _is_in(
    mistake: Mistake, case: Case, W: Tensor, values: dict[str, Tensor], merged: torch.nn.Linear, right: Tensor
) -> bool:
    try:
        wrong = _effective(compose([mistake]).forward, case, W, values)
    except NO_ANSWER:  # it wants a tensor that the right form has not
        return False
    bias = torch.zeros(case.out_features) if merged.bias is None else merged.bias.detach()
    found = torch.cat([merged.weight.detach().double(), bias.double()[:, None]], dim=1)
    unit = SAME_UPDATE * float(torch.linalg.vector_norm(right[:, :-1] - W))
    return float((found - wrong).norm()) <= unit < float((wrong - right).norm())


def _effective(forward: paper.Forward, case: Case, W: Tensor, values: dict[str, Tensor]) -> Tensor:
    """W' and b' side by side, (out, in + 1)."""
    b = case.bias_vector
    weight, bias = paper.effective(forward, W, None if b is None else b.double(), values, case.spec)
    return torch.cat([weight, bias.expand(case.out_features)[:, None]], dim=1)


def _named(mistake: Mistake) -> Diagnosis:
    return Diagnosis(
        f"merge.{mistake.id}",
        f"in what is merged, and not in what is computed, {mistake.summary}",
        FAILURE,
        remedy=REMEDY,
    )
