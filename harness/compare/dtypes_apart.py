"""Why a layer over a base of another dtype raises: the adapter's tensors are not of it, and are used uncast."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from harness.cases.layer_cases import Case
from harness.compare.context import Context
from harness.compare.contexts import tensors
from harness.compare.layer import Layer, SubjectRaised
from harness.compare.refusals import DTYPES, complaint
from reports.model import Diagnosis

APART = "dtype.apart"
REMEDY = "make these tensors in the base's dtype, or cast the input to theirs and the result back"


def dtypes_apart(context: Context, error: SubjectRaised, case: Any) -> Diagnosis | None:
    """What is said of the subject's exception, where torch complains of dtypes and the adapter has another one."""
    if not isinstance(case, Case) or DTYPES not in complaint(str(error)):
        return None
    with suppress(Exception):  # it says nothing then
        layer = context.layer(case)
        other = {
            name: layer.raw(name).dtype for name in layer.names if layer.raw(name).dtype != case.torch_dtype
        }
        if len(set(other.values())) == 1:
            whose = "the adapter's tensors" if len(other) == len(layer.names) else " and ".join(other)
            if len(other) == len(layer.names) and not _keeps_the_dtype(layer, case):
                whose = "all of the layer's tensors, the base's among them,"
            return _told(whose, next(iter(other.values())), case, _answers_under_autocast(layer, case))
    return None


def _keeps_the_dtype(layer: Layer, case: Case) -> bool:
    """Whether some matrix of the module beside the adapter's tensors is of the base's dtype."""
    own = {id(layer.raw(name)) for name in layer.names}
    held = [t for t in tensors(layer.module).values() if id(t) not in own and t.dim() > 1]
    return not held or any(t.dtype == case.torch_dtype for t in held)


def _answers_under_autocast(layer: Layer, case: Case) -> bool:
    with suppress(SubjectRaised), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(case.x)
        return True
    return False


def _told(whose: str, dtype: torch.dtype, case: Case, under_autocast: bool) -> Diagnosis:
    outside = ", except under autocast" if under_autocast else ""
    is_ = "is" if len(whose) == 1 else "are"
    return Diagnosis(
        APART,
        f"{whose} {is_} {str(dtype).removeprefix('torch.')} over a base in {case.dtype}, and used on its input uncast",
        f"a model that is held in {case.dtype} cannot be adapted{outside}; what these claims ask is not known there",
        remedy=REMEDY,
    )
