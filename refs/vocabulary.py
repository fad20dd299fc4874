"""The words that several folders need, each once: aspects, severities, tags, outcomes, causes. Imports nothing."""

from __future__ import annotations

from typing import Literal, get_args

Outcome = Literal["pass", "fail", "declared", "not_applicable", "unverified", "error"]
Tag = Literal["BUG", "OK-doc", "OK-undoc", "STYLE"]
Severity = Literal["critical", "major", "minor", "none"]
Grade = Literal["Faithful", "Faithful-with-doc-gap", "Partial", "Buggy"]
# Who says what a failing claim equals: the catalogue of mistakes, or the check that failed.
Source = Literal["catalogue", "check"]
# Why a claim is neither a pass nor a plain failure.
Cause = Literal[
    # not applicable
    "mode_missing",  # an option, mode, dtype or kind of input that the references have and the subject has not
    "not_offered",  # an optional method that the subject does not offer
    "no_variant",  # not even an ordinary adapter of this variant
    "references_disagree",  # judged against the reference of record alone; with a pass: agreeing with the other
    "outside",  # the question does not arise here
    "told_elsewhere",  # another check reports it
    # unverified
    "oracle_silent",  # the oracle is absent, or a recording lacks this case
    "oracle_refused",  # the oracle itself raised, or has no finite answer
    "no_slot",  # a canonical tensor is missing, so that the point cannot be set
    "refused_all",  # the subject refused every case
    "wrapper",  # the subject file is broken, not the library
    "audit_failed",  # the audit's own mistake
    # error
    "raised",  # the library raised where it should have answered
    "bad_answer",  # no tensor, another shape
    "state_changed",  # global state left other than it was found
    "hangs",
    "died",  # the subject's own process ended
    "unsteady",  # the same call answered differently
]

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
TAGS: tuple[Tag, ...] = get_args(Tag)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # worst first
GRADES: tuple[Grade, ...] = get_args(Grade)  # best first
CAUSES: tuple[Cause, ...] = get_args(Cause)

# Aspect -> what the review calls it, in the review's order.
ASPECTS: dict[str, str] = {
    "shapes": "parameter shapes",
    "init": "initialisation",
    "scale": "scale factor",
    "step0": "step-0 gradient",
    "forward": "forward equation",
    "dropout": "dropout",
    "dtype": "dtypes",
    "contexts": "contexts",
    "training": "training",
    "merge": "merge and detach",
    "save_load": "save and load",
    "lifecycle": "life of an adapter",
    "layers": "kinds of layers",
    "targets": "target placement",
    "checkpoints": "checkpoints",
}
# Those whose lines in the references the review quotes.
QUOTED = ("shapes", "init", "scale", "forward", "save_load", "targets")
# Those that a subject is asked the source of, with what else they are called.
ASKED_OF_SUBJECTS: dict[str, tuple[str, ...]] = {
    "shapes": ("parameter shapes", "parameters", "shape"),
    "init": ("initialisation", "initialization"),
    "scale": ("scale factor", "scaling"),
    "forward": ("forward equation",),
    "save_load": ("save/load", "save", "load"),
    "targets": ("target placement", "target"),
    "dropout": (),
    "merge": (),
}
