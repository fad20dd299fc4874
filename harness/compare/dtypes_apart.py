"""Why a layer over a base of another dtype raises: the adapter's tensors are not of it, and are used uncast."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from harness.cases.layer_cases import Case
from harness.compare.context import Context
from harness.compare.layer import Layer, SubjectRaised
from harness.compare.refusals import DTYPES, complaint
from reports.model import Diagnosis

APART = "dtype.apart"
REMEDY = "make the adapter's tensors in the base's dtype, or cast the input to theirs and the result back"


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
            return _told(whose, next(iter(other.values())), case, _answers_under_autocast(layer, case))
    return None


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
