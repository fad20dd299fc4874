"""What a subject does not take at all, told by one check each: a missing mode, a crash, or another shape."""

from __future__ import annotations

from harness.cases.layer_cases import Case
from harness.compare.abilities import ABOUT, Kind, Lack
from harness.compare.context import Context
from harness.compare.layer import SubjectRaised, adapt
from harness.compare.outcome import Deviation, ModeMissing
from reports.model import Diagnosis

WORDS = {
    "spec": "specs of the references",
    "dtype": "dtypes of the references",
    "input": "inputs of the references",
}

OTHER_DIMENSIONS = Diagnosis(
    "forward.other_dimensions",
    "for an x of some numbers of dimensions the output has another number of them",
    "what comes next in a model meets another shape, or broadcasts against it to something else",
    remedy="give the output as many dimensions as x has, whatever their number",
)


def nothing_lacks(context: Context, kind: Kind) -> None:
    """Raise for what the subject does not take: ModeMissing where it says so, else what happens where it is asked."""
    lacks = [lack for lack in context.abilities.of(kind) if not _refused_by_all(context, lack)]
    for lack in lacks:
        if lack.how in ("raised", "wrong shape"):
            _ask_again(context, lack)
    if lacks:
        what = ", ".join(lack.what for lack in lacks)
        reasons = "; ".join(dict.fromkeys(lack.reason for lack in lacks))
        raise ModeMissing(f"{what}: {reasons}", what, _aspect(lacks))


def _aspect(lacks: list[Lack]) -> str | None:
    """What is missing together is about the scale where an alpha is among it, else about the first of it."""
    aspects = [ABOUT.get(lack.what) for lack in lacks]
    return aspects[0] if None not in aspects else None


def _refused_by_all(context: Context, lack: Lack) -> bool:
    """Whether the reference of record refuses that dtype itself."""
    return lack.kind == "dtype" and lack.what.split()[0] in context.variant.refuses_dtypes


def _ask_again(context: Context, lack: Lack) -> None:
    """The crash itself, with its place; or the shape that came."""
    try:
        layer = adapt(context.subject, lack.case.base(), lack.case.spec)
        shape = tuple(layer(lack.case.x).shape)
    except SubjectRaised as error:
        error.case = lack.case
        raise
    has_shape(lack.case, lack.what, shape, (*lack.case.batch, lack.case.out_features))


def has_shape(case: Case, what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise Deviation unless an output's shape is the expected one."""
    if shape != expected:
        told = OTHER_DIMENSIONS if len(shape) != len(expected) else None
        raise Deviation(case, f"shape of y for {what}", str(expected), str(shape), diagnosis=told)
