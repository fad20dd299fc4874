"""Rank-stabilised LoRA, α/√r in place of α/r (arXiv 2312.03732): whether a subject has it.

The LoRA paper and its authors' code do not, so a library without it lacks no mode of the references: it is not offered.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from harness.cases.layer_cases import Case, Domain
from harness.compare.context import Context
from harness.compare.outcome import Deviation, NotOffered
from harness.compare.probing import mode_is_ignored
from oracles.implementation import Implementation
from oracles.variants import Variant
from oracles.variants.shared_parts import RSLORA
from reports.model import Diagnosis

NAME = RSLORA.name
DRAWN = Domain(dtypes=("float32",), ranks=(2, 8), mode=NAME)  # at rank one it is the same
IGNORED = Diagnosis(
    "scale.rank_stabilised_ignored",
    "rank-stabilised scaling is accepted and the factor stays α/r",
    "a model that is trained with it elsewhere is loaded with a factor that is too small by the root of the rank",
    remedy="scale the update by α/√r where rank-stabilised scaling is asked for, or refuse it in a sentence",
)


def has_it(variant: Variant) -> bool:
    """Whether the method can be asked with α/√r."""
    return any(option.name == NAME for option in variant.options)


def is_offered(context: Context, case: Case) -> None:
    """Raises NotOffered for a subject without it, and Deviation for one that takes it without an effect."""
    who = context.subject
    if not getattr(case.spec, NAME):
        raise NotOffered(
            f"{who.name} has no {NAME}: the nearest spec that it can express is without", "rslora"
        )
    # What is always so is for the reference to judge.
    always = getattr(who.nearest(RSLORA.put(case.spec, False)), NAME)
    if always or not mode_is_ignored(context, case, (NAME,)):
        return
    if NAME not in _text(who):
        raise NotOffered(f"the subject's file passes no {NAME} on", "rslora")
    raise Deviation(case, "the output with α/√r", "another than with α/r", "the same", diagnosis=IGNORED)


def _text(who: Implementation) -> str:
    """The text of the subject's file; empty where it cannot be had."""
    try:
        connection = getattr(who, "connection", None)
        path = inspect.getfile(type(who)) if connection is None else connection.command.subject
        return Path(path).read_text(encoding="utf-8")
    except (OSError, TypeError, UnicodeDecodeError):
        return ""
