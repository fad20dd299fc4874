"""Which catalogued mistake a layer has in it in one state, merged or in evaluation mode, and not as it is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.cases.layer_cases import Case
from harness.compare.context import Context
from harness.compare.layer import BadAnswer, Layer, SubjectRaised
from harness.compare.life_model import completed
from harness.compare.outcome import NoSlot
from harness.compare.probing import beneath, effective, far_layer, plain_layer
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


# W' (out, in) and b' (out,) of a layer in the state.
Ask = Callable[[Context, Case, Layer], tuple[Tensor, Tensor]]


def explain_merged(context: Context, case: Case) -> Diagnosis | None:
    """The one mistake whose weight and bias are merged, on the failing case and on another one."""
    found = _mistake(context, case, merged_into)
    if found is None:
        return None
    summary = f"in what is merged, and not in what is computed, {found.summary}"
    return Diagnosis(f"merge.{found.id}", summary, FAILURE, remedy=REMEDY)


def explain_evaluated(context: Context, case: Case) -> Diagnosis | None:
    """The one mistake whose weight and bias the layer has in evaluation mode, and not in training mode."""
    found = _mistake(context, case, _evaluated)
    if found is None:
        return None
    return Diagnosis(
        f"forward.evaluation.{found.id}",
        f"in evaluation mode, and not in training mode, {found.summary}",
        "what is evaluated, and generated with, is another model than the one that was trained",
        remedy=f"in evaluation mode, too, {found.remedy}",
    )


def merged_into(context: Context, case: Case, layer: Layer) -> tuple[Tensor, Tensor]:
    """W' (out, in) and b' (out,) of what the layer is merged into, zeros where that has no bias."""
    merged = plain_layer(context.calling("merge", context.subject.merge, layer.adapted), "merge")
    bias = torch.zeros(case.out_features) if merged.bias is None else merged.bias.detach()
    return merged.weight.detach().double(), bias.double()


def _evaluated(context: Context, case: Case, layer: Layer) -> tuple[Tensor, Tensor]:
    layer.train(False)
    return effective(layer, case)


def _mistake(context: Context, case: Case, ask: Ask) -> Mistake | None:
    candidates = [m for m in mistakes_of(context.variant.id) if "output" in m.speaks_of]
    for each in (case, context.abilities.fitted(case.but(**FRESH))):
        candidates = _having(context, each, candidates, ask)
    return candidates[0] if candidates else None


def _having(context: Context, case: Case, candidates: list[Mistake], ask: Ask) -> list[Mistake]:
    """Those candidates that the subject's layer has in it in this state on this case, and that show there."""
    if not candidates:
        return []
    try:
        layer = far_layer(context, case)
        W, values = beneath(context, case, layer), completed(layer.values(), case.weight.double(), case.spec)
        weight, bias = ask(context, case, layer)
        if weight.shape != W.shape:
            return []
        right, found = _effective(context.forward, case, W, values), torch.cat([weight, bias[:, None]], dim=1)
        return [m for m in candidates if _is_in(m, case, W, values, found, right)]
    except NO_ANSWER:
        return []


def _is_in(
    mistake: Mistake, case: Case, W: Tensor, values: dict[str, Tensor], found: Tensor, right: Tensor
) -> bool:
    try:
        wrong = _effective(compose([mistake]).forward, case, W, values)
    except NO_ANSWER:  # it wants a tensor that the right form has not
        return False
    unit = SAME_UPDATE * float(torch.linalg.vector_norm(right[:, :-1] - W))
    return float((found - wrong).norm()) <= unit < float((wrong - right).norm())


def _effective(forward: paper.Forward, case: Case, W: Tensor, values: dict[str, Tensor]) -> Tensor:
    """W' and b' side by side, (out, in + 1)."""
    b = case.bias_vector
    weight, bias = paper.effective(forward, W, None if b is None else b.double(), values, case.spec)
    return torch.cat([weight, bias.expand(case.out_features)[:, None]], dim=1)
